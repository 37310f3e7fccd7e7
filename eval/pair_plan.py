"""Which pairs of responses a judge compares: the planned rows of a pairwise judging."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from dpeer.errors import ConfigError
from dpeer.eval.config import EvalConfig, Judging
from dpeer.eval.irt.types import Bools, Ints
from dpeer.eval.questions.pairwise import pair_segments
from dpeer.eval.questions.prompting import Mode
from dpeer.eval.questions.rubric import Rubric
from dpeer.eval.store.parts import content_id
from dpeer.eval.store.schema import PLACES

CONVERSATION = ("response_id", "other_response_id", "order")
"""What calls of one conversation have in common."""
Asked = tuple[str, str, int, str]


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
    """[P, 2] positions of the responses to compare: of one item and sample, by two models; the base's stands last, so
    that the pairs with the base are among all pairs.

    Raises ConfigError where there are none.
    """
    models = list(dict.fromkeys(responses["model"]))
    base = cfg.base or (cfg.models[0].name if cfg.models else models[0])
    if base not in models:
        raise ConfigError(f"base {base} has no response, so nothing can be compared with it; there are {models}")
    names = [*sorted(name for name in models if name != base), base]
    rank = responses["model"].map({name: k for k, name in enumerate(names)})
    side = responses[["item", "sample"]].assign(rank=rank.to_numpy(), at=np.arange(len(responses)))
    both = side.merge(side, on=["item", "sample"], suffixes=("", "_other"))
    both = both[both["rank"] < both["rank_other"]]
    if cfg.judging.pairs == "base":
        both = both[both["rank_other"] == len(names) - 1]
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
    wordings = {
        (d, c): content_id(texts=[s.text for s in pair_segments(rubric, "", "", "", d, c, mode)])
        for d, c, _, _ in asked
    }
    questions = [
        {"dimension": d, "criterion": c, "repeat": r, "order": o, "asked": wordings[d, c]} for d, c, r, o in asked
    ]
    this, other = (responses.iloc[pairs[:, side]].reset_index(drop=True) for side in (0, 1))
    texts = zip(this["prompt"], this["response"], other["response"], strict=True)
    content = [content_id(prompt=prompt, response=mine, other=theirs) for prompt, mine, theirs in texts]
    keys = zip(this["response_id"], other["response_id"], content, strict=True)
    ids = [
        content_id(**own, sampling=sampling, response_id=mine, other_response_id=theirs, content=text, **question)
        for mine, theirs, text in keys
        for question in questions
    ]
    sides = {
        **{name: this[name] for name in ("response_id", "model", "item", "sample", "model_family")},
        "response_length": this["response"].str.len(),
        **{f"other_{name}": other[name] for name in ("response_id", "model", "sample", "model_family")},
        "other_response_length": other["response"].str.len(),
    }
    rows = pd.DataFrame(sides).loc[np.repeat(np.arange(len(pairs)), len(asked))].reset_index(drop=True)
    rows.insert(0, "rating_id", pd.Series(ids, dtype=object))
    for column, values in zip(("dimension", "criterion", "repeat", "order"), zip(*asked, strict=True), strict=True):
        rows[column] = list(values) * len(pairs)
    return rows.assign(**own)
