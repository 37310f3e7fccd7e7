"""Tables and facts of a fit as the page reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dpeer.json_safe import json_safe


def _with_bounds(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


COLUMNS: dict[str, tuple[str, ...]] = {
    "ability": ("model", "dimension", *_with_bounds("ability", "fair", "contrast"), "p_better", "raw_mean", "n"),
    "contrasts": ("model", "dimension", *_with_bounds("contrast"), "family_low", "family_high", "p_better", "verdict"),
    "without_judge": (
        *("judge", "model", "dimension", *_with_bounds("contrast"), "family_low", "family_high", "verdict", "changes"),
        *("khat", "how", "why"),
    ),
    "sensitivity": ("quantity", "prior", "likelihood", "prior_counts", "likelihood_counts", "diagnosis"),
    "rank_sets": ("model", "dimension", "best_rank", "worst_rank"),
    "ranks": ("model", "dimension", "rank", "probability"),
    "reliability": ("dimension", "separation", "reliability", "sd"),
    "judges": (
        *("judge", *_with_bounds("severity", "alpha")),
        *("infit", "infit_p", "outfit", "outfit_p", "n", "mean_score", "note"),
        *("comparisons", "tie_share", *_with_bounds("position")),
    ),
    "severity": ("judge", "dimension", *_with_bounds("severity")),
    "criteria": ("dimension", "criterion", *_with_bounds("difficulty"), "n"),
    "items": ("item", "dimension", *_with_bounds("difficulty"), "n", "infit", "outfit"),
    "thresholds": ("judge", "dimension", "step", *_with_bounds("threshold"), "disordered"),
    "models_fit": ("model", "dimension", "infit", "infit_p", "outfit", "outfit_p"),
    "misfit": ("judge", "model", "dimension", "observed", *_with_bounds("expected"), "p", "z", "notable"),
    "ppc": ("judge", "dimension", "score", "observed", *_with_bounds("expected"), "p"),
    "biases": ("kind", "judge", "model", "size", "z", "finding", "advice"),
    "judge_model": ("judge", "model", *_with_bounds("effect")),
    "leniency": ("dimension", "people", "ratings", "responses", "shared", *_with_bounds("leniency"), "scaled"),
    "favours": ("dimension", "model", "ratings", *_with_bounds("favour", "ability_judges")),
    "human_ratings": ("dimension", "ratings", "half_width", "halving", "least"),
    "groups": ("dimension", "model", "group", *_with_bounds("effect")),
    "effects": ("term", "dimension", *_with_bounds("estimate"), "note"),
    "scales": ("parameter", "dimension", *_with_bounds("estimate")),
    "correlation": ("dimension", "other", *_with_bounds("correlation")),
    "reversals": (
        "dimension",
        "model",
        "other",
        "raw_difference",
        "fair_difference",
        *_with_bounds("contrast"),
        "p",
        "why",
    ),
    "statuses": ("judge", "status", "count"),
    "diagnostics": ("parameter", "rhat", "ess_bulk", "ess_tail"),
    "drift": ("kind", "name", "dimension", "before", "now", *_with_bounds("difference"), "drifted"),
    "alpha": ("dimension", "who", *_with_bounds("alpha"), "units"),
    "kappa": ("dimension", "judge", "other", "people", *_with_bounds("kappa"), "exact", "units"),
    "confusion": ("dimension", "judge", "score", "other_score", "n"),
    "cards": (
        *("judge", "person", "n", *_with_bounds("severity", "alpha"), "infit", "kappa_people", "kappa_models"),
        *(*_with_bounds("own_family", "own_model", "position", "length"), "moved", "tokens", "price", "currency"),
        *("comparisons", "tie_share", *_with_bounds("shown_first")),
    ),
    "comparisons": (
        *("dimension", "model", "other", "n", "better", "ties", "worse", "observed"),
        *_with_bounds("expected"),
    ),
    "connectivity": ("judge", "model", "dimension", "n"),
}
"""What the page reads of each table; a table may carry more, and a column that is absent counts as unknown."""


def frames(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The known tables that have rows, each with all of its columns and a fresh index."""
    known = {}
    for name, expected in COLUMNS.items():
        frame = tables.get(name)
        if frame is not None and len(frame):
            more = [column for column in frame.columns if column not in expected]
            known[name] = frame.reindex(columns=[*expected, *more]).reset_index(drop=True)
    if "ability" in known:
        known["ability"] = _with_family(known["ability"], known.get("contrasts"))
    return known


def _with_family(ability: pd.DataFrame, contrasts: pd.DataFrame | None) -> pd.DataFrame:
    """With the bounds within which all contrasts hold at once; each for itself where nothing else is known."""
    bounds, keys = ["family_low", "family_high"], ["model", "dimension"]
    if contrasts is None:
        return ability.assign(family_low=ability["contrast_low"], family_high=ability["contrast_high"])
    return ability.merge(contrasts[[*keys, *bounds, "verdict"]], on=keys, how="left")


def plain(value: Any) -> Any:
    """Nested facts as JSON knows them: no numpy types, no nan, keys as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return json_safe(value) if isinstance(value, (str, int, float, bool, type(None))) else str(value)
