"""The page on the quality of a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpeer.eval.quality.quality import Quality
from dpeer.eval.quality.reasons import FAILS, HOLDS, OPEN
from dpeer.eval.quality.repeats import counted
from dpeer.eval.quality.surface import FORM, STYLE, Surface, sentence
from dpeer.eval.report.order_audit import shown
from dpeer.files import write_text
from dpeer.report.page import templates
from dpeer.report.plot import PALETTE, Plot, draw, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 40
"""Rows of a list; the tables beside the page have all."""
WORDS = {HOLDS: "holds", FAILS: "fails", OPEN: "open"}


def write_page(found: Quality, path: Path) -> Path:
    """Write the page and return its path."""
    template = templates("dpeer.eval.report").get_template("quality.html.j2")
    bad = found.verified.records if found.verified else None
    bad = bad[bad["status"] != HOLDS].sort_values("status", kind="stable") if bad is not None else None
    page = template.render(
        found=found,
        finding=found.finding(),
        bad=bad,
        most=MOST,
        shown=shown,
        form=FORM,
        sentences=[sentence(s) for s in found.surfaces if s.sees == FORM],
        by_dimension=_by_dimension(found.surfaces),
        chart=_chart(found.surfaces),
        fails=_kinds(found),
        repeated={kind: counted(getattr(found, kind)) for kind in ("prompts", "responses")},
    )
    write_text(path, page)
    return path


def _by_dimension(surfaces: Sequence[Surface]) -> list[tuple[Surface, Surface]]:
    """(by form, with words) of each dimension."""
    with_words = {s.dimension: s for s in surfaces if s.sees == STYLE}
    return [(s, with_words[s.dimension]) for s in surfaces if s.sees == FORM]


def _chart(surfaces: Sequence[Surface]) -> Plot | None:
    both = [pair for pair in _by_dimension(surfaces) if not math.isnan(pair[0].accuracy.rate)]
    if not both:
        return None
    labels = [form.dimension or "all" for form, _ in both]

    def paint(axes: Axes) -> None:
        for which, (shift, label) in enumerate(((-0.12, "form"), (0.12, "form and a few words"))):
            colour, marker = PALETTE[which], "os"[which]
            intervals = [pair[which].accuracy for pair in both]
            for y, i in enumerate(intervals):
                axes.plot([100 * i.low, 100 * i.high], [y + shift] * 2, color=colour, linewidth=2)
            places = [y + shift for y in range(len(both))]
            rates = [100 * i.rate for i in intervals]
            axes.plot(rates, places, marker, color=colour, label=label, linestyle="none")
        axes.axvline(50, color="#666666", linewidth=1, linestyle="--")
        axes.set_yticks(range(len(both)), labels)
        axes.set(xlabel="pairs told apart (%), 95 % intervals", ylim=(len(both) - 0.4, -0.6))
        axes.set_xlim(min(40, *(100 * p.accuracy.low for pair in both for p in pair)) - 2, 102)
        axes.grid(visible=False, axis="y")
        legend(axes)

    words = "; ".join(f"{label}: {shown(form.accuracy)}" for label, (form, _) in zip(labels, both, strict=True))
    return Plot("What the surface alone gives away", f"Dot plot. {words}.", draw(paint, 1.3 + 0.45 * len(both)))


def _kinds(found: Quality) -> tuple[list[str], list[tuple[str, list[tuple[str, bool] | None]]]] | None:
    """Dimensions, and of each claim the share of responses that fail each of them, with whether they should."""
    if found.verified is None:
        return None
    kinds = found.verified.kinds
    dimensions = sorted(kinds["dimension"].unique())
    rows = []
    for claim, mine in kinds.groupby("claim", sort=False):
        by = {row.dimension: row for row in mine.itertuples()}
        cells: list[tuple[str, bool] | None] = [
            (_share(by[d]), not by[d].passes) if d in by and by[d].n else None for d in dimensions
        ]
        rows.append((str(claim), cells))
    return dimensions, rows


def _share(row: object) -> str:
    share, low, high = (100 * getattr(row, f"failing{end}") for end in ("", "_low", "_high"))
    return f"{share:.0f} % [{low:.0f}, {high:.0f}]"
