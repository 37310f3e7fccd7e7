"""What all pictures of the page share: the picture itself, interval rows, heat maps, and their colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpeer.eval.report.words import clear, known, labels
from dpeer.report.plot import PALETTE, Plot, render, svg_uri
from dpeer.report.text import NBSP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Paint = Callable[["Figure"], None]

BLUE, VERMILLION, GREEN, PURPLE, ORANGE = PALETTE[:5]
INK, GREY = "#1c2024", "#6b747c"
SIDES = {1: (GREEN, "^"), 0: (GREY, "o"), -1: (VERMILLION, "v")}
"""Colour and marker of an interval above zero, across it, and below it."""
LEAST_FONT = 5.0
MOST_ROWS = 60
"""Rows of a picture that are named and get a place of their own; of more, every so many is named."""
MOST_CELLS = 2500
"""Cells of a heat map that are written out; larger ones are one image."""
LOG_TICKS = ((0.5, 0.65, 0.8, 1, 1.25, 1.5, 2), (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20))
"""For an axis that spans a factor of at most four, and for a longer one."""
ZERO: dict[str, Any] = {"color": INK, "linewidth": 1.0, "zorder": 1}


@dataclass(frozen=True, slots=True)
class Picture:
    """`subject` says what is shown, `finding` what it shows; `name` is the stem of its files."""

    name: str
    subject: str
    finding: str
    alt: str
    paint: Paint
    height_in: float
    note: str = ""
    counted: bool = False
    """The finding counts data and estimates nothing, so that it holds whatever the diagnostics say."""

    def title(self, claim: bool) -> str:
        """The finding, or only the subject where the fit supports no claim."""
        title = self.finding if claim or self.counted else self.subject
        return title.replace(" %", f"{NBSP}%")


@dataclass(frozen=True, slots=True)
class Interval:
    """One row of an interval plot; `side` picks its colour where no colour is given."""

    name: str
    value: float
    low: float
    high: float
    colour: str = BLUE
    marker: str = "o"
    remark: str = ""
    """Written at the right end of the row."""


def sided(name: str, value: float, low: float, high: float, remark: str = "") -> Interval:
    """An interval in the colours of better, undecided and worse, by the side of zero on which it lies."""
    colour, marker = SIDES[clear(low, high)]
    return Interval(name, value, low, high, colour, marker, remark)


def decided(name: str, value: float, low: float, high: float, null: float = 0.0) -> Interval:
    """An interval in blue, or in grey where it holds the value that means "no difference"."""
    return Interval(name, value, low, high, BLUE if clear(low - null, high - null) else GREY)


def rows_height(rows: int, base: float = 0.7) -> float:
    """Height in inches of a plot with one row per name."""
    return base + 0.25 * min(max(rows, 2), MOST_ROWS)


def named(names: Sequence[object], most: int = MOST_ROWS) -> tuple[NDArray[np.int64], list[str]]:
    """Which rows of an axis are named, and how: all, or 30 of too many."""
    if len(names) <= most:
        return np.arange(len(names)), labels(names)
    shown = np.unique(np.linspace(0, len(names) - 1, most // 2).round().astype(np.int64))
    return shown, labels(names[k] for k in shown)


def enumerated(words: Sequence[str]) -> str:
    """For alternative texts: all, or the first and the last of too many."""
    if len(words) <= MOST_ROWS:
        return "; ".join(words)
    return "; ".join([*words[:10], f"{len(words) - 15:,} more", *words[-5:]])


def intervals(
    rows: Sequence[Interval],
    xlabel: str,
    *,
    line: float = 0.0,
    xlim: tuple[float, float] | None = None,
    log: bool = False,
) -> Paint:
    """Dots with interval bars, one named row each, first on top, and a line that means "no difference"."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        interval_rows(axes, rows)
        axes.axvline(line, **ZERO)
        axes.locator_params(axis="x", nbins=7)
        if log:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            axes.set_xticks([x for x in LOG_TICKS[int(high > 4 * low)] if low <= x <= high])
            axes.set_xticks([], minor=True)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set(xlabel=xlabel)
        if xlim:
            axes.set_xlim(*xlim)

    return paint


def interval_plot(
    title: str, rows: Sequence[Interval], xlabel: str, xlim: tuple[float, float] | None = None, note: str = ""
) -> Plot:
    """The same, drawn for a page."""
    (svg,) = render(intervals(rows, xlabel, xlim=xlim), rows_height(len(rows)), "svg")
    words = enumerated([f"{row.name} {row.value:+.2f} ({row.low:.2f} to {row.high:.2f})" for row in rows])
    return Plot(title, f"Dot plot with 95 % intervals, {xlabel}: {words}.", svg_uri(svg), note)


