"""Which judge rates which response on what: the planned rows of the ratings table, before anything is spent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpeer.errors import ConfigError
from dpeer.eval.asking import notes_on, shown_of, spoken_of, text_id
from dpeer.eval.backends.families import family_of_name
from dpeer.eval.backends.registry import BACKENDS, family, identity
from dpeer.eval.config import EvalConfig, Judging, Served
from dpeer.eval.irt import design
from dpeer.eval.irt.linking import linked_design, planned_ratings
from dpeer.eval.irt.types import Bools, Options
from dpeer.eval.pair_plan import ASKED, CONVERSATION, pair_questions, planned_pairs, read_as
from dpeer.eval.questions.prompting import judge_segments
from dpeer.eval.questions.rubric import Rubric, load_rubric
from dpeer.eval.questions.shown import OWN, Shown
from dpeer.eval.responses import load_responses
from dpeer.eval.store.parts import anti_join, content_id, done_ids

ORDERS = ("up", "down")


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Planned ratings; conversations stand in the order in which they are sent."""

    rubric: Rubric
    responses: pd.DataFrame
    """Columns of the responses table, indexed by response_id."""
    rows: pd.DataFrame
    """Every planned rating, with the columns of the ratings table that are known before it is made."""
    todo: pd.DataFrame
    """Those that are not on disk yet."""
    notes: tuple[str, ...]
    """What the person should know: warnings of the design, related judges, responses that cannot be rated."""
    judging: Judging

    @property
    def conversation(self) -> tuple[str, ...]:
        """Columns that tell conversations apart."""
        return CONVERSATION if "other_response_id" in self.rows else CONVERSATION[:1]


def ratings_folder(cfg: EvalConfig) -> Path:
    return cfg.folder / "ratings"


def plan(cfg: EvalConfig, check_design: bool = True) -> Plan:
    """The ratings that a config asks for, and which of them are missing.

    Raises ConfigError for related judges that are not allowed, DataError for a faulty responses table, and a
    DesignError when the planned ratings cannot tell the models apart.
    """
    if not cfg.judges:
        raise ConfigError("judges is empty: name at least one judge model (name, path).")
    rubric = load_rubric(cfg.judging.rubric)
    questions = asked(cfg, rubric)
    responses, notes = load_responses(cfg)
    notes += notes_on(cfg.judging, rubric, responses, str(cfg.responses or cfg.prompts.path))
    notes += _relations(cfg, responses)
    chosen = _chosen(cfg, responses)
    if cfg.judging.mode == "pairwise":
        judged = [_pair_rows(cfg, rubric, j, questions, responses, chosen[:, j]) for j in range(len(cfg.judges))]
    else:
        judged = [planned_rows(cfg, rubric, j, questions, responses[chosen[:, j]]) for j in range(len(cfg.judges))]
    rows = pd.concat(judged, ignore_index=True)
    if check_design:
        planned = planned_ratings(rows, rubric.scale)
        try:
            report = design.check(planned, Options(), planned=True)
        except design.DiscriminationAliased as error:  # the fit has an answer: equal discriminations
            notes.append(str(error))
            report = design.check(planned, Options(model="rasch"), planned=True)
        notes += [str(warning) for warning in report.warnings]
    done = done_ids(ratings_folder(cfg))
    if stale := len(done.difference(rows["rating_id"])):
        notes.append(
            f"{stale} ratings in {ratings_folder(cfg)} are not of this plan (other judge, rubric, settings or "
            "responses); they stay there and are left out."
        )
    return Plan(rubric, responses.set_index("response_id"), rows, anti_join(rows, done), tuple(notes), cfg.judging)


