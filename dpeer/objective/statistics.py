"""Per-dimension statistics of one optimizer step: an additive fp64 table, summed over micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    if not len(dims):
        return torch.zeros(len(DIM_FIELDS), n_dims, dtype=torch.float64, device=dims.device)
    member = dims[:, None] == torch.arange(n_dims, device=dims.device)
    together = (records[:, None] == records) & (dims[:, None] == dims)
    loss, margin, hinge = (x.detach().double() for x in (losses, margins, hinges))
    ones = torch.ones_like(loss)
    first = together.to(torch.uint8).argmax(1)  # of the record's edges of the same dimension
    values = torch.stack([ones, loss, margin, hinge], 1)
    n, of_loss, of_margin, of_hinge = torch.zeros_like(values).index_add(0, first, values)[first].T  # summed over these
    table = {
        "edges": ones,
        "loss": loss,
        "loss_sq": loss.square(),
        "margin": margin,
        "margin_sq": margin.square(),
        "wins": margin > 0,
        "hinge": hinge,
        "records": first == torch.arange(len(dims), device=dims.device),
        "record_edges_sq": n,
        "record_loss_sq": loss * of_loss,
        "record_loss_edges": loss * n,
        "record_margin_sq": margin * of_margin,
        "record_margin_edges": margin * n,
        "record_hinge_sq": hinge * of_hinge,
        "record_hinge_edges": hinge * n,
    }
    return torch.stack([torch.where(member, table[field].double()[:, None], 0.0).sum(0) for field in DIM_FIELDS])


def summarise(table: Tensor) -> Summary:
    """Means and errors from the summed table [F, D]: always sum / count, never a mean of means."""
    sums = table.double().cpu()
    rows, means = (dict(zip(DIM_FIELDS, x, strict=True)) for x in (sums, sums / sums[DIM_FIELDS.index("edges")]))
    edges, records = rows["edges"], rows["records"]
    mean, squares, products = _of(means, "{}"), _of(rows, "record_{}_sq"), _of(rows, "record_{}_edges")
    # Sandwich estimator of a ratio: residuals S_c - mean n_c, small-sample factor C / (C - 1).
    residual = squares - 2 * mean * products + mean * mean * rows["record_edges_sq"]
    factor = (records / (records - 1)).where(records > 1, math.nan)
    loss_se, margin_se, hinge_se = torch.div((factor * residual.clamp(min=0)).sqrt(), edges)
    loss_sd, margin_sd = ((means[f"{x}_sq"] - means[x].square()).clamp(min=0).sqrt() for x in ("loss", "margin"))
    return Summary(
        edges=edges,
        records=records,
        loss=means["loss"],
        loss_sd=loss_sd,
        loss_se=loss_se,
        margin=means["margin"],
        margin_sd=margin_sd,
        margin_se=margin_se,
        accuracy=means["wins"],
        hinge=means["hinge"],
        hinge_se=hinge_se,
    )


def _of(rows: Mapping[str, Tensor], form: str) -> Tensor:
    """[3, D]: the rows of loss, margin and hinge."""
    return torch.stack([rows[form.format(field)] for field in ("loss", "margin", "hinge")])
