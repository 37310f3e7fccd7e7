"""A fit on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dpeer.escape import markup, visible
from dpeer.eval.irt.result import Result

if TYPE_CHECKING:
    from rich.console import RenderableType


def terminal(result: Result) -> list[RenderableType]:
    """For a terminal: abilities per model and dimension, severities per judge, and the verdict of the diagnostics."""
    from rich.table import Table
    from rich.text import Text

    ability, judges = result.tables["ability"], result.tables["judges"]
    dimensions = list(dict.fromkeys(ability["dimension"]))
    doubt = "" if result.gate["green"] else " (no claim, see below)"
    models = Table(
        "model", *map(markup, dimensions), title=f"Ability in logits, 95 % interval{doubt}", title_justify="left"
    )
    for model, rows in ability.groupby("model", sort=False):
        cells = {row.dimension: _estimate(row, "ability") for row in rows.itertuples()}
        models.add_row(markup(model), *(cells[d] for d in dimensions))
    columns: tuple[str, ...] = ("judge", "severity", "alpha", "infit", "ratings")
    more = ("comparisons", "ties", "shown first") if "comparisons" in judges else ()
    title = "Judges: severity in logits, positive = stricter"
    severities = Table(*columns, *more, "note", title=title, title_justify="left")
    for row in judges.itertuples():
        numbers: tuple[str, ...] = (_estimate(row, "severity"), _fixed(row.alpha), _fixed(row.infit), f"{row.n:,}")
        if more:
            numbers = (*numbers, f"{row.comparisons:,}", _fixed(row.tie_share, ".0%"), _estimate(row, "position"))
        severities.add_row(markup(row.judge), *numbers, markup(row.note))
    if result.gate["green"]:
        verdict = [Text("Diagnostics: green", style="green")]
    else:
        lines = [f"  {reason}" for reason in result.gate["reasons"]] + [
            f"  -> {advice}" for advice in result.gate["advice"]
        ]
        verdict = [Text("Diagnostics: no claim can be made", style="yellow"), *(Text(visible(line)) for line in lines)]
    return [models, severities, *verdict]


def _fixed(value: float, form: str = ".2f") -> str:
    return f"{value:{form}}" if np.isfinite(value) else ""


def _estimate(row: Any, name: str) -> str:
    value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
    if not np.isfinite(value):
        return ""
    return f"{value:+.2f}" + (f" ({low:.2f} to {high:.2f})" if np.isfinite(low) else "")
