"""The order audit: judges rate both ends of edges; what they say of the order becomes rates, and the worst a list."""

from __future__ import annotations

import math
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
from dpeer.eval.audit.rates import Floats, Interval, Truth, contradicted, majority, share, truth, votes
from dpeer.eval.config import EvalConfig
from dpeer.eval.judge import judge
from dpeer.eval.run import Connect
from dpeer.files import write_json

WORST = 20
EXCERPT = 160
TIE = 0.25

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
    """One judge's votes on the edges of a group; `error` is its estimated chance to take the wrong side."""

    judge: str
    upheld: int
    tied: int
    violated: int
    error: float | None


@dataclass(frozen=True, slots=True)
class Group:
    """The edges of one dimension in one source, by the majority of the judges.

    `unrated`: no judge has usable ratings of both ends. `rate`: violated among violated and upheld. `corrected`:
    without the judges' chance errors; None where they cannot be told. `contradicted`: share of edges on which judges
    take opposite sides, among those on which two take any.
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
    """An edge whose worse response is rated higher, by `margin` points of the scale on average over the judges."""

    source: str
    row: str
    dimension: str
    margin: float
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

    def exceeds(self, limit: float) -> bool:
        """Whether the interval of some rate, without chance errors where that is known, lies above the limit."""
        return any((g.corrected or g.rate).low > limit for g in self.groups)

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
    """Make the ratings that are missing, as `dpeer.eval.judge.judge` does, and audit the order with all of them.

    Margins of less than `tie` points of the scale count as ties. Raises DataError when no edge could be compared.
    """
    table = judge(cfg, connect, retry_errors, console, partial(audit_plan, compared=compared))
    return audited(cfg, compared, pd.read_parquet(table), tie)


def audited(cfg: EvalConfig, compared: Pairs, ratings: pd.DataFrame, tie: float = TIE) -> Audit:
    """The audit of edges by a table of ratings."""
    counts = ratings["status"].value_counts().to_dict()
    if not counts.get("ok"):
        raise DataError(
            f"none of the {len(ratings)} ratings of {cfg.name} is usable ({counts}); the column `error` of "
            f"{cfg.folder / 'ratings.parquet'} says why. Put that right and run again with --retry-errors."
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
        raise DataError(f"no edge of {cfg.name} has usable ratings of both ends; run again with --retry-errors.")
    return Audit(cfg.name, tie, tuple(groups), tuple(_worst(compared, by_judge, cast)), assumption)


def _group(
    source: str, dimension: str, edges: pd.DataFrame, cast: Floats, judges: Sequence[str], raters: Floats, seed: int
) -> Group:
    side = majority(cast)
    clusters = pd.factorize(edges["prompt"])[0]
    taken = np.abs(np.nan_to_num(side)) == 1
    found: Truth | None = truth(raters, clusters, seed)
    errors = found.errors if found and len(found.errors) == len(judges) else (None,) * len(judges)
    return Group(
        source,
        dimension,
        edges=len(edges),
        prompts=len(set(clusters)),
        upheld=int((side == 1).sum()),
        tied=int((side == 0).sum()),
        violated=int((side == -1).sum()),
        unrated=int(np.isnan(side).sum()),
        rate=share(side[taken] < 0, clusters[taken]),
        corrected=found.rate if found else None,
        contradicted=contradicted(cast),
        judges=tuple(_cast(name, cast[:, j], errors[j]) for j, name in enumerate(judges)),
    )


def _cast(judge: str, cast: Floats, error: float | None) -> JudgeVotes:
    upheld, tied, violated = (int((cast == vote).sum()) for vote in (1, 0, -1))
    return JudgeVotes(judge, upheld, tied, violated, error)


def _worst(compared: Pairs, by_judge: Floats, cast: Floats) -> Iterator[Wrong]:
    """The edges with the largest margins the wrong way, among those that the majority calls violated."""
    rated = ~np.isnan(by_judge)
    mean = np.where(rated, by_judge, 0.0).sum(axis=1) / np.maximum(rated.sum(axis=1), 1)
    mean[majority(cast) != -1] = math.inf
    texts = compared.responses.set_index("response_id")
    for at in np.argsort(mean, kind="stable")[:WORST]:
        if math.isinf(mean[at]):
            return
        edge = compared.edges.iloc[at]
        yield Wrong(
            str(edge["source"]),
            str(edge["row"]),
            str(edge["dimension"]),
            float(mean[at]),
            against=int((cast[at] == -1).sum()),
            judges=int(rated[at].sum()),
            prompt=excerpt(texts.loc[edge["better"], "prompt"], EXCERPT),
            better=excerpt(texts.loc[edge["better"], "response"], EXCERPT),
            worse=excerpt(texts.loc[edge["worse"], "response"], EXCERPT),
        )
