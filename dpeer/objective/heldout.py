"""Held-out edges and plain estimates from them: means per dimension, and how often golden responses rank first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, cast

import torch
from torch import Tensor

from dpeer.config import Objective
from dpeer.json_safe import json_safe
from dpeer.objective.preference import edge_loss
from dpeer.objective.rows import HeldoutRow, RateRow


@dataclass(frozen=True, eq=False)
class HeldoutEdges:
    """What held-out records leave of a model.

    margins [E] in reward units; dims [E] long; records [E] long: the cluster (prompt) of each edge
    masks [E] long: the mask of its record, an index into `mask_names`; needed for verdicts per mask only
    """

    margins: Tensor
    dims: Tensor
    records: Tensor
    masks: Tensor | None = None
    mask_names: tuple[str, ...] = ()

    def select(self, which: Tensor) -> HeldoutEdges:
        """The edges where `which` [E] bool holds."""
        return HeldoutEdges(self.margins[which], self.dims[which], self.records[which])

    def same_pairs(self, other: HeldoutEdges) -> bool:
        """Whether edge by edge the dimension and the prompt are the same."""
        return torch.equal(self.dims, other.dims) and torch.equal(self.records, other.records)


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


def heldout_means(edges: HeldoutEdges, objective: Objective, dimensions: Sequence[str]) -> dict[str, HeldoutRow]:
    """Per dimension, JSON-safe: edges, records, and mean edge loss, margin (reward units) and accuracy with their
    standard errors, clustered by record; null where there are no edges (errors: fewer than two records)."""
    margins, dims, records = edges.margins.detach().double().cpu(), edges.dims.long().cpu(), edges.records.long().cpu()
    measures = {"loss": edge_loss(margins, objective), "margin": margins, "accuracy": (margins > 0).double()}
    means: dict[str, dict[str, Any]] = {d: {} for d in dimensions}
    for measure, values in measures.items():
        sums, counts = cluster_sums(values, dims, records, len(dimensions))
        for d, s, n in zip(dimensions, sums.T, counts.T, strict=True):
            clusters, total = int((n > 0).sum()), float(n.sum())
            mean = float(s.sum()) / total if total else math.nan
            means[d] |= {"edges": int(total), "records": clusters, measure: mean}
            means[d][f"{measure}_se"] = standard_error((s - mean * n)[n > 0] / total) if total else math.nan
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


def cluster_sums(values: Tensor, dims: Tensor, records: Tensor, n_dims: int) -> tuple[Tensor, Tensor]:
    """Sum of values and edge count per cluster and dimension: ([C, D], [C, D]) fp64."""
    ids, cluster = torch.unique(records, return_inverse=True)
    cell = cluster * n_dims + dims
    size = len(ids) * n_dims
    sums = torch.bincount(cell, weights=values, minlength=size)
    counts = torch.bincount(cell, minlength=size).double()
    return sums.view(-1, n_dims), counts.view(-1, n_dims)


def standard_error(influence: Tensor) -> float:
    """Of a mean, from the influence of each cluster on it [C]; nan for fewer than two clusters."""
    clusters = len(influence)
    return math.sqrt(float(influence.square().sum()) * clusters / (clusters - 1)) if clusters > 1 else math.nan
