"""Pictures of the judges: severity, discrimination, fit, misfit per model, predictive checks, thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from dpeer.eval.irt.judges import FIT_RANGE
from dpeer.eval.report.picture import (
    BLUE,
    GREY,
    INK,
    MOST_ROWS,
    ORANGE,
    VERMILLION,
    Paint,
    Picture,
    by_dimension,
    decided,
    enumerated,
    heat,
    heat_height,
    intervals,
    matrix,
    named,
    rows_height,
    shared_range,
)
from dpeer.eval.report.words import (
    Frames,
    clear,
    estimate,
    fit_flag,
    fixed,
    known,
    label,
    labels,
    misfit_words,
    plural,
    probability,
    signed,
    slug,
)
from dpeer.report.plot import Z95
from dpeer.report.text import listing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 30
"""Small charts in one picture."""
SEVERITY = "severity (logits; positive = stricter)"


def severity(frames: Frames) -> Iterator[Picture]:
    """Overall severity of the judges, and severity in each dimension where there are several."""
    rated = {name: frames[name].dropna(subset=["severity"]) for name in ("judges", "severity") if name in frames}
    frames = {**frames} | rated  # who only compares has no severity
    parts = [frame for name in rated if len(frame := frames[name])]
    if not parts:
        return
    columns = ["severity_low", "severity_high", "severity"]
    xlim = shared_range(pd.concat([part[columns] for part in parts]), *columns)
    several = "severity" in frames and frames["severity"]["dimension"].nunique() > 1
    if "judges" in frames:
        prefix = "All dimensions: " if several else "Severity: "
        yield _severity("severity", "Severity of the judges", prefix, frames["judges"], xlim)
    if several:
        for dimension, part in by_dimension(frames["severity"]):
            yield _severity(f"severity_{slug(dimension)}", f"{dimension}: severity", f"{dimension}: ", part, xlim)


def _severity(name: str, subject: str, prefix: str, part: pd.DataFrame, xlim: tuple[float, float] | None) -> Picture:
    part = part.sort_values("severity", ascending=False, kind="stable")
    rows = [decided(row.judge, row.severity, row.severity_low, row.severity_high) for row in part.itertuples()]
    strict, lenient = part.iloc[0], part.iloc[-1]
    spread = strict["severity"] - lenient["severity"]
    if len(part) == 1:
        sentence = f"{prefix}one judge, {label(strict['judge'])}"
    elif not any(clear(row.low, row.high) for row in rows):
        sentence = f"{prefix}no judge differs reliably from the mean severity"
    else:
        sentence = (
            f"{prefix}{label(strict['judge'])} is strictest, {fixed(spread)} logits above {label(lenient['judge'])}"
        )
    words = enumerated([f"{label(row.judge)} {estimate(row, 'severity')}" for row in part.itertuples()])
    return Picture(
        name,
        subject,
        sentence,
        f"Dot plot of judge severities in logits with 95 % intervals. {words}.",
        intervals(rows, SEVERITY, xlim=xlim),
        rows_height(len(rows)),
    )


def discrimination(frames: Frames) -> Iterator[Picture]:
    """Discrimination of the judges, where it was estimated: how closely each follows the consensus."""
    frame = frames["judges"]
    if not (frame["alpha_high"] - frame["alpha_low"] > 0).any():
        return
    part = frame.sort_values("alpha", ascending=False, kind="stable")
    rows = [decided(row.judge, row.alpha, row.alpha_low, row.alpha_high, null=1.0) for row in part.itertuples()]
    words = enumerated([f"{label(row.judge)} {estimate(row, 'alpha')}" for row in part.itertuples()])
    first, last = part.iloc[0], part.iloc[-1]
    sentence = "No judge's discrimination differs reliably from the average"
    if any(row.colour == BLUE for row in rows):
        sentence = f"{label(first['judge'])} follows the consensus most ({fixed(first['alpha'])}), "
        sentence += f"{label(last['judge'])} least ({fixed(last['alpha'])})"
    yield Picture(
        "discrimination",
        "Discrimination of the judges",
        sentence,
        f"Dot plot of judge discriminations on a log axis with 95 % intervals. {words}.",
        intervals(rows, "discrimination alpha (1 = average judge)", line=1.0, log=True),
        rows_height(len(rows)),
        "Agreement with the consensus, not validity. Grey: the interval holds 1.",
    )


def fit(frames: Frames) -> Iterator[Picture]:
    """Infit and outfit of the judges against the range that is productive for measurement."""
    frame = frames["judges"]
    if not frame[["infit", "outfit"]].notna().any().any():
        return
    flagged = [row.judge for row in frame.itertuples() if fit_flag(row.infit) or fit_flag(row.outfit)]
    low, high = FIT_RANGE

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axvspan(low, high, color="#e7f1ec", zorder=0)
        axes.axvline(1, color=INK, linewidth=1)
        for y, row in enumerate(frame.itertuples()):
            for value, marker, fill in ((row.infit, "o", True), (row.outfit, "D", False)):
                colour = VERMILLION if fit_flag(value) else BLUE
                axes.plot(value, y, marker, color=colour, markerfacecolor=colour if fill else "none", markersize=6.5)
        axes.set_yticks(*named(list(frame["judge"])))
        axes.set(xlabel="mean square (1 = as the model expects)", ylim=(len(frame) - 0.4, -0.6))
        axes.set_xlim(left=min(0.4, axes.get_xlim()[0]), right=max(1.6, axes.get_xlim()[1]))
        axes.grid(visible=False, axis="y")

    words = enumerated(
        [f"{label(r.judge)} infit {fixed(r.infit)}, outfit {fixed(r.outfit)}" for r in frame.itertuples()]
    )
    sentence = "Every judge is about as predictable as the model expects"
    if flagged:
        names = listing([label(judge) for judge in flagged[:3]]) + (", ..." if len(flagged) > 3 else "")
        sentence = f"{plural(len(flagged), 'judge')} outside the range of good fit: {names}"
    yield Picture(
        "fit",
        "Infit and outfit of the judges",
        sentence,
        f"Dot plot of infit and outfit mean squares per judge. {words}.",
        paint,
        rows_height(len(frame)),
        f"Filled: infit; hollow: outfit; shaded: {low:g} to {high:g}. Above: noisier than the model; below: too "
        "regular.",
    )


def notable(misfit: pd.DataFrame) -> pd.DataFrame:
    """Cells of judge x model whose gap the fit calls notable, the least likely first."""
    notable_rows = misfit[misfit["notable"].fillna(False).astype(bool)]
    return notable_rows.reindex(notable_rows["z"].abs().sort_values(ascending=False, kind="stable").index)


def off(ppc: pd.DataFrame) -> pd.DataFrame:
    """Score counts further from their prediction than chance allows among all of them, the furthest first.

    5 % by Bonferroni, with the standard deviation that the 95 % predictive interval implies for a normal variable.
    """
    sd = (ppc["expected_high"] - ppc["expected_low"]) / (2 * Z95)
    gap = (ppc["observed"] - ppc["expected"]).abs()
    far = ppc[gap > norm.isf(0.025 / len(ppc)) * sd.clip(lower=0.5)]
    return far.reindex(gap[far.index].sort_values(ascending=False, kind="stable").index)


def misfit(frames: Frames) -> Iterator[Picture]:
    """Per dimension: observed minus expected mean score of every judge on every model."""
    frame = frames["misfit"].assign(gap=lambda f: f["observed"] - f["expected"])
    most = float(np.nanmax(np.abs(frame["gap"].to_numpy(dtype=np.float64)), initial=0.0)) or 1.0
    beyond = notable(frame)
    for dimension, part in by_dimension(frame):
        sentences = [misfit_words(row) for row in beyond[beyond["dimension"] == dimension].itertuples()]
        marked = {(row.model, row.judge) for row in beyond[beyond["dimension"] == dimension].itertuples()}
        values, models, judges = matrix(part, "model", "judge", "gap")
        texts = [
            [_cell(values[i, j], (m, judge) in marked) for j, judge in enumerate(judges)] for i, m in enumerate(models)
        ]
        title = sentences[0] if sentences else "no judge scores a model otherwise than chance allows"
        yield Picture(
            f"misfit_{slug(dimension)}",
            f"{dimension}: observed minus expected score",
            f"{dimension}: {title}",
            f"Heat map of observed minus expected mean score, models by judges. {'; '.join(sentences[:12]) or title}.",
            heat(values, models, judges, texts, colours="PuOr_r", limits=(-most, most), bar="score points"),
            heat_height(len(models), judges),
            "*: more than chance allows among all cells of the fit (5 %, Bonferroni), and not trivial.",
        )


def _cell(value: float, marked: bool) -> str:
    return f"{signed(value)}{'*' * marked}" if math.isfinite(value) else ""


def predictive(frames: Frames) -> Iterator[Picture]:
    """Per dimension: how often each judge gave each score, and how often the fitted model would."""
    beyond = off(frames["ppc"])
    for dimension, part in by_dimension(frames["ppc"]):
        outside = beyond[beyond["dimension"] == dimension]
        judges = tuple(dict.fromkeys([*outside["judge"], *part["judge"]]))
        many, judges = len(judges), judges[:MOST_PANELS] if len(judges) > MOST_PANELS else _in_order(part)
        columns = min(len(judges), 2 if len(judges) == 4 else 3)
        lines = math.ceil(len(judges) / columns)
        sentence = "the model reproduces how often every judge gives every score"
        if len(outside):
            row = outside.iloc[0]
            side = "more" if row["observed"] > row["expected"] else "less"
            sentence = f"{label(row['judge'])} gives score {row['score']} {side} often than the model predicts"
        yield Picture(
            f"ppc_{slug(dimension)}",
            f"{dimension}: observed and predicted score counts",
            f"{dimension}: {sentence}",
            "Small bar charts, one per judge, of observed score counts with the predicted count and its 95 % interval. "
            f"{len(outside)} of {len(part)} counts differ by more than chance allows.",
            _predictive(part, set(outside.index), judges, lines, columns),
            0.35 + 1.25 * lines,
            "Bars: observed ratings; dots: predicted, with 95 % intervals. Orange: more than chance allows among all "
            "bars." + (f" {len(judges)} of {many:,} judges, those with the largest gaps first." * (many > len(judges))),
        )


def _in_order(part: pd.DataFrame) -> tuple[Any, ...]:
    """Judges in order of appearance."""
    return tuple(dict.fromkeys(part["judge"]))


def _predictive(part: pd.DataFrame, marked: set[Any], judges: tuple[Any, ...], lines: int, columns: int) -> Paint:
    scores = sorted(set(part["score"]))

    def panel(axes: Axes, judge: Any, name: str) -> None:
        for row in part[part["judge"] == judge].itertuples():
            x = scores.index(row.score)
            axes.bar(x, row.observed, width=0.8, color=ORANGE if row.Index in marked else "#a9cbe2")
            axes.plot([x, x], [row.expected_low, row.expected_high], color=INK, linewidth=1.4)
            axes.plot(x, row.expected, "o", color=INK, markersize=3.2)
        axes.set_title(name, fontsize=8.5, loc="left", pad=3)
        axes.set_xticks(range(len(scores)), [str(s) for s in scores])
        axes.tick_params(labelsize=7.5)
        axes.grid(visible=False, axis="x")

    def paint(figure: Figure) -> None:
        for k, (judge, name) in enumerate(zip(judges, labels(judges, 20), strict=True)):
            panel(figure.add_subplot(lines, columns, k + 1), judge, name)
        figure.supxlabel("score", fontsize=9)
        figure.supylabel("ratings", fontsize=9)

    return paint


def thresholds(frames: Frames) -> Iterator[Picture]:
    """Per dimension: thresholds of every judge, disordered ones marked."""
    frame = frames["thresholds"]
    for dimension, part in by_dimension(frame):
        everybody = _in_order(part)
        marked = list(dict.fromkeys(part.loc[part["disordered"].fillna(False).astype(bool), "judge"]))
        if marked:
            sentence = (
                f"{dimension}: thresholds are out of order for {plural(len(marked), 'judge')}: {label(marked[0])}"
            )
            sentence += " and others" if len(marked) > 1 else ""
        else:
            sentence = f"{dimension}: every judge's thresholds are in order"
        judges = everybody if len(everybody) <= MOST_ROWS else tuple(dict.fromkeys([*marked, *everybody]))[:MOST_ROWS]
        words = "; ".join(
            f"{label(judge)} " + ", ".join(fixed(t) for t in part.loc[part["judge"] == judge, "threshold"])
            for judge in judges
        )
        yield Picture(
            f"thresholds_{slug(dimension)}",
            f"{dimension}: thresholds of the judges",
            sentence,
            f"Dot plot of score thresholds per judge in logits. {words}.",
            _thresholds(part[part["judge"].isin(judges)], judges),
            0.7 + 0.36 * max(2, len(judges)),
            "Number: where that score becomes as likely as the one below, severity apart; bars: 95 %. Orange: out of "
            "order." + (f" {len(judges)} of {len(everybody):,} judges." * (len(everybody) > len(judges))),
        )


def _thresholds(part: pd.DataFrame, judges: tuple[Any, ...]) -> Paint:
    steps = list(dict.fromkeys(part["step"]))
    lift = 0.6 / max(1, len(steps) - 1)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row in part.itertuples():
            if not known(row.threshold):
                continue
            place = steps.index(row.step)
            y = judges.index(row.judge) + (place - (len(steps) - 1) / 2) * lift
            colour = VERMILLION if row.disordered is True or row.disordered == 1 else BLUE
            axes.plot([row.threshold_low, row.threshold_high], [y, y], color=colour, linewidth=1.6, alpha=0.6)
            axes.plot(row.threshold, y, "o", color=colour, markersize=8.5)
            axes.text(row.threshold, y, str(row.step), color="white", fontsize=6.5, ha="center", va="center_baseline")
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_yticks(range(len(judges)), labels(judges))
        axes.set(xlabel="threshold (logits)", ylim=(len(judges) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")

    return paint


def extreme(value: Any) -> bool:
    """A posterior predictive p that the model would rarely give."""
    return known(value) and not 0.025 <= value <= 0.975


def p_words(value: Any) -> str:
    return f"{probability(value)}{' !' * extreme(value)}"
