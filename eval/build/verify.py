"""Verification: judges rate every response on every active dimension, each by the scale that it has shown.

A verifier's scale comes from its ratings of the spec's checks, responses that people wrote and that surely satisfy or
fail a dimension: 0 is the mean of the failing ones, 1 that of the satisfying ones, so that its severity and the width
of its scale cancel. One that does not tell them apart has no scale, and is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import yaml

from dpeer.errors import ConfigError, DataError
from dpeer.eval.backends.registry import family, identity
from dpeer.eval.build.spec import BuildSpec
from dpeer.eval.build.walk import GOLDEN, Candidate, Fault
from dpeer.eval.config import EvalConfig
from dpeer.eval.plan import Plan, asked, planned_rows, ratings_folder
from dpeer.eval.questions.briefs import Brief
from dpeer.eval.questions.rubric import Rubric, load_rubric, rubric_from
from dpeer.eval.store.parts import anti_join, done_ids
from dpeer.eval.store.schema import RESPONSES
from dpeer.files import write_text
from dpeer.yaml_dialect import Dumper

SCALE = (1, 2, 3, 4, 5)
HALF = 0.5
KNOWN = ("satisfying", "failing")
"""Names of the checks' responses in the column `model` of ratings."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a verifier gives known good and known bad responses of a dimension, on average, in points."""

    satisfying: float
    failing: float

    @property
    def width(self) -> float:
        return self.satisfying - self.failing

    def place(self, score: float) -> float:
        """0 where known bad responses are, 1 where known good ones are."""
        return (score - self.failing) / self.width


def rubric_of(spec: BuildSpec) -> Rubric:
    """The rubric that verifiers are asked by. ConfigError: a rubric that is given lacks a dimension."""
    if spec.verification.rubric is None:
        return rubric_from(_made(spec), "dimensions")
    rubric = load_rubric(spec.verification.rubric)
    if missing := [d for d in spec.dimensions if d not in rubric.dimensions]:
        raise ConfigError(
            f"verification.rubric: {rubric.name} has no dimension {missing[0]}; it has {', '.join(rubric.dimensions)}. "
            "Add it there, or leave verification.rubric out: a rubric is then made from the dimensions' definitions."
        )
    return rubric


def write_rubric(spec: BuildSpec) -> None:
    """The rubric that the dimensions' definitions make, as a file that `dpeer judge` and `dpeer data audit` take."""
    if spec.verification.rubric is None:
        text = yaml.dump(_made(spec), Dumper=Dumper, sort_keys=False, allow_unicode=True)
        write_text(spec.folder / "rubric.yaml", text)


def _made(spec: BuildSpec) -> dict[str, Any]:
    dimensions = {
        name: {
            "title": trait.title or name,
            "description": trait.definition,
            "criteria": {
                "whole": {
                    "question": "How far does the response satisfy this?",
                    "anchors": {
                        1: f"Fails it: {trait.fails}",
                        2: "Mostly fails it.",
                        3: "In between.",
                        4: "Mostly satisfies it.",
                        5: f"Satisfies it: {trait.satisfies}",
                    },
                }
            },
        }
        for name, trait in spec.dimensions.items()
    }
    role = (
        "You rate answers of assistants, each on one quality only, whatever else is good or bad about it. Length, "
        "politeness and formatting earn nothing by themselves. Use the whole scale."
    )
    return {"name": spec.name, "version": 1, "scale": list(SCALE), "role": role, "dimensions": dimensions}


def refuse_related(spec: BuildSpec) -> list[str]:
    """Notes on verifiers that are a generator or of its family; ConfigError unless that is allowed."""
    told = []
    for verifier in spec.verifiers:
        for generator in spec.generators:
            if identity(verifier) == identity(generator):
                told.append(f"verifier {verifier.name} is the generator {generator.name}")
            elif (kind := family(verifier)) is not None and kind == family(generator):
                told.append(f"verifier {verifier.name} is of the family {kind}, like the generator {generator.name}")
    if told and not spec.verification.allow_related:
        raise ConfigError(
            f"{'; '.join(told)}. Such a verifier may be lenient with its own. Take another, or set "
            "verification.allow_related=true. (Set `family` where a family is guessed wrongly.)"
        )
    return [f"{one} (allowed)." for one in told]


