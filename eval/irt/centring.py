"""How far each block of `model.stan` is centred: what the rows say about one effect of it, against its spread."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpeer.eval.irt.cells import Cells
from dpeer.eval.irt.comparisons import SPREADS
from dpeer.eval.irt.scales import LEAST, Scales, helmert
from dpeer.eval.irt.stan_terms import Terms, term_precision
from dpeer.eval.irt.types import Floats, Ints

CENTRED = ("beta", "severity", "dev", "tau", "alpha")
ALIKE = 0.35
"""Spread of log discriminations up to which judges count as alike."""
TAU_INFORMATION = 0.15
"""Of one rating about a threshold."""


def precision_of(data: dict[str, Any], scales: Scales, cells: Cells, found: Terms) -> dict[str, Any]:
    """What the ratings say about one effect of each block, other effects given: inverse variance in logits.

    [D] for effects that have a spread per dimension, [E] for u.
    """
    m, j, d = data["M"], data["J"], data["D"]
    response, dimension = cells.response, cells.dimension
    items = np.subtract(data["item_last"], data["item_first"]) + 1
    of_cell = np.maximum(scales.information[response, dimension], LEAST)
    told = of_cell + scales.compared[response, dimension]
    noise = data["use_u"] * scales.u[dimension] ** 2
    cell, level_of = 1 / (1 / of_cell + noise), 1 / (1 / told + noise)
    total = float(of_cell.sum())
    of_terms = term_precision(found, scales, level_of, total)
    per_dimension, theta = (_per_dimension(found, scales, x, dimension, d) for x in (cell, level_of))
    return of_terms | {
        "u": told,
        "dimension": per_dimension,
        "theta": theta / m,
        "beta": per_dimension / items,
        "total": total,
        "severity": total / j,
        "dev": total / (j * d),
        "tau": TAU_INFORMATION * data["N"] / (j * d),
        "alpha": float(told.sum()) / j,
        "comparer": TAU_INFORMATION * data["comparisons"] / max(data["comparers"], 1),
    }


def _per_dimension(found: Terms, scales: Scales, of_cell: Floats, dimension: Ints, d: int) -> Floats:
    """[D] what is said of abilities, from what is said of the level of each cell [E]."""
    if not len(found.triple_item):
        return np.asarray(np.bincount(dimension, of_cell, minlength=d))
    # What is said of a model x item is said of its ability less what is particular to it.
    triple = np.maximum(np.bincount(found.of_cell, of_cell, minlength=len(found.triple_item)), LEAST)
    level = 1 / (1 / triple + scales.v[found.triple_dimension] ** 2)
    return np.asarray(np.bincount(found.triple_dimension, level, minlength=d))


def _centring(precision: Any, scale: Any) -> Any:
    """How far to centre a block: the square of the data's share in the posterior precision (measured: mixes best)."""
    return (precision / (precision + 1 / scale**2)) ** 2


def centrings(precision: dict[str, Any], scales: Scales, cell_dimension: Ints, found: Terms) -> dict[str, Any]:
    """How far each block is centred, see `model.stan`."""
    centre = {f"centre_{block}": _centring(precision[block], getattr(scales, block)) for block in CENTRED}
    # Judges who differ much in discrimination leave the common scale loose: centred effects must all follow it.
    centre_u = _centring(precision["u"], scales.u[cell_dimension]) * min(1.0, ALIKE / scales.alpha)
    for name in ("judge_model", "judge_item"):
        centre[f"centre_{name}"] = _centring(precision[name], getattr(scales, name))
    centre["centre_v"] = _centring(precision["v"], scales.v[found.triple_dimension])
    centre |= {f"centre_{name}": _centring(precision["comparer"], spread) for name, spread in SPREADS.items()}
    at = np.column_stack([helmert(ability) for ability in scales.ability.T])
    return centre | {"centre_u": centre_u, "centre_theta": precision["theta"], "centre_theta_at": at}