def asked(cfg: EvalConfig, rubric: Rubric) -> list[tuple[str, str, int, str]]:
    """(dimension, criterion, repeat, order) of the calls about one response, or one pair of them."""
    judging = cfg.judging
    if unknown := [d for d in judging.dimensions if d not in rubric.dimensions]:
        raise ConfigError(
            f"judging.dimensions: rubric {rubric.name} has no {unknown[0]}; it has {', '.join(rubric.dimensions)}"
        )
    if judging.mode == "logprob" and not all(0 <= score <= 9 for score in rubric.scale):
        raise ConfigError(
            f"rubric {rubric.name}: mode logprob reads one token per score, so the scale must lie within 0 to 9; it is "
            f"{rubric.scale[0]} to {rubric.scale[-1]}. Set judging.mode to structured, or use another scale."
        )
    if judging.mode == "logprob" and judging.score == "most_likely" and judging.repeats > len(ORDERS):
        raise ConfigError(
            f"judging.repeats = {judging.repeats} with mode logprob: after the two orders of the scale a repeat would "
            "be the same question with the same answer. Set repeats to 1 or 2, judging.score to sampled, or mode to "
            "structured."
        )
    pairs = [(d, c) for d in judging.dimensions or rubric.dimensions for c in rubric.dimensions[d].criteria]
    if judging.mode == "pairwise":
        return pair_questions(cfg, pairs)
    return [(d, c, r, ORDERS[r % 2]) for (d, c), r in product(pairs, range(judging.repeats))]


def _chosen(cfg: EvalConfig, responses: pd.DataFrame) -> Bools:
    """[R, J] whether the judge rates the response."""
    judges = len(cfg.judges)
    if cfg.design.kind == "full":
        return np.ones((len(responses), judges), bool)
    models, items = pd.factorize(responses["model"], sort=True), pd.factorize(responses["item"], sort=True)
    spec = cfg.design
    rated: Bools = linked_design(
        len(models[1]), len(items[1]), judges, min(spec.anchors, len(items[1])), spec.judges_per_response, cfg.seed
    )
    return np.asarray(rated[models[0], items[0]], bool)


def planned_rows(
    cfg: EvalConfig, rubric: Rubric, index: int, asked: Sequence[tuple[str, str, int, str]], responses: pd.DataFrame
) -> pd.DataFrame:
    """Planned ratings of one judge, in an order of conversations that the seed decides."""
    judge = cfg.judges[index]
    shuffled = responses.iloc[np.random.default_rng([cfg.seed, index]).permutation(len(responses))]
    own = _own(cfg, rubric, judge)
    base = own | {"sampling": sampling_of(cfg, judge)}
    told: dict[str, list[Any]] = {name: [] for name in ("rating_id", *ASKED, "asked", "of")}
    words: dict[Any, str] = {}
    columns = [c for c in ("response_id", "prompt", "response", "transcript", "brief") if c in shuffled]
    for place, values in enumerate(zip(*(shuffled[c] for c in columns), strict=True)):
        response = dict(zip(columns, values, strict=True))
        content, spoken = text_id(response), spoken_of(rubric, response)
        for dimension, criterion, repeat, order in asked:
            shown = shown_of(cfg.judging, response, dimension)
            if shown.instead:
                if criterion != next(iter(rubric.dimensions[dimension].criteria)):
                    continue  # the item's own question is asked once
                criterion = OWN
            key = (spoken.language, shown.form, dimension, criterion, order)
            if key not in words:
                words[key] = _wording(spoken, dimension, criterion, order, read_as(cfg.judging), shown.form)
            question = dict(zip(ASKED, (dimension, criterion, repeat, order), strict=True)) | {"asked": words[key]}
            rating = content_id(**base, response_id=response["response_id"], content=content, **question)
            for column, value in (question | {"rating_id": rating, "of": place}).items():
                told[column].append(value)
    of = np.array(told["of"], dtype=np.int64)
    rows = shuffled[["response_id", "model", "item", "sample"]].iloc[of].reset_index(drop=True)
    rows.insert(0, "rating_id", told["rating_id"])
    for column in ASKED:
        rows[column] = told[column]
    return rows.assign(
        **own,
        model_family=pd.Series(model_families(cfg, shuffled).to_numpy()[of], rows.index, object),
        judge_family=family(judge),
        response_length=shuffled["response"].str.len().to_numpy()[of],
        prompt_hash=told["asked"],
        other_model_family=None,
    )


def _own(cfg: EvalConfig, rubric: Rubric, judge: Served) -> dict[str, str]:
    """What every row of a judge says of it and of how it is asked."""
    return {
        "judge": judge.name,
        "judge_hash": identity(judge),
        "rubric_hash": rubric.hash,
        "mode": cfg.judging.mode,
    }


