"""The Wright map: models, items and judges of one dimension on one logit ruler (Wright & Stone, 1979)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpeer.eval.report.picture import (
    GREY,
    INK,
    MOST_ROWS,
    ORANGE,
    VERMILLION,
    Interval,
    Paint,
    Picture,
    by_dimension,
    interval_rows,
)
from dpeer.eval.report.words import Frames, fixed, known, plural, slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTER = 4.0
"""Logits beyond abilities and judges up to which items and thresholds stretch the ruler; rare scores lie far out."""


def wright(frames: Frames) -> Iterator[Picture]:
    """Per dimension, from top to bottom on one axis: models, a histogram of items, judges with their score steps."""
    for dimension, models in by_dimension(frames["ability"]):
        items, judges, steps = (_of(frames, name, dimension) for name in ("items", "severity", "thresholds"))
        if not len(judges) and "judges" in frames:
            judges = frames["judges"]
        level = _level(frames, dimension)
        models = models.sort_values("ability", ascending=False, kind="stable")
        difficulty = _column(items, "difficulty") - level
        abilities = _column(models, "ability")
        if len(difficulty):
            low, high = np.percentile(difficulty, [2.5, 97.5])
            inside = int(((abilities >= low) & (abilities <= high)).sum())
            sentence = f"{dimension}: {inside} of {plural(len(abilities), 'model')} in the range of 95 % of the items"
        else:
            sentence = f"{dimension}: models and judges on one ruler"
        words = [f"models {fixed(abilities.min())} to {fixed(abilities.max())}"]
        words += [f"items {fixed(difficulty.min())} to {fixed(difficulty.max())}"] if len(difficulty) else []
        severity = _column(judges, "severity")
        words += [f"judges {fixed(severity.min())} to {fixed(severity.max())}"] if len(severity) else []
        yield Picture(
            f"wright_{slug(dimension)}",
            f"{dimension}: models, items and judges on one ruler",
            sentence,
            f"Wright map in logits: {', '.join(words)}.",
            _paint(models, difficulty, judges, steps, level),
            1.75 + 0.24 * min(len(models), MOST_ROWS) + 0.36 * min(len(judges), MOST_ROWS),
            "Items right of a model are hard for it. Judges: dot = severity; number = where that score becomes as "
            "likely as the one below, on an average item.",
        )


def _of(frames: Frames, name: str, dimension: str) -> pd.DataFrame:
    frame = frames.get(name)
    return pd.DataFrame() if frame is None else frame[frame["dimension"] == dimension]


def _column(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """The known values of a column; none where the table is absent."""
    values = frame[name].dropna().to_numpy(dtype=np.float64) if name in frame else np.empty(0)
    return np.asarray(values, dtype=np.float64)


def _level(frames: Frames, dimension: str) -> float:
    """Mean level mu of the dimension: abilities count from it, so that difficulties shift by it."""
    scales = _of(frames, "scales", dimension)
    centres = scales.loc[scales["parameter"] == "mu", "estimate"] if len(scales) else scales
    return float(centres.iloc[0]) if len(centres) and known(centres.iloc[0]) else 0.0


def _ruler(*values: NDArray[np.float64], outer: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the axis: all of `values`, and of `outer` what lies at most OUTER beyond them."""
    inner = np.concatenate([*values, [0.0]])
    low, high = inner.min() - OUTER, inner.max() + OUTER
    drawn = np.concatenate([inner, outer[(outer >= low) & (outer <= high)]])
    air = 0.05 * float(np.ptp(drawn)) or 0.5
    return float(drawn.min()) - air, float(drawn.max()) + air


def _paint(
    models: pd.DataFrame, difficulty: NDArray[np.float64], judges: pd.DataFrame, steps: pd.DataFrame, level: float
) -> Paint:
    places = _steps(judges, steps, level)
    severity = _column(judges, "severity")
    edges = np.concatenate([_column(models, "ability_low"), _column(models, "ability_high")])
    outer = np.concatenate([difficulty, [x for _, x, _ in places]])
    low, high = _ruler(_column(models, "ability"), edges, severity, outer=outer)
    panels: list[tuple[float, Callable[[Axes], None]]] = [
        (max(2, min(len(models), MOST_ROWS)), lambda axes: _models(axes, models)),
        (4.5 if len(difficulty) else 0, lambda axes: _items(axes, difficulty, (low, high))),
        (
            1.5 * max(1.5, min(len(judges), MOST_ROWS)) if len(judges) else 0,
            lambda axes: _judges(axes, judges, places, (low, high)),
        ),
    ]
    shown = [(height, draw) for height, draw in panels if height]

    def paint(figure: Figure) -> None:
        grid = figure.add_gridspec(len(shown), 1, height_ratios=[height for height, _ in shown], hspace=0.02)
        first: Axes | None = None
        for k, (_, draw) in enumerate(shown):
            axes = figure.add_subplot(grid[k], sharex=first)
            first = first or axes
            draw(axes)
            axes.set_xlim(low, high)
            axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
            axes.tick_params(labelbottom=k == len(shown) - 1)
        axes.set_xlabel("logits")

    return paint


def _models(axes: Axes, models: pd.DataFrame) -> None:
    interval_rows(axes, [Interval(r.model, r.ability, r.ability_low, r.ability_high) for r in models.itertuples()])


def _items(axes: Axes, difficulty: NDArray[np.float64], ruler: tuple[float, float]) -> None:
    axes.hist(
        difficulty,
        bins=np.linspace(*ruler, int(np.clip(2 * np.sqrt(len(difficulty)), 8, 40))).tolist(),
        color="#b9c3cc",
    )
    axes.set_ylabel("items", rotation=0, ha="right", va="center")
    axes.locator_params(axis="y", nbins=3, integer=True)


def _steps(judges: pd.DataFrame, steps: pd.DataFrame, level: float) -> list[tuple[int, float, str]]:
    """(row of the judge, ability at the step, upper score) of every threshold that is known."""
    marks = []
    for y, judge in enumerate(judges.itertuples()):
        mine: Any = steps[steps["judge"] == judge.judge] if len(steps) else steps
        marks += [
            (y, float(judge.severity + row.threshold - level), str(row.step))
            for row in mine.itertuples()
            if known(row.threshold)
        ]
    return marks


def _judges(axes: Axes, judges: pd.DataFrame, places: list[tuple[int, float, str]], ruler: tuple[float, float]) -> None:
    rows = judges.itertuples()
    interval_rows(axes, [Interval(r.judge, r.severity, r.severity_low, r.severity_high, ORANGE) for r in rows])
    for y in range(len(judges) if len(judges) <= MOST_ROWS else 0):
        mine = [(x, step) for row, x, step in places if row == y]
        for x, step in mine:
            if ruler[0] <= x <= ruler[1]:
                axes.text(x, y - 0.3, step, fontsize=8, color=INK, ha="center", va="center_baseline", zorder=5)
        below = ", ".join(step for x, step in mine if x < ruler[0])
        above = ", ".join(step for x, step in mine if x > ruler[1])
        for text, x, side in (
            (f"< {below}" * bool(below), ruler[0], "left"),
            (f"{above} >" * bool(above), ruler[1], "right"),
        ):
            axes.text(x, y - 0.3, text, fontsize=8, color=VERMILLION, ha=side, va="center_baseline")
    axes.set_ylim(len(judges) - 0.5, -0.8)
