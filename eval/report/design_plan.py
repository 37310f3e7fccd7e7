"""The picture of a D-study: precision against the number of items, for each number of judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dpeer.eval.irt.precision import Z95, Components, Design, difference_sd
from dpeer.report.plot import DASHES, LIMIT, PALETTE, legend, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 12


def picture(
    components: Sequence[Components], judges: Sequence[int], chosen: Design, half_width: float
) -> tuple[bytes, ...]:
    """Half-width of the worst dimension over items, as SVG and PNG; the chosen design reaches `half_width`."""
    items = np.unique(np.geomspace(max(2, chosen.items / 4), 4 * max(chosen.items, 2), POINTS).round().astype(int))

    def width(j: int, q: int) -> float:
        return Z95 * max(difference_sd(c, replace(chosen, items=q, judges=j)) for c in components)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for k, j in enumerate(judges):
            label = f"{j} judge{'s' * (j > 1)}"
            colour, dash = PALETTE[k % len(PALETTE)], DASHES[k % len(DASHES)]
            axes.plot(items, [width(j, int(q)) for q in items], color=colour, linestyle=dash, label=label)
        axes.axhline(half_width, **LIMIT)
        axes.annotate("wanted", (1, half_width), ha="right", va="bottom", xycoords=("axes fraction", "data"))
        axes.set(xlabel="items", ylabel="half-width of a difference (logits)", xscale="log", ylim=(0, None))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[0] in "25" else "")
        legend(axes, columns=3)
        words = f"{chosen.items:,} items and {chosen.judges} judges reach ±{half_width:.2f} logits"
        figure.suptitle(words, x=0.01, ha="left", fontsize=10, fontweight="bold")

    return render(paint, 3.0, "svg", "png")
