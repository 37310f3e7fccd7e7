"""What held-out records prove: a verdict per constraint with simultaneous confidence, and selection accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal, cast

import torch
from scipy.special import stdtrit
from torch import Tensor

from dpeer.config import Objective
from dpeer.errors import DpeerError
from dpeer.json_safe import json_safe
from dpeer.objective.constraints import ConstraintSet, Past
from dpeer.objective.preference import edge_loss
from dpeer.objective.rows import HeldoutRow, RateRow, VerdictRow

OUT_OF_REACH = 10**9  # records
MIN_RECORDS = 20
"""Fewest records for a verdict: below, the coverage of any interval for a skewed mean is a matter of luck."""


@dataclass(frozen=True, eq=False)
class HeldoutEdges:
    """margins [E] in reward units, dims [E] long, records [E] long: the cluster (prompt) of each edge."""

    margins: Tensor
    dims: Tensor
    records: Tensor


@dataclass(frozen=True)
class Verdict:
    """What the held-out records say about one constraint.

    lower, upper: simultaneous confidence interval of the estimate; nan if it cannot be computed
    records, edges: how many carry the constraint's dimensions
    extra_records: only where undecided: further records of these dimensions after which the interval would exclude the
        tolerance if estimate and spread stayed as they are; None if that cannot be said or is out of reach
    """

    name: str
    dimensions: tuple[str, ...]
    estimate: float
    tolerance: float
    lower: float
    upper: float
    se: float
    records: int
    edges: int
    verdict: Literal["satisfied", "violated", "undecided"]
    extra_records: int | None

    def to_dict(self) -> VerdictRow:
        """JSON-safe."""
        return cast(VerdictRow, json_safe(asdict(self)))


@dataclass(frozen=True)
class Rate:
    """A share of n trials with its Wilson interval; nan if n = 0."""

    rate: float
    lower: float
    upper: float
    n: int

    def to_dict(self) -> RateRow:
        """JSON-safe."""
        return cast(RateRow, json_safe(asdict(self)))


def certify(
    edges: HeldoutEdges,
    constraints: ConstraintSet,
    objective: Objective,
    confidence: float = 0.95,
    state: Past | None = None,
) -> list[Verdict]:
    """One verdict per constraint, on records that training has not seen.

    With probability `confidence` no verdict is false: all intervals hold at once (Bonferroni over the m bounded
    constraints, both sides). Each interval is a t interval for a mean over C clusters (records), se being the ratio
    estimator's sandwich with the dependence between the two dimensions of a `balance` pair included, corrected for
    skewness (Hall 1992): edge losses are skewed, and a plain t interval then finds too many constraints satisfied.
    `satisfied`: upper <= tolerance. `violated`: lower > tolerance. `undecided`: neither, or fewer than MIN_RECORDS
    clusters, or no spread between them (an interval of width 0 proves nothing). Tolerance inf: satisfied by definition.

    The guarantee is asymptotic in the number of clusters, and for a population like the held-out records; rare, huge
    losses that none of a few records shows cannot be ruled out. What is certified: mean loss (`threshold`), difference
    of mean losses (`balance`), mean hinge (`margin`); for `protect` that the held-out loss is at most eps above the
    lowest smoothed TRAINING loss, so it needs the final `state` (a dimension never seen in training: undecided).
    """
    form = constraints.form
    if not form.certifiable:
        raise DpeerError(f"form {form.name!r} has no certificate: it does not say what held-out records would prove")
    margins, dims = edges.margins.detach().double().cpu(), edges.dims.long().cpu()
    losses = edge_loss(margins, objective)
    values = constraints.edge_values(margins, losses, dims) if form.own_values else losses
    sums, counts = _cluster_sums(values, dims, edges.records.long().cpu(), len(constraints.dimensions))
    zeros = torch.zeros(len(constraints.dimensions), dtype=torch.float64)
    offsets = zeros + form.certified_offsets(state.form if state else None, len(zeros))
    tail = (1 - confidence) / (2 * max(1, int(constraints.finite.sum())))
    return [_verdict(c, constraints, sums, counts, offsets, tail) for c in range(len(constraints.names))]


def heldout_means(edges: HeldoutEdges, objective: Objective, dimensions: Sequence[str]) -> dict[str, HeldoutRow]:
    """Per dimension, JSON-safe: edges, records, and mean edge loss, margin (reward units) and accuracy with their
    standard errors, clustered by record; null where there are no edges (errors: fewer than two records)."""
    margins, dims, records = edges.margins.detach().double().cpu(), edges.dims.long().cpu(), edges.records.long().cpu()
    measures = {"loss": edge_loss(margins, objective), "margin": margins, "accuracy": (margins > 0).double()}
    means: dict[str, dict[str, Any]] = {d: {} for d in dimensions}
    for measure, values in measures.items():
        sums, counts = _cluster_sums(values, dims, records, len(dimensions))
        for d, s, n in zip(dimensions, sums.T, counts.T, strict=True):
            clusters, total = int((n > 0).sum()), float(n.sum())
            mean = float(s.sum()) / total if total else math.nan
            deviation, _ = _spread((s - mean * n)[n > 0] / total) if total else (math.nan, 0.0)
            means[d] |= {"edges": int(total), "records": clusters, measure: mean}
            means[d][f"{measure}_se"] = deviation / math.sqrt(clusters) if clusters else math.nan
    return cast(dict[str, HeldoutRow], json_safe(means))


def selection_accuracy(
    logps: Sequence[Sequence[float]],
    golden: Sequence[int],
    masks: Sequence[tuple[str, ...]],
    confidence: float = 0.95,
) -> tuple[Rate, dict[str, Rate]]:
    """How often the golden response has strictly the highest log-probability: overall, and per mask ("A+E").

    Per record: `logps`, the length-normalised log-probability of each response (nats per token); `golden`, the index of
    the golden one; `masks`, its active dimensions. Records count as independent trials.
    """
    hits = [all(lp[g] > x for i, x in enumerate(lp) if i != g) for lp, g in zip(logps, golden, strict=True)]
    by_mask: dict[str, list[bool]] = {}
    for mask, hit in zip(masks, hits, strict=True):
        by_mask.setdefault("+".join(mask), []).append(hit)
    return wilson(hits, confidence), {mask: wilson(by_mask[mask], confidence) for mask in sorted(by_mask)}


def wilson(hits: Sequence[bool], confidence: float = 0.95) -> Rate:
    """Share of hits with its Wilson score interval."""
    n = len(hits)
    if n == 0:
        return Rate(math.nan, math.nan, math.nan, 0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = sum(hits) / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Rate(p, max(0.0, centre - half), min(1.0, centre + half), n)


def _cluster_sums(values: Tensor, dims: Tensor, records: Tensor, n_dims: int) -> tuple[Tensor, Tensor]:
    """Sum of values and edge count per cluster and dimension: ([C, D], [C, D]) fp64."""
    ids, cluster = torch.unique(records, return_inverse=True)
    cell = cluster * n_dims + dims
    size = len(ids) * n_dims
    sums = torch.bincount(cell, weights=values, minlength=size)
    counts = torch.bincount(cell, minlength=size).double()
    return sums.view(-1, n_dims), counts.view(-1, n_dims)


def _verdict(
    index: int, constraints: ConstraintSet, sums: Tensor, counts: Tensor, offsets: Tensor, tail: float
) -> Verdict:
    members = list(constraints.members[index])
    tolerance = float(constraints.bounds[index])
    used = counts[:, members].sum(1) > 0
    n, s = counts[used][:, members], sums[used][:, members]
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)[: len(members)]
    means = s.sum(0) / n.sum(0)
    estimate = float((signs * (means - offsets[members])).sum())
    influence = ((s - means * n) / n.sum(0) * signs).sum(1)
    sample = _Sample(estimate, *_spread(influence), clusters=len(influence), tail=tail)
    lower, upper = sample.interval(sample.clusters)
    proves = sample.deviation > 0 and sample.clusters >= MIN_RECORDS
    verdict: Literal["satisfied", "violated", "undecided"] = "undecided"
    if tolerance == math.inf or (proves and upper <= tolerance):
        verdict = "satisfied"
    elif proves and lower > tolerance:
        verdict = "violated"
    return Verdict(
        name=constraints.names[index],
        dimensions=tuple(constraints.member_names(index)),
        estimate=estimate,
        tolerance=tolerance,
        lower=lower,
        upper=upper,
        se=sample.deviation / math.sqrt(sample.clusters) if sample.clusters else math.nan,
        records=sample.clusters,
        edges=int(n.sum()),
        verdict=verdict,
        extra_records=sample.extra_records(tolerance) if verdict == "undecided" else None,
    )


@dataclass(frozen=True)
class _Sample:
    """A mean over independent clusters: its estimate, and the standard deviation and skewness of single clusters."""

    estimate: float
    deviation: float
    skewness: float
    clusters: int
    tail: float

    def interval(self, clusters: int) -> tuple[float, float]:
        """Skewness-corrected t interval at that many clusters of this kind; nan below two."""
        if clusters < 2 or math.isnan(self.deviation):
            return math.nan, math.nan
        t = float(stdtrit(clusters - 1, 1 - self.tail)) / math.sqrt(clusters)
        below, above = (self.deviation * _hall(y, self.skewness, clusters) for y in (t, -t))
        return self.estimate - below, self.estimate - above

    def extra_records(self, tolerance: float) -> int | None:
        """Further clusters until the interval excludes the tolerance, if estimate and spread stay as they are."""
        if not (self.deviation > 0 and abs(self.estimate - tolerance) > 0):
            return None

        def enough(total: int) -> bool:
            lower, upper = self.interval(total)
            return upper <= tolerance or lower > tolerance

        low, high = self.clusters, max(self.clusters + 1, MIN_RECORDS)
        while not enough(high):
            if high > OUT_OF_REACH:
                return None
            low, high = high, 2 * high
        while high - low > 1 and high > MIN_RECORDS:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high - self.clusters


def _spread(influence: Tensor) -> tuple[float, float]:
    """Standard deviation and skewness of single clusters from their influences on the mean [C], which sum to 0."""
    clusters = len(influence)
    variance = float(influence.square().sum())
    if clusters < 2:
        return math.nan, 0.0
    skewness = float(influence.pow(3).mean()) / (variance / clusters) ** 1.5 if variance > 0 else 0.0
    return clusters * math.sqrt(variance / (clusters - 1)), skewness


def _hall(y: float, skewness: float, clusters: int) -> float:
    """Inverse of Hall's (1992) transformation g(t) = t + s t^2 / 3 + s^2 t^3 / 27 + s / (6 C), for skewness s.

    g(t) of the studentised mean is free of first-order skewness, so a t quantile fits it where t itself is far off.
    """
    u = y - skewness / (6 * clusters)
    c = math.cbrt(1 + skewness * u)
    return 3 * u / (c * c + c + 1)
