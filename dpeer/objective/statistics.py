"""Per-dimension statistics of one optimizer step: an additive fp64 table, summed over micro-batches and ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DIM_FIELDS: tuple[str, ...] = (
    "edges",
    "loss",
    "loss_sq",
    "margin",
    "margin_sq",
    "wins",
    "hinge",
    "records",
    "record_edges_sq",
    "record_loss_sq",
    "record_loss_edges",
    "record_margin_sq",
    "record_margin_edges",
    "record_hinge_sq",
    "record_hinge_edges",
)
"""Rows of the table. All are sums over edges, except the `record*` rows, which are sums over records c: how many have
an edge of the dimension, n_c^2, and S_c^2 and S_c n_c for S_c the record's sum of loss, margin or hinge."""


@dataclass(frozen=True, eq=False)
class Summary:
    """Means per dimension: [D] fp64 on CPU, nan where a dimension has no edges.

    edges, records: counts (0, not nan)
    loss, margin, hinge: mean over edges; margin and hinge in reward units
    loss_sd, margin_sd: standard deviation over edges
    loss_se, margin_se, hinge_se: standard error of the mean, clustered by record; nan for fewer than two records
    accuracy: share of edges with a positive margin
    """

    edges: Tensor
    records: Tensor
    loss: Tensor
    loss_sd: Tensor
    loss_se: Tensor
    margin: Tensor
    margin_sd: Tensor
    margin_se: Tensor
    accuracy: Tensor
    hinge: Tensor
    hinge_se: Tensor


def edge_statistics(
    margins: Tensor, losses: Tensor, hinges: Tensor, dims: Tensor, records: Tensor, n_dims: int
) -> Tensor:
    """Table [F, D] fp64 of E edges, rows as in DIM_FIELDS; tables of different calls add up.

    `margins`, `losses`, `hinges` [E] float; `dims` [E] long; `records` [E] long: the cluster of each edge. A record
    never spans two calls. Memory is E^2: meant for one micro-batch. No gradient, no device synchronisation.
    """
    member = dims[:, None] == torch.arange(n_dims, device=dims.device)
    same = records[:, None] == records
    ones = member.double()
    loss, margin, hinge = (torch.where(member, x.detach().double()[:, None], 0.0) for x in (losses, margins, hinges))
    earlier = same.tril(-1).double() @ ones

    def cluster_sum(x: Tensor, y: Tensor) -> Tensor:
        return (x * (same.double() @ y)).sum(0)

    table = {
        "edges": ones.sum(0),
        "loss": loss.sum(0),
        "loss_sq": loss.square().sum(0),
        "margin": margin.sum(0),
        "margin_sq": margin.square().sum(0),
        "wins": (margin > 0).double().sum(0),
        "hinge": hinge.sum(0),
        "records": (member & (earlier == 0)).double().sum(0),
        "record_edges_sq": cluster_sum(ones, ones),
        "record_loss_sq": cluster_sum(loss, loss),
        "record_loss_edges": cluster_sum(loss, ones),
        "record_margin_sq": cluster_sum(margin, margin),
        "record_margin_edges": cluster_sum(margin, ones),
        "record_hinge_sq": cluster_sum(hinge, hinge),
        "record_hinge_edges": cluster_sum(hinge, ones),
    }
    return torch.stack([table[field] for field in DIM_FIELDS])


def summarise(table: Tensor) -> Summary:
    """Means and errors from the summed table [F, D]: always sum / count, never a mean of means."""
    rows = dict(zip(DIM_FIELDS, table.double().cpu(), strict=True))
    edges, records = rows["edges"], rows["records"]

    def mean(field: str) -> Tensor:
        return torch.div(rows[field], edges)

    def deviation(field: str) -> Tensor:
        return (mean(f"{field}_sq") - mean(field).square()).clamp(min=0).sqrt()

    def error(field: str) -> Tensor:
        """Sandwich estimator of a ratio: residuals S_c - mean n_c, small-sample factor C / (C - 1)."""
        m = mean(field)
        residual = rows[f"record_{field}_sq"] - 2 * m * rows[f"record_{field}_edges"] + m * m * rows["record_edges_sq"]
        factor = (records / (records - 1)).where(records > 1, math.nan)
        return torch.div((factor * residual.clamp(min=0)).sqrt(), edges)

    return Summary(
        edges=edges,
        records=records,
        loss=mean("loss"),
        loss_sd=deviation("loss"),
        loss_se=error("loss"),
        margin=mean("margin"),
        margin_sd=deviation("margin"),
        margin_se=error("margin"),
        accuracy=mean("wins"),
        hinge=mean("hinge"),
        hinge_se=error("hinge"),
    )