def responses_of(spec: BuildSpec, candidates: Sequence[Candidate], language: str) -> pd.DataFrame:
    """Checks and candidates as rows of the responses table, with `active`, the dimensions to rate."""
    rows: list[dict[str, Any]] = [
        {
            "response_id": f"check-{name}-{k}-{kind}",
            "model": kind,
            "item": f"check-{name}-{k}",
            "prompt": check.prompt,
            "response": text,
            "sample": 0,
            "active": (name,),
            "brief": None,
        }
        for name, trait in spec.dimensions.items()
        for k, check in enumerate(trait.checks)
        for kind, text in zip(KNOWN, (check.satisfying, check.failing), strict=True)
    ]
    rows += [
        {
            "response_id": c.id,
            "model": c.kind,
            "item": c.slot.id,
            "prompt": c.prompt,
            "response": c.text,
            "sample": c.attempt,
            "active": c.slot.mask,
            "brief": Brief(language=c.slot.language) if c.slot.language != language else None,
        }
        for c in candidates
    ]
    return pd.DataFrame(rows).reindex(columns=[*RESPONSES.names, "active", "brief"]).assign(status="ok")


def verification_plan(
    cfg: EvalConfig, spec: BuildSpec, candidates: Sequence[Candidate], voters: Collection[tuple[str, str]] | None = None
) -> Plan:
    """The ratings of all checks and candidates on their active dimensions, and which of them are missing.

    voters: (dimension, judge) that candidates are rated by; default: every judge on every dimension.
    """
    rubric = rubric_of(spec)
    responses = responses_of(spec, candidates, rubric.language).astype({"family": object})
    active = dict(zip(responses["response_id"], responses["active"], strict=True))
    known = {i for i, kind in zip(responses["response_id"], responses["model"], strict=True) if kind in KNOWN}
    rows = []
    for number, judge in enumerate(cfg.judges):
        every = planned_rows(cfg, rubric, number, asked(cfg, rubric), responses)
        votes = {d for d in spec.dimensions if voters is None or (d, judge.name) in voters}
        pairs = zip(every["response_id"], every["dimension"], strict=True)
        rows.append(every[[d in active[i] and (i in known or d in votes) for i, d in pairs]])
    planned = pd.concat(rows, ignore_index=True)
    todo = anti_join(planned, done_ids(ratings_folder(cfg)))
    return Plan(rubric, responses.set_index("response_id"), planned, todo, (), cfg.judging)


