"""How every plot looks: palette, smoothing, and the line plot, as self-contained pictures with alternative text."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpeer.report.text import exact, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = NDArray[np.float64]

# Okabe & Ito, "Color Universal Design": distinct for all common colour vision; without yellow, too pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LIMIT: dict[str, Any] = {"color": "black", "linestyle": (0, (5, 2)), "linewidth": 1.2}
AIM: dict[str, Any] = {"color": "black", "linestyle": (0, (1, 2)), "linewidth": 1.2}
PAPER: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
Z95 = 1.96
WIDTH_IN = 4.6
MOST_POINTS = 500
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6e8",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "dpeer",
    "text.parse_math": False,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """`src` is a data URI; `alt` says in words what the picture shows."""

    title: str
    alt: str
    src: str
    note: str = ""


_HASHED = re.compile(rb"(?<![\w#-])[a-z][0-9a-f]{10}(?![\w-])|(?<=#)[a-z][0-9a-f]{10}(?![\w-])")


@dataclass(frozen=True, slots=True)
class Line:
    """Values per step [S], nan where unknown; `se` are their standard errors."""

    name: str
    values: Series
    se: Series | None = None


def render(paint: Callable[[Figure], None], height_in: float, *formats: str) -> tuple[bytes, ...]:
    """What `paint` puts on a fresh figure, as a file of each format (svg, png); equal input gives equal bytes."""
    from matplotlib import style
    from matplotlib.figure import Figure

    def saved(kind: str) -> bytes:
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=200, metadata={"Date" if kind == "svg" else "Software": None})
        return _with_counted_names(file.getvalue()) if kind == "svg" else file.getvalue()

    with style.context(["default", STYLE]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        paint(figure)
        if engine := figure.get_layout_engine():  # once: each file would lay it out anew, and draw it twice for that
            engine.execute(figure)
            figure.set_layout_engine("none")
        return tuple(saved(kind) for kind in formats)


def _with_counted_names(svg: bytes) -> bytes:
    """Matplotlib names parts by hashes of their places in all digits, and the last ones are other in each process."""
    names: dict[bytes, bytes] = {}
    return _HASHED.sub(lambda found: names.setdefault(found[0], b"part%d" % len(names)), svg)


def svg_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def draw(paint: Callable[[Axes], None], height_in: float = 2.7) -> str:
    """What `paint` puts on fresh axes, as a data URI of an SVG; equal input gives equal bytes."""
    (svg,) = render(lambda figure: paint(figure.add_subplot()), height_in, "svg")
    return svg_uri(svg)


def smooth(values: Series, se: Series | None = None, span: int = 1) -> tuple[Series, Series]:
    """Exponential moving average, and its standard error if steps err independently: [S] -> ([S], [S]).

    An unknown step (nan) leaves both as they were; they are nan before the first known one. Span 1 smooths nothing.
    """
    keep = 1 - 2 / (span + 1)
    means, variances = np.full(len(values), np.nan), np.full(len(values), np.nan)
    mean = variance = math.nan
    for i, value in enumerate(values):
        if math.isfinite(value):
            mean = value if math.isnan(mean) else keep * mean + (1 - keep) * value
        if se is not None and math.isfinite(se[i]):
            variance = se[i] ** 2 if math.isnan(variance) else keep**2 * variance + (1 - keep) ** 2 * se[i] ** 2
        means[i], variances[i] = mean, variance
    return means, np.sqrt(variances)


def thin(count: int) -> NDArray[np.int64]:
    """At most MOST_POINTS indices, first and last among them: the page of a long run stays small."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(np.int64))


def span_words(mean: Series) -> str:
    """E.g. "from 0.693 to 0.41"."""
    known = mean[np.isfinite(mean)]
    return f"from {number(known[0])} to {number(known[-1])}" if len(known) else "never observed"


def line_plot(
    steps: Series,
    lines: Sequence[Line],
    ylabel: str,
    title: str,
    *,
    span: int = 1,
    note: str = "",
    limit: float = math.inf,
    aim: Series | None = None,
    ylim: tuple[float, float] | None = None,
    colour: str | None = None,
) -> Plot:
    """Lines over the optimizer steps, smoothed over `span` of them, with raw values faint behind and 95 % bands.

    Lines with standard errors get bands in place of raw values. `limit` is drawn as the tolerance and `aim` [S] below
    it, with their label on the side that the lines leave free at the end.
    """
    index = thin(len(steps))
    averages = [smooth(line.values, line.se, span) for line in lines]

    def paint(axes: Axes) -> None:
        x, marker = steps[index], "o" if len(steps) < 3 else ""
        for k, (line, (mean, se)) in enumerate(zip(lines, averages, strict=True)):
            ink, dash = colour or PALETTE[k % len(PALETTE)], DASHES[k % len(DASHES)]
            if line.se is not None:
                low, high = mean - Z95 * se, mean + Z95 * se
                axes.fill_between(x, low[index], high[index], color=ink, alpha=0.2, linewidth=0)
            elif span > 1:
                axes.plot(x, line.values[index], color=ink, alpha=0.3, linewidth=0.8)
            axes.plot(x, mean[index], color=ink, linestyle=dash, linewidth=1.8, label=line.name, marker=marker)
        if math.isfinite(limit):
            axes.axhline(limit, **LIMIT)
            words, lowest = f"tolerance {exact(limit)}", limit
            if aim is not None:
                axes.plot(x, aim[index], **AIM)
                words, lowest = f"{words}, aim {number(aim[-1], 2)}", min(limit, aim[-1])
            above = any(mean[-1] > limit for mean, _ in averages)
            place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            place |= {"xytext": (0, -3), "va": "top"} if above else {"xytext": (0, 3), "va": "bottom"}
            axes.annotate(words, (1, lowest if above else limit), ha="right", bbox=PAPER, **place)
        axes.set(xlabel="optimizer step", ylabel=ylabel)
        if ylim:
            axes.set_ylim(ylim)
        if len(lines) > 1:
            legend(axes)

    ends = ", ".join(f"{line.name} {span_words(mean)}" for line, (mean, _) in zip(lines, averages, strict=True))
    return Plot(title, f"Line plot over {len(steps)} steps, {ylabel}: {ends}. {title}.", draw(paint), note)


def legend(axes: Axes, columns: int = 4) -> None:
    """A legend above the axes, where it hides no data."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, handlelength=2.2)
