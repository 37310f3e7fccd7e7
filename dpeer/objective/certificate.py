"""What held-out records prove: a verdict per constraint that holds for any distribution, and what stands beside it.

Edge losses are unbounded, and no number of records bounds the mean of an unbounded quantity. So every edge counts up
to a stated bound, and the mean of that is certified.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, cast

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from dpeer.config import Objective
from dpeer.errors import DpeerError
from dpeer.json_safe import json_safe
from dpeer.objective import bounds
from dpeer.objective.bounds import Array, Sample, log_wealth, repeats_needed, upper_bound, wealth_needed
from dpeer.objective.constraints import ConstraintSet, Past, certified
from dpeer.objective.heldout import HeldoutEdges, cluster_sums, standard_error
from dpeer.objective.preference import edge_loss
from dpeer.objective.rows import VerdictRow, WinRow

OUT_OF_REACH = 10**9  # records
LEVEL = 0.1
"""Where a mean is expected, as a share of the bound, if no tolerance says so: it tunes stakes only."""


@dataclass(frozen=True)
class Mean:
    """The mean itself, every edge counted in full, with a t interval: good for large samples without rare, huge losses.

    lower, upper: for all constraints at once; nan where they cannot be computed
    effective_records: (sum n)^2 / sum n^2 of the edges n per cluster; the degrees of freedom are one less
    skewness: of single clusters
    lowest_margin, highest_value: of a single edge; clipped: share of the edges above the bound
    """

    estimate: float
    se: float
    lower: float
    upper: float
    effective_records: float
    skewness: float
    lowest_margin: float
    highest_value: float
    clipped: float


@dataclass(frozen=True)
class Verdict:
    """What the held-out records say about one constraint, every edge counted up to the bound.

    lower, upper: tolerances from lower to upper would be undecided, the other constraints being as they are. Each by
        itself bounds the mean with the certificate's confidence; nan if it cannot be computed
    records, edges: how many carry the constraint's dimensions
    extra_records: only where undecided: further records of these dimensions after which there would be a verdict if
        they were like these; None if that cannot be said or is out of reach
    mean: beside it, the mean of edges counted in full
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
    mean: Mean

    def to_dict(self) -> VerdictRow:
        """JSON-safe."""
        return cast(VerdictRow, json_safe(asdict(self)))


@dataclass(frozen=True)
class Win:
    """Share of a dimension's edges with a margin above 0, and its lower bound for all dimensions at once."""

    rate: float
    lower: float
    edges: int
    records: int

    def to_dict(self) -> WinRow:
        """JSON-safe."""
        return cast(WinRow, json_safe(asdict(self)))


def certify(
    edges: HeldoutEdges,
    constraints: ConstraintSet,
    objective: Objective,
    confidence: float | None = None,
    state: Past | None = None,
    choices: int = 1,
) -> list[Verdict]:
    """One verdict per constraint, on records that training has not seen.

    With probability `confidence` (default: the config's) no verdict `satisfied` is false, and with the same probability
    no `violated` is: for any distribution and any number of prompts, as long as prompts are independent (see `bounds`).
    `choices`: the model was chosen, by whatever rule, among that many whose certificates were looked at.

    What is certified is the mean, over the edges of prompts like these (their masks and numbers of edges included), of
    min(value, bound): the edge loss (`threshold`), its difference between two dimensions (`balance`), the hinge
    (`margin`); for `protect` that the loss is at most eps above the lowest smoothed TRAINING loss, which needs the
    final `state` (a dimension never seen in training: undecided). The tolerance is `objective.certificate.tolerance`,
    or the trained one. Tolerance inf: satisfied by definition. One that nothing up to the bound exceeds: undecided.
    """
    claims = _claims(edges, certified(constraints, objective), objective, state)
    return _decide(claims, _alpha(objective, confidence, choices))


def certify_masks(
    edges: HeldoutEdges,
    constraints: ConstraintSet,
    objective: Objective,
    confidence: float | None = None,
    state: Past | None = None,
    choices: int = 1,
) -> dict[str, list[Verdict]]:
    """The verdicts of `certify` for the records of each mask by themselves, as a family of their own.

    A mask gets the constraints between its dimensions that have a tolerance. Needs `edges.masks`.
    """
    if edges.masks is None:
        return {}
    constraints = certified(constraints, objective)
    claims: list[_Claim] = []
    masks: list[str] = []
    for mask in sorted(set(edges.masks.tolist())):
        part = edges.select(edges.masks == mask)
        active = set(part.dims.tolist())
        which = [c for c, m in enumerate(constraints.members) if active >= {*m} and constraints.finite[c]]
        claims += _claims(part, constraints, objective, state, which)
        masks += len(which) * [edges.mask_names[mask]]
    found: dict[str, list[Verdict]] = {}
    for name, verdict in zip(masks, _decide(claims, _alpha(objective, confidence, choices)), strict=True):
        found.setdefault(name, []).append(verdict)
    return found