def interval_rows(axes: Axes, rows: Sequence[Interval]) -> None:
    dense = len(rows) > MOST_ROWS
    bars = [(y, row) for y, row in enumerate(rows) if known(row.low) and known(row.high)]
    if bars:
        ys, spans = [y for y, _ in bars], [row for _, row in bars]
        axes.hlines(
            ys,
            [row.low for row in spans],
            [row.high for row in spans],
            colors=[row.colour for row in spans],
            linewidth=0.6 if dense else 2.2,
            zorder=2,
        )
    for style in dict.fromkeys((row.colour, row.marker) for row in rows):
        mine = [(y, row.value) for y, row in enumerate(rows) if (row.colour, row.marker) == style]
        ys_of, values = [y for y, _ in mine], [value for _, value in mine]
        axes.plot(values, ys_of, style[1], color=style[0], markersize=2 if dense else 6.5, zorder=3)
    for y, row in enumerate(rows):
        if row.remark and not dense:
            place: dict[str, Any] = {
                "xycoords": ("axes fraction", "data"),
                "textcoords": "offset points",
                "annotation_clip": False,
            }
            axes.annotate(row.remark, (1, y), xytext=(4, 0), va="center", fontsize=8, color=GREY, **place)
    axes.set_yticks(*named([row.name for row in rows]))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def heat(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    *,
    colours: str,
    limits: tuple[float, float],
    xlabel: str = "",
    ylabel: str = "",
    bar: str = "",
) -> Paint:
    """A table of coloured cells [rows, columns]; unknown ones are grey.

    Each cell gets its text, or only its star where the cells are too narrow to be read.
    """
    if values.size > MOST_CELLS:
        return _image(values, rows, columns, colours, limits, xlabel, ylabel)
    slant = turned(columns)
    largest = max((len(text) for line in texts for text in line), default=1)
    size = min(9.0, (150 if bar else 200) / len(columns) / max(3, largest) / 0.62)
    if size < LEAST_FONT:
        texts, size = [["*" if text.endswith("*") else "" for text in line] for line in texts], 9.0

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_facecolor("#eceff1")
        mesh = axes.pcolormesh(values, cmap=colours, vmin=limits[0], vmax=limits[1], edgecolors="white", linewidth=0.8)
        for i, j in np.ndindex(values.shape):
            red, green, blue, _ = mesh.cmap(mesh.norm(values[i, j])) if known(values[i, j]) else (1, 1, 1, 1)
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            axes.text(
                j + 0.5, i + 0.5, texts[i][j], ha="center", va="center", fontsize=size, color="white" if dark else INK
            )
        axes.set_xticks(
            np.arange(len(columns)) + 0.5,
            labels(columns, 16),
            rotation=45 if slant else 0,
            ha="right" if slant else "center",
        )
        if slant:
            for tick in axes.get_xticklabels():
                tick.set_rotation_mode("anchor")
        axes.set_yticks(np.arange(len(rows)) + 0.5, labels(rows, 18))
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if bar:
            legend = figure.colorbar(mesh, ax=axes, shrink=0.9, aspect=25, pad=0.02)
            legend.set_label(bar)
            legend.outline.set_visible(False)

    return paint


def _image(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    colours: str,
    limits: tuple[float, float],
    xlabel: str,
    ylabel: str,
) -> Paint:
    """The same for too many cells to write in: one picture element each."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_facecolor("#eceff1")
        mesh = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
        shown, names = named(columns, 12)
        axes.set_xticks(shown, names, rotation=45, ha="right")
        axes.set_yticks(*named(rows))
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        figure.colorbar(mesh, ax=axes, shrink=0.9, aspect=25, pad=0.02).outline.set_visible(False)

    return paint


def turned(columns: Sequence[str]) -> bool:
    """True if column names do not fit side by side."""
    return max(map(len, labels(columns, 16))) > 40 / len(columns)


def heat_height(rows: int, columns: Sequence[str]) -> float:
    """Height in inches of a heat map, its turned column names included."""
    return (
        0.8
        + 0.28 * min(max(rows, 2), MOST_ROWS)
        + (0.062 * max(map(len, labels(columns, 16))) if turned(columns) else 0)
    )


def matrix(
    frame: pd.DataFrame, row: str, column: str, value: str
) -> tuple[NDArray[np.float64], tuple[str, ...], tuple[str, ...]]:
    """Values [rows, columns] with the names in order of appearance; nan where a pair is absent."""
    wide = frame.pivot_table(index=row, columns=column, values=value, aggfunc="sum", min_count=1, sort=False)
    names = tuple(dict.fromkeys(frame[row])), tuple(dict.fromkeys(frame[column]))
    ordered = wide.reindex(index=list(names[0]), columns=list(names[1]))
    return ordered.to_numpy(dtype=np.float64), *names


def by_dimension(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(dimension, its rows), in order of appearance."""
    for dimension in dict.fromkeys(frame["dimension"]):
        yield str(dimension), frame[frame["dimension"] == dimension]


def shared_range(frame: pd.DataFrame, *columns: str, air: float = 0.06) -> tuple[float, float] | None:
    """One x range for panels that are compared, zero included; None where nothing is known."""
    values = frame[list(columns)].to_numpy(dtype=np.float64).ravel()
    values = np.append(values[np.isfinite(values)], 0.0)
    span = float(np.ptp(values))
    return (float(values.min()) - air * span, float(values.max()) + air * span) if span else None