def scores_of(ratings: pd.DataFrame) -> pd.Series:
    """Mean score of each response, dimension and judge over criteria and repeats, of ratings that are usable."""
    usable = ratings[ratings["status"] == "ok"]
    values = usable.assign(value=usable["expected"].fillna(usable["score"]).astype(float))
    means: pd.Series = values.groupby(["response_id", "dimension", "judge"])["value"].mean()
    return means


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What verifiers say. scales: of those that tell known good from known bad responses of a dimension, by
    (dimension, judge). refused: the others, with what they gave. scores: by response, dimension and judge."""

    spec: BuildSpec
    scales: Mapping[tuple[str, str], Scale]
    refused: Mapping[tuple[str, str], Scale]
    scores: Mapping[tuple[str, str, str], float]
    rated: frozenset[str]

    @classmethod
    def of(cls, spec: BuildSpec, ratings: pd.DataFrame) -> Verdicts:
        means = scores_of(ratings)
        scores = {(str(r), str(d), str(j)): float(v) for (r, d, j), v in means.items()}
        scales, refused = dict[tuple[str, str], Scale](), dict[tuple[str, str], Scale]()
        for name, trait in spec.dimensions.items():
            for judge in (served.name for served in spec.verifiers):
                good, bad = (
                    [scores.get((f"check-{name}-{k}-{kind}", name, judge), np.nan) for k in range(len(trait.checks))]
                    for kind in KNOWN
                )
                scale = Scale(float(np.mean(good)), float(np.mean(bad)))
                sound = scale.width >= spec.verification.separation
                (scales if sound else refused)[name, judge] = scale
        return cls(spec, scales, refused, scores, frozenset(ratings["response_id"]))

    def refuse_if_none(self) -> None:
        """DataError where a dimension has no verifier left."""
        left = {dimension for dimension, _ in self.scales}
        if lacking := [d for d in self.spec.dimensions if d not in left]:
            told = "; ".join(self.words(key) for key in self.refused if key[0] in lacking)
            raise DataError(
                f"no verifier tells known good from known bad responses of {', '.join(lacking)}: {told}. Nothing that "
                "they pass would mean anything. Take other verifiers, say in `definition`, `satisfies` and `fails` "
                "more plainly what the dimension is, or put the checks right."
            )

    def words(self, key: tuple[str, str]) -> str:
        """A refused verifier, in words."""
        dimension, judge = key
        scale = self.refused[key]
        if np.isnan(scale.width):
            return f"{judge} has not rated all checks of {dimension} (see ratings.parquet; --retry-errors asks again)"
        return (
            f"{judge} gives {scale.satisfying:.2f} to satisfying and {scale.failing:.2f} to failing responses of "
            f"{dimension}, less than {self.spec.verification.separation:g} apart"
        )

    def places(self, candidate: Candidate, dimension: str) -> dict[str, float]:
        """Where a response lies on the scale of each verifier that has a usable rating of it."""
        found = {}
        for (name, judge), scale in self.scales.items():
            score = self.scores.get((candidate.id, dimension, judge))
            if name == dimension and score is not None:
                found[judge] = scale.place(score)
        return found

    def satisfies(self, candidate: Candidate, dimension: str) -> bool:
        """More than half of the verifiers place it nearer to the known good responses."""
        votes = [place >= HALF for place in self.places(candidate, dimension).values()]
        return self._most(votes, dimension)

    def fails(self, reject: Candidate, golden: Candidate, dimension: str) -> bool:
        """More than half place it nearer to the known bad ones, and by a gap below its golden."""
        above = self.places(golden, dimension)
        votes = [
            place < HALF and above[judge] - place >= self.spec.verification.gap
            for judge, place in self.places(reject, dimension).items()
            if judge in above
        ]
        return self._most(votes, dimension)

    def _most(self, votes: Sequence[bool], dimension: str) -> bool:
        """A rating that is missing counts against."""
        verifiers = sum(name == dimension for name, _ in self.scales)
        return 2 * sum(votes) > verifiers

    def faults(self, candidate: Candidate) -> tuple[Fault, ...] | None:
        """What is wrong with a golden, or with a reject beside its golden; None: not rated yet."""
        golden = candidate.golden
        if candidate.id not in self.rated:
            return None
        found = []
        for dimension in candidate.slot.mask:
            title = self.spec.dimensions[dimension].title or dimension
            to_fail = golden is not None and candidate.kind == f"reject_{dimension}"
            if to_fail and golden is not None and not self.fails(candidate, golden, dimension):
                told = f'readers do not find that it fails "{title}"; fail it plainly.'
                found.append(Fault(f"{candidate.kind}: does not fail {dimension}", told))
            elif not to_fail and not self.satisfies(candidate, dimension):
                told = f'readers find that it fails "{title}", which it must satisfy.'
                kind = "fails" if candidate.kind == GOLDEN else "also fails"
                found.append(Fault(f"{candidate.kind}: {kind} {dimension}", told))
        return tuple(found)