def win_rates(
    edges: HeldoutEdges, dimensions: Sequence[str], confidence: float = 0.95, choices: int = 1
) -> dict[str, Win]:
    """Per dimension how often the better response of an edge has gained more than the worse one, over clusters."""
    dims, alpha = edges.dims.long().cpu(), (1 - confidence) / (max(1, len(dimensions)) * choices)
    lost = (edges.margins.detach().cpu() <= 0).double()
    sums, counts = cluster_sums(lost, dims, edges.records.long().cpu(), len(dimensions))
    wins = {}
    for d, name in enumerate(dimensions):
        used = counts[:, d] > 0
        total = float(counts[:, d].sum())
        if not total:
            wins[name] = Win(math.nan, math.nan, 0, 0)
            continue
        sample = _sample(sums[used][:, [d]], counts[used][:, [d]], 1.0, math.inf, alpha)
        upper = upper_bound(sample, -math.log(alpha))
        wins[name] = Win(1 - float(sums[:, d].sum()) / total, 1 - upper, int(total), int(used.sum()))
    return wins


def provable(records: int, objective: Objective) -> float:
    """Smallest mean that so many records with one edge each could prove, if no edge had any loss at all. More where
    other constraints fail."""
    return bounds.provable(records, objective.certificate.bound, _alpha(objective, None, 1))


def certified_bound(constraints: ConstraintSet, objective: Objective) -> float:
    """Up to what an edge counts: what the form says of its own values, or `objective.certificate.bound`."""
    own = constraints.form.edge_bound(objective)
    return objective.certificate.bound if own is None else own


def _alpha(objective: Objective, confidence: float | None, choices: int) -> float:
    return (1 - (objective.certificate.confidence if confidence is None else confidence)) / choices


@dataclass(frozen=True, eq=False)
class _Claim:
    """One constraint on one set of edges.

    full, clipped, counts [C, members]: per cluster with edges of its dimensions, sums of the values, of the values up
        to the bound, and their number
    margins, values [E]: of those edges
    """

    name: str
    dimensions: tuple[str, ...]
    tolerance: float
    offset: float
    bound: float
    full: Tensor
    clipped: Tensor
    counts: Tensor
    margins: Tensor
    values: Tensor

    @property
    def theta(self) -> float:
        """The tolerance of the mean itself."""
        return self.tolerance + self.offset

    @property
    def known(self) -> bool:
        """There are edges of each dimension, and what they are compared with."""
        return bool((self.counts.sum(0) > 0).all()) and not math.isnan(self.offset)

    @property
    def open(self) -> bool:
        """The records can prove something: the tolerance excludes something that the bound allows."""
        return self.known and self.theta < self.bound

    def sides(self, alpha: float) -> tuple[tuple[Sample, float], tuple[Sample, float]]:
        """(sample, theta) whose refutation of "the mean is at least theta" means satisfied, and violated."""
        sample = _sample(self.clipped, self.counts, self.bound, self.theta, alpha)
        return (sample, self.theta), (sample.mirrored(), -self.theta)


def _claims(
    edges: HeldoutEdges,
    constraints: ConstraintSet,
    objective: Objective,
    state: Past | None,
    which: Sequence[int] | None = None,
) -> list[_Claim]:
    form, width = constraints.form, len(constraints.dimensions)
    if not form.certifiable:
        raise DpeerError(f"form {form.name!r} has no certificate: it does not say what held-out records would prove")
    margins, dims, records = edges.margins.detach().double().cpu(), edges.dims.long().cpu(), edges.records.long().cpu()
    losses, bound = edge_loss(margins, objective), certified_bound(constraints, objective)
    values = constraints.edge_values(margins, losses, dims) if form.own_values else losses
    full, counts = cluster_sums(values, dims, records, width)
    clipped, _ = cluster_sums(values.clamp(0, bound), dims, records, width)
    offsets = torch.zeros(width, dtype=torch.float64) + form.certified_offsets(state.form if state else None, width)

    def claim(index: int) -> _Claim:
        members = list(constraints.members[index])
        here, used = torch.isin(dims, torch.tensor(members)), counts[:, members].sum(1) > 0
        return _Claim(
            constraints.names[index],
            tuple(constraints.member_names(index)),
            float(constraints.bounds[index]),
            float((_signs(len(members)) * offsets[members]).sum()),
            bound,
            *(x[used][:, members] for x in (full, clipped, counts)),
            *(x[here] for x in (margins, values)),
        )

    return [claim(c) for c in (range(len(constraints.names)) if which is None else which)]


