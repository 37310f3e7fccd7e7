"""The page of `dpeer tolerance`: what each dimension can have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpeer.files import write_text
from dpeer.report.page import templates
from dpeer.report.plot import PALETTE, Plot, draw, legend
from dpeer.report.text import exact, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Reach:
    """What one dimension can have: mean losses on records that no pilot trained on.

    equal, worst, favoured: with equal weights, with the worst dimension first, with this dimension favoured
    error: standard error of `worst`
    price: loss given up by the other dimensions together per unit gained by favouring this one; nan if nothing is
        gained beyond the error
    suggested: tolerance that can be had and proven on `records` certificate records
    needed: records that would prove a tolerance 10 % above the level
    """

    dimension: str
    equal: float
    worst: float
    favoured: float
    error: float
    price: float
    suggested: float
    records: int
    needed: int | None


def write_page(reached: Sequence[Reach], path: Path, name: str) -> Path:
    """Write the page and return its path."""
    best = min(reached, key=lambda r: r.suggested)
    hardest = max(reached, key=lambda r: r.suggested)
    finding = (
        f"Tolerances from {exact(best.suggested)} ({best.dimension}) to {exact(hardest.suggested)} "
        f"({hardest.dimension}) can be had and proven"
    )
    template = templates().get_template("tolerance.html.j2")
    page = template.render(name=name, finding=finding, reached=reached, chart=_chart(reached))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _chart(reached: Sequence[Reach]) -> Plot:
    def paint(axes: Axes) -> None:
        for y, r in enumerate(reached):
            axes.plot([r.favoured, max(r.equal, r.worst)], [y, y], color="#b9bdc1", linewidth=2, zorder=1)
            axes.plot([r.suggested] * 2, [y - 0.3, y + 0.3], color="black", linewidth=2)
        rows = range(len(reached))
        for values, label, marker, colour in (
            ([r.equal for r in reached], "equal weights", "o", PALETTE[0]),
            ([r.worst for r in reached], "worst first", "s", PALETTE[1]),
            ([r.favoured for r in reached], "favoured", "^", PALETTE[2]),
        ):
            axes.plot(values, rows, marker, color=colour, label=label, markersize=7, linestyle="none")
        axes.set_yticks(rows, [r.dimension for r in reached])
        axes.set(xlabel="mean loss per pair (black bar: suggested tolerance)", ylim=(len(reached) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
        legend(axes)

    words = "; ".join(
        f"{r.dimension}: equal weights {number(r.equal)}, worst first {number(r.worst)}, favoured "
        f"{number(r.favoured)}, suggested {exact(r.suggested)}"
        for r in reached
    )
    return Plot("What each dimension can have", f"Dot plot. {words}.", draw(paint, 1.2 + 0.45 * len(reached)))
