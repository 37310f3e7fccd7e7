"""The order audit: judges rate both ends of edges; what they say of the order becomes rates, and the worst a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from dpeer.data.faults import excerpt
from dpeer.errors import DataError
from dpeer.eval.audit.pairs import Pairs, margins
from dpeer.eval.audit.plan import audit_plan
from dpeer.eval.audit.rates import Floats, Interval, Truth, contradicted, share, side, truth, votes, with_others
from dpeer.eval.config import EvalConfig
from dpeer.eval.judge import rate
from dpeer.eval.run import Connect, nothing_usable
from dpeer.files import write_json

WORST = 20
EXCERPT = 160
TIE = 0.25
FEWEST = 10
"""Edges on which a judge and another one take a side, below which nothing is said of how often it errs."""
HALF = 0.45
"""A judge whose error is above this tells nothing, or the opposite of what the others tell."""

SEVERAL = (
    "The estimate takes chance errors out by how judges agree. It assumes that judges err independently of each other, "
    "and each as often on violated as on sound edges. Mistakes that all judges share stay in the rate."
)
REPEATS = (
    "The estimate takes chance errors out by how one judge's repeats agree, as if each were a judge of its own. What "
    "this judge gets wrong every time stays in the rate: a second judge would show some of it."
)
NONE = (
    "One judge rated each response once, so nothing says how often it errs, and its errors are in the rate. Add a "
    "second judge, or set judging.repeats=2, for an estimate without them."
)


@dataclass(frozen=True, slots=True)
class JudgeVotes:
    """One judge's votes on the edges of a group; `error`: its estimated chance to take the wrong side, None where too
    little is known."""

    judge: str
    upheld: int
    tied: int
    violated: int
    error: Interval | None


@dataclass(frozen=True, slots=True)
class Group:
    """The edges of one dimension in one source.

    `upheld`, `violated`: more judges for than against, or against than for; ties do not count. `tied`: as many for as
    against. `unrated`: no judge has usable ratings of both ends. `rate`: violated among violated and upheld.
    `corrected`: of all edges on which a judge takes a side, without the judges' chance errors; None where they cannot
    be told. `contradicted`: share of edges on which judges take opposite sides, among those on which two take any.
    """

    source: str
    dimension: str
    edges: int
    prompts: int
    upheld: int
    tied: int
    violated: int
    unrated: int
    rate: Interval
    corrected: Interval | None
    contradicted: float
    judges: tuple[JudgeVotes, ...]


@dataclass(frozen=True, slots=True)
class Wrong:
    """An edge whose worse response is rated higher, by `excess` points of the scale on average over the judges."""

    source: str
    row: str
    dimension: str
    excess: float
    against: int
    judges: int
    prompt: str
    better: str
    worse: str


@dataclass(frozen=True, slots=True)
class Audit:
    name: str
    tie: float
    groups: tuple[Group, ...]
    worst: tuple[Wrong, ...]
    assumption: str
    notes: tuple[str, ...]
    """What makes a number unreliable, or leaves it out."""

    def exceeds(self, limit: float) -> bool:
        """Whether the interval of some rate without chance errors lies above the limit."""
        return any(g.corrected is not None and g.corrected.low > limit for g in self.groups)

    def write(self, path: Path) -> Path:
        """As JSON; unknown numbers are null."""
        write_json(path, asdict(self))
        return path


def audit(
    cfg: EvalConfig,
    compared: Pairs,
    connect: Connect,
    tie: float = TIE,
    retry_errors: bool = False,
    console: Console | None = None,
) -> Audit:
    """Make the ratings that are missing, as `dpeer.eval.judge.rate` does, and audit the order with all of them.

    Margins of less than `tie` points of the scale count as ties. Raises DataError when no edge could be compared.
    """
    table = rate(cfg, connect, retry_errors, console, partial(audit_plan, compared=compared))
    return audited(cfg, compared, pd.read_parquet(table), tie)


def audited(cfg: EvalConfig, compared: Pairs, ratings: pd.DataFrame, tie: float = TIE) -> Audit:
    """The audit of edges by a table of ratings."""
    counts = ratings["status"].value_counts().to_dict()
    if not counts.get("ok"):
        raise DataError(
            f"none of the {len(ratings)} ratings of {cfg.name} is usable ({counts}); the column `error` of "
            f"{cfg.folder / 'ratings.parquet'} says why. Put that right and {AGAIN}."
        )
    expected = cfg.judging.score == "most_likely"
    edges = compared.edges
    by_judge, judges = margins(ratings, edges, ["judge"], expected)
    cast, raters, assumption = votes(by_judge, tie), None, SEVERAL
    if len(judges) == 1:
        raters = votes(margins(ratings, edges, ["judge", "repeat"], expected)[0], tie)
        assumption = REPEATS if raters.shape[1] > 1 else NONE
    parts = edges.groupby(["source", "dimension"], sort=False).indices
    groups = [
        _group(
            source, dimension, edges.iloc[at], cast[at], judges, cast[at] if raters is None else raters[at], cfg.seed
        )
        for (source, dimension), at in parts.items()
    ]
    if not any(g.upheld + g.violated + g.tied for g in groups):
        raise DataError(f"no edge of {cfg.name} has usable ratings of both ends; {AGAIN}.")
    return Audit(
        cfg.name,
        tie,
        tuple(groups),
        tuple(_worst(compared, by_judge, cast)),
        assumption,
        (*_without(ratings), *_notes(groups, assumption != NONE)),
    )


AGAIN = "run `dpeer data audit` again with --retry-errors"


def _without(ratings: pd.DataFrame) -> Iterator[str]:
    """Judges without a usable rating, in words."""
    for said in nothing_usable(ratings.assign(usable=ratings["status"] == "ok"), "judge"):
        yield f"Judge {said}. The audit does without it; to have it, {AGAIN}."


def _group(
    source: str, dimension: str, edges: pd.DataFrame, cast: Floats, judges: Sequence[str], raters: Floats, seed: int
) -> Group:
    sides = side(cast)
    clusters = pd.factorize(edges["prompt"])[0]
    taken = np.abs(np.nan_to_num(sides)) == 1
    found: Truth | None = truth(raters, clusters, seed)
    known = found is not None and len(found.errors) == len(judges)
    errors = [found.errors[j] if found and known and n >= FEWEST else None for j, n in enumerate(with_others(cast))]
    return Group(
        source,
        dimension,
        edges=len(edges),
        prompts=len(set(clusters)),
        upheld=int((sides == 1).sum()),
        tied=int((sides == 0).sum()),
        violated=int((sides == -1).sum()),
        unrated=int(np.isnan(sides).sum()),
        rate=share(sides[taken] < 0, clusters[taken]),
        corrected=found.rate if found else None,
        contradicted=contradicted(cast),
        judges=tuple(_cast(name, cast[:, j], errors[j]) for j, name in enumerate(judges)),
    )


def _cast(judge: str, cast: Floats, error: Interval | None) -> JudgeVotes:
    upheld, tied, violated = (int((cast == vote).sum()) for vote in (1, 0, -1))
    return JudgeVotes(judge, upheld, tied, violated, error)


def _notes(groups: Sequence[Group], several: bool) -> Iterator[str]:
    for g in groups:
        where = f"{g.dimension} of {g.source}" if len({other.source for other in groups}) > 1 else g.dimension
        for j in g.judges:
            if j.error and j.error.rate > HALF:
                yield (
                    f"Judge {j.judge} contradicts the others on {where} at least as often as it agrees with them: its "
                    "ratings there tell nothing of the order. Read some, and leave it out."
                )
        if g.corrected is None and several:
            yield (
                f"{where}: no rate without chance errors. Too few edges have two ratings that take a side, or they "
                "agree too little to tell errors from violations: rate more edges, or ask another judge."
            )


def _worst(compared: Pairs, by_judge: Floats, cast: Floats) -> Iterator[Wrong]:
    """The edges with the largest margins the wrong way, among those that the judges call violated."""
    rated = ~np.isnan(by_judge)
    mean = np.where(rated, by_judge, 0.0).sum(axis=1) / np.maximum(rated.sum(axis=1), 1)
    wrong = np.flatnonzero((side(cast) == -1) & (mean < 0))
    texts = compared.responses.set_index("response_id")
    for at in wrong[np.argsort(mean[wrong], kind="stable")][:WORST]:
        edge = compared.edges.iloc[at]
        yield Wrong(
            str(edge["source"]),
            str(edge["row"]),
            str(edge["dimension"]),
            float(-mean[at]),
            against=int((cast[at] == -1).sum()),
            judges=int(rated[at].sum()),
            prompt=excerpt(texts.loc[edge["better"], "prompt"], EXCERPT),
            better=excerpt(texts.loc[edge["better"], "response"], EXCERPT),
            worse=excerpt(texts.loc[edge["worse"], "response"], EXCERPT),
        )