def _decide(claims: Sequence[_Claim], alpha: float) -> list[Verdict]:
    """Verdicts on claims that are made together; `satisfied` and `violated` are families of their own."""
    tests = [claim.sides(alpha) for claim in claims if claim.open]
    count = max(1, len(tests))
    wealth = np.array([[float(log_wealth(*side)) for side in sides] for sides in tests]).reshape(-1, 2).T
    opened = iter(zip(wealth.T, wealth_needed(wealth, alpha).T, strict=True))
    closed = np.full(2, -math.inf), np.full(2, math.log(count / alpha))
    return [_verdict(c, alpha, count, *(next(opened) if c.open else closed)) for c in claims]


def _verdict(claim: _Claim, alpha: float, tests: int, wealth: Array, needed: Array) -> Verdict:
    """`wealth`, `needed` [2]: logarithms, for satisfied and violated."""
    verdict: Literal["satisfied", "violated", "undecided"] = "undecided"
    if claim.tolerance == math.inf or wealth[0] >= needed[0]:
        verdict = "satisfied"
    elif wealth[1] >= needed[1]:
        verdict = "violated"
    estimate, influence = _influence(claim.clipped, claim.counts)
    lower = upper = math.nan
    extra = None
    if claim.known:
        sides = claim.sides(alpha)
        upper, negative = (upper_bound(side, float(n)) for (side, _), n in zip(sides, needed, strict=True))
        lower, nearer = -negative, int(estimate > claim.theta)
        if claim.open and verdict == "undecided":
            extra = _extra_records(*sides[nearer], float(needed[nearer]))
    return Verdict(
        name=claim.name,
        dimensions=claim.dimensions,
        estimate=estimate - claim.offset,
        tolerance=claim.tolerance,
        lower=lower - claim.offset,
        upper=upper - claim.offset,
        se=standard_error(influence),
        records=len(influence),
        edges=int(claim.counts.sum()),
        verdict=verdict,
        extra_records=extra,
        mean=_mean(claim, alpha / tests),
    )


def _signs(members: int) -> Tensor:
    return torch.tensor([1.0, -1.0], dtype=torch.float64)[:members]


def _sample(sums: Tensor, counts: Tensor, bound: float, theta: float, alpha: float) -> Sample:
    """What one constraint bounds, from the sums of values in [0, bound] and counts [C, members] of its dimensions.

    A cluster's weight is its share of the edges; of two dimensions, the mean of the shares.
    """
    shares, signs = counts / counts.sum(0), _signs(counts.shape[1])
    weights = shares.mean(1)
    reach = bound * (shares / weights[:, None]).max(0).values
    level = theta if len(signs) == 1 and math.isfinite(theta) else LEVEL * bound
    level = min(max(level, bound / 50), bound * 49 / 50)
    variance = level * min(1.0, bound - level)  # of single edges
    return Sample(
        values=(signs * sums / counts.sum(0)).sum(1).numpy(),
        weights=weights.numpy(),
        low=-float(reach[1]) if len(signs) > 1 else 0.0,
        high=float(reach[0]),
        spread=math.sqrt(variance * float(shares.square().sum())),
        goal=-math.log(alpha),
    )


def _extra_records(side: Sample, theta: float, needed: float) -> int | None:
    """Further clusters, like these, until there is a verdict."""
    records = len(side.weights)
    repeats = repeats_needed(side, theta, needed, OUT_OF_REACH / records)
    return None if repeats is None else max(1, math.ceil((repeats - 1) * records))


def _influence(sums: Tensor, counts: Tensor) -> tuple[float, Tensor]:
    """Ratio of totals, of two dimensions the difference, and the influence of each cluster on it [C], with sum 0."""
    means, signs = sums.sum(0) / counts.sum(0), _signs(counts.shape[1])
    return float((signs * means).sum()), ((sums - means * counts) / counts.sum(0) * signs).sum(1)


def _mean(claim: _Claim, alpha: float) -> Mean:
    estimate, influence = _influence(claim.full, claim.counts)
    estimate -= claim.offset
    se, variance = standard_error(influence), float(influence.square().mean()) if len(influence) else 0.0
    weights = (claim.counts / claim.counts.sum(0)).mean(1)
    effective = 1 / float(weights.square().sum()) if len(weights) else 0.0
    half = se * float(stdtrit(effective - 1, 1 - alpha / 2)) if effective > 1 else math.nan
    some = len(claim.values) > 0
    return Mean(
        estimate=estimate,
        se=se,
        lower=estimate - half,
        upper=estimate + half,
        effective_records=effective,
        skewness=float(influence.pow(3).mean()) / variance**1.5 if variance > 0 else 0.0,
        lowest_margin=float(claim.margins.min()) if some else math.nan,
        highest_value=float(claim.values.max()) if some else math.nan,
        clipped=float((claim.values > claim.bound).double().mean()) if some else math.nan,
    )
