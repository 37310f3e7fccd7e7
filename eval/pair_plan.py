"""Which pairs of responses a judge compares: the planned rows of a pairwise judging."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from dpeer.errors import ConfigError
from dpeer.eval.asking import shown_of, spoken_of, text_id
from dpeer.eval.config import EvalConfig, Judging
from dpeer.eval.irt.types import Bools, Ints
from dpeer.eval.questions.pairwise import pair_segments
from dpeer.eval.questions.prompting import Mode
from dpeer.eval.questions.rubric import Rubric
from dpeer.eval.questions.shown import OWN
from dpeer.eval.store.parts import content_id
from dpeer.eval.store.schema import PLACES

CONVERSATION = ("response_id", "other_response_id", "order")
"""What calls of one conversation have in common."""
Asked = tuple[str, str, int, str]
ASKED = ("dimension", "criterion", "repeat", "order")


def read_as(judging: Judging) -> Mode:
    """How a judge's answer is read."""
    return judging.pairwise_read if judging.mode == "pairwise" else judging.mode


def pair_questions(cfg: EvalConfig, criteria: Sequence[tuple[str, str]]) -> list[Asked]:
    """(dimension, criterion, repeat, place of the response) of all calls about one pair, one order after the other.

    Raises ConfigError for repeats of a question that has one answer.
    """
    judging = cfg.judging
    if read_as(judging) == "logprob" and judging.score == "most_likely" and judging.repeats > 1:
        raise ConfigError(
            f"judging.repeats = {judging.repeats} with mode pairwise: every pair is asked in both orders, and by "
            "log-probability a repeat would be the same question with the same answer. Set repeats to 1, judging.score "
            "to sampled, or pairwise_read to structured."
        )
    return [(d, c, r, place) for place, (d, c), r in product(PLACES, criteria, range(judging.repeats))]


def pairs_of(cfg: EvalConfig, responses: pd.DataFrame) -> Ints:
    """[P, 2] positions of the responses to compare: of one item and sample, by two models in the order of their names,
    whichever is the base: a pair that was answered stays the same pair.

    Raises ConfigError where there are none.
    """
    models = list(dict.fromkeys(responses["model"]))
    base = cfg.base or (cfg.models[0].name if cfg.models else models[0])
    if base not in models:
        raise ConfigError(f"base {base} has no response, so nothing can be compared with it; there are {models}")
    side = responses[["item", "sample", "model"]].assign(at=np.arange(len(responses)))
    both = side.merge(side, on=["item", "sample"], suffixes=("", "_other"))
    both = both[both["model"] < both["model_other"]]
    if cfg.judging.pairs == "base":
        both = both[(both["model"] == base) | (both["model_other"] == base)]
    if both.empty:
        raise ConfigError(
            f"judging.mode pairwise: no two models of {', '.join(models)} answered the same item as the "
            "same sample, so there is no pair to compare. Give responses of two models or more to the same prompts."
        )
    return np.asarray(both[["at", "at_other"]], dtype=np.int64)


def planned_pairs(
    cfg: EvalConfig, rubric: Rubric, own: dict[str, Any], sampling: dict[str, Any], index: int,
    asked: Sequence[Asked], responses: pd.DataFrame, chosen: Bools,
) -> pd.DataFrame:  # fmt: skip
    """Planned comparisons by one judge, in an order of pairs that the seed decides.

    own: what each row says of the judge. responses: with a column `model_family`. chosen: [R] those that it judges.
    """
    pairs = pairs_of(cfg, responses)
    pairs = pairs[chosen[pairs].all(axis=1)]
    pairs = pairs[np.random.default_rng([cfg.seed, index]).permutation(len(pairs))]
    mode = read_as(cfg.judging)
    told: dict[str, list[Any]] = {name: [] for name in ("rating_id", *ASKED, "asked", "of")}
    words: dict[Any, str] = {}
    columns = [c for c in ("response_id", "prompt", "response", "transcript", "brief") if c in responses]
    known = responses[columns].to_dict("records")
    texts = [text_id(response) for response in known]
    for place, (i, j) in enumerate(pairs.tolist()):
        mine, other = known[i], known[j]
        spoken, content = spoken_of(rubric, mine), content_id(this=texts[i], other=texts[j])
        for dimension, criterion, repeat, order in asked:
            shown = (shown_of(cfg.judging, mine, dimension), shown_of(cfg.judging, other, dimension))
            if shown[0].instead:
                if criterion != next(iter(rubric.dimensions[dimension].criteria)):
                    continue  # the item's own question is asked once
                criterion = OWN
            key = (spoken.language, *(s.form for s in shown), dimension, criterion)
            if key not in words:
                forms = (shown[0].form, shown[1].form)
                segments = pair_segments(spoken, "", "", "", dimension, criterion, mode, forms)
                words[key] = content_id(texts=[s.text for s in segments])
            question = dict(zip(ASKED, (dimension, criterion, repeat, order), strict=True)) | {"asked": words[key]}
            ids = {"response_id": mine["response_id"], "other_response_id": other["response_id"]}
            rating = content_id(**own, sampling=sampling, **ids, content=content, **question)
            for column, value in (question | {"rating_id": rating, "of": place}).items():
                told[column].append(value)
    of = np.array(told["of"], dtype=np.int64)
    this, other_side = (responses.iloc[pairs[:, side]].reset_index(drop=True) for side in (0, 1))
    sides = {
        **{name: this[name] for name in ("response_id", "model", "item", "sample", "model_family")},
        "response_length": this["response"].str.len(),
        **{f"other_{name}": other_side[name] for name in ("response_id", "model", "sample", "model_family")},
        "other_response_length": other_side["response"].str.len(),
    }
    rows = pd.DataFrame(sides).iloc[of].reset_index(drop=True)
    rows.insert(0, "rating_id", pd.Series(told["rating_id"], dtype=object))
    for column in ASKED:
        rows[column] = told[column]
    rows["prompt_hash"] = told["asked"]
    return rows.assign(**own)