def _pair_rows(
    cfg: EvalConfig, rubric: Rubric, index: int, asked: Sequence[tuple[str, str, int, str]], responses: pd.DataFrame,
    chosen: Bools,
) -> pd.DataFrame:  # fmt: skip
    judge = cfg.judges[index]
    known = responses.assign(model_family=model_families(cfg, responses))
    own, sampling = _own(cfg, rubric, judge), sampling_of(cfg, judge)
    rows = planned_pairs(cfg, rubric, own, sampling, index, asked, known, chosen)
    return rows.assign(judge_family=family(judge))


def _wording(rubric: Rubric, dimension: str, criterion: str, order: Any, mode: Any, shown: Shown) -> str:
    """What a judge reads around prompt and response: the rubric's words, dpeer's own and those of the item."""
    return content_id(texts=[s.text for s in judge_segments(rubric, "", "", dimension, criterion, order, mode, shown)])


def sampling_of(cfg: EvalConfig, judge: Served) -> dict[str, Any]:
    """Everything besides the texts that a rating depends on."""
    judging = cfg.judging
    how: dict[str, Any] = (
        {"min_mass": judging.min_mass, "score": judging.score}
        if read_as(judging) == "logprob"
        else {"max_tokens": judging.max_tokens, "temperature": temperature(cfg)}
    )
    return how | BACKENDS[judge.backend].conditions(judge, cfg.engine_of(judge))


def temperature(cfg: EvalConfig) -> float:
    """Structured answers are greedy, unless repeats ask the same question again: then they must vary."""
    apart = 1 if cfg.judging.mode == "pairwise" else len(ORDERS)
    return 1.0 if read_as(cfg.judging) == "structured" and cfg.judging.repeats > apart else 0.0


def model_families(cfg: EvalConfig, responses: pd.DataFrame) -> pd.Series:
    """Family of each response's model: as the config says, else its row, else as the model or its name tells."""
    stated = {m.name: family(m) for m in cfg.models if m.family}
    known = {m.name: family(m) for m in cfg.models}
    names = responses["model"]
    guessed = names.map({m: known.get(m) or family_of_name(m) for m in names.unique()})
    families = names.map(stated).fillna(responses["family"].str.lower()).fillna(guessed).astype(object)
    return families.where(families.notna(), None)


def _relations(cfg: EvalConfig, responses: pd.DataFrame) -> list[str]:
    """Notes on judges that are a model under test or of its family; ConfigError unless that is allowed."""
    families = dict(zip(responses["model"], model_families(cfg, responses), strict=True))
    hashes: Mapping[str, Any] = dict(zip(responses["model"], responses["model_hash"], strict=True))
    related = refuse_related(cfg.judges, families, hashes, cfg.judging.allow_related)
    notes = [f"{relation} (allowed; its ratings are marked)." for relation in related]
    unknown = [j.name for j in cfg.judges if family(j) is None] + [m for m, kind in families.items() if kind is None]
    if unknown:
        notes.append(
            f"the family of {', '.join(unknown)} is not known, so a judge of the same family would go unnoticed; set "
            "`family` there."
        )
    return notes


def refuse_related(
    judges: Sequence[Served], families: Mapping[str, str | None], hashes: Mapping[str, str | None], allowed: bool
) -> list[str]:
    """Which judges are of the family of which models (name -> family, and -> identity); ConfigError unless allowed."""
    related = list(_related(judges, families, hashes))
    if related and not allowed:
        raise ConfigError(
            f"{'; '.join(related)}. Such a judge may prefer its own. Take another judge, or set "
            "judging.allow_related=true: its ratings are then marked, and the self-preference term can be fitted. (Set "
            "`family` where a family is guessed wrongly.)"
        )
    return related


def _related(
    judges: Sequence[Served], families: Mapping[str, str | None], hashes: Mapping[str, str | None]
) -> Iterator[str]:
    for judge in judges:
        own, kind = identity(judge), family(judge)
        relatives = []
        for model in families:
            if own == hashes[model]:
                if judge.name != model:
                    raise ConfigError(
                        f"judge {judge.name} is the model {model} itself under another name. Give both the same name, "
                        "so that the self-preference term knows, or take another judge."
                    )
                yield f"judge {judge.name} is a model under test"
            elif judge.name == model:
                raise ConfigError(f"judge {judge.name} has the name of another model under test. Rename one of them.")
            elif kind is not None and kind == families[model]:
                relatives.append(model)
        if relatives:
            yield f"judge {judge.name} is of the family {kind}, like {', '.join(relatives)}"
