"""One function per plot of the sweep page: what was found in, a titled picture out. The title states the finding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpeer.report.plot import DASHES, LIMIT, MARKERS, PALETTE, Plot, draw, legend
from dpeer.report.sweep import Setting, SweepCell, SweepData
from dpeer.report.sweep_numbers import Price, Spread, average, mean_and_worst, over_seeds, pareto_front, worst
from dpeer.report.text import constraint_form, exact, listing, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Value = Callable[[SweepCell], float]


def bands(data: SweepData) -> str:
    """What lines, marks and bars stand for."""
    marks = "Marks: means over seeds" if data.axis.ticks else "Lines join means over seeds"
    return f"{marks}; bars: 95 % t intervals over seeds; dots: single seeds."


def loss_panels(data: SweepData) -> list[Plot]:
    """Held-out loss of each dimension along the axis, beside the tolerance itself where that is the axis."""
    top = max((v for c in data.cells for v in c.heldout("loss").values() if math.isfinite(v)), default=math.nan)
    if math.isnan(top):
        return []
    return [_loss_panel(data, d, PALETTE[k % len(PALETTE)], top) for k, d in enumerate(data.dimensions)]


def _loss_panel(data: SweepData, dimension: str, colour: str, top: float) -> Plot:
    def value(cell: SweepCell) -> float:
        return cell.heldout("loss").get(dimension, math.nan)

    bounded = _on_this_axis(data, dimension)

    def paint(axes: Axes) -> None:
        curves(axes, data, [("", value)], colours=[colour])
        if bounded:
            low, high = axes.get_xlim()
            axes.plot([low, high], [low, high], **LIMIT)
            axes.set_xlim(low, high)
            axes.annotate("tolerance", (high, high), ha="right", va="top", annotation_clip=False, fontsize=9)
        axes.set(ylabel="held-out loss per edge", ylim=(0, 1.08 * top))
        if len(data.lines) > 1 or data.baselines:
            legend(axes, columns=3)

    means = _means(data, value)
    if bounded:
        met = [x for x, mean in means if mean <= x]
        if len(met) in (0, len(means)):
            title = f"{dimension} {'is within' if met else 'exceeds'} every tolerance"
        else:
            title = f"{dimension} is within its tolerance at {listing([exact(x) for x in met])}"
    else:
        title = f"{dimension}: held-out loss {_range(means)}"
    return Plot(title, f"Held-out loss of {dimension}. {_words(data, value)}. {title}.", draw(paint))


def _on_this_axis(data: SweepData, dimension: str) -> bool:
    """Whether x is the tolerance of this dimension's loss."""
    on_loss = all(constraint_form(c.run).bounds_loss for c in data.cells)
    last = data.axis.key.rpartition(".")[2]
    return data.axis.tolerance and on_loss and last in ("tolerance", dimension)


def accuracy(data: SweepData) -> Plot | None:
    """Held-out accuracy of all dimensions along the axis."""

    def of(dimension: str) -> Value:
        return lambda cell: 100 * cell.heldout("accuracy").get(dimension, math.nan)

    named = [(d, of(d)) for d in data.dimensions]
    return _rates(data, named, "edges ranked right (%)", "held-out accuracy")


def oracle(data: SweepData) -> Plot | None:
    """What the toy world's oracle reads in sampled replies: good behaviour per dimension, and fluency."""
    names = list(dict.fromkeys(name for c in data.cells for name in c.shares))

    def of(name: str) -> Value:
        return lambda cell: 100 * cell.shares.get(name, math.nan)

    return _rates(data, [(n, of(n)) for n in names], "replies (%)", "share of good replies") if names else None


def abilities(data: SweepData, table: dict[str, dict[str, float]]) -> Plot | None:
    """Abilities (logits) by the judges' ratings; `table`: cell name -> dimension -> ability."""
    names = list(dict.fromkeys(d for row in table.values() for d in row))

    def of(name: str) -> Value:
        return lambda cell: table.get(cell.name, {}).get(name, math.nan)

    return _rates(data, [(n, of(n)) for n in names], "ability (logits)", "ability", "") if names else None


def _rates(
    data: SweepData, named: Sequence[tuple[str, Value]], ylabel: str, what: str, unit: str = "\u00a0%"
) -> Plot | None:
    finals = {name: dict(_means(data, value)) for name, value in named if name != "fluency"}
    known = [x for x in _places(data) if any(x in v for v in finals.values())]
    lowest = {x: min((v[x], name) for name, v in finals.items() if x in v) for x in known}
    if not lowest:
        return None
    ends = sorted(lowest, key=lambda x: lowest[x] if data.axis.ticks else x)
    first, last = ends[0], ends[-1]

    def paint(axes: Axes) -> None:
        curves(axes, data, named, baselines=False)
        axes.set(ylabel=ylabel)
        legend(axes, columns=5)

    def end(x: float) -> str:
        value = f"{lowest[x][0]:.0f}{unit}" if unit else number(lowest[x][0], 2)
        return f"{value} ({lowest[x][1]}) at {_tick(data, x)}"

    title = f"Lowest {what}: {end(first)}, {end(last)}" if first != last else f"Lowest {what}: {end(first)}"
    words = "; ".join(f"{name}: {_words(data, value)}" for name, value in named)
    return Plot(title, f"{ylabel}. {words}. {title}.", draw(paint), bands(data))


def pareto(data: SweepData) -> Plot | None:
    """Mean against worst held-out loss: which settings no other beats in both; None where nothing was measured."""
    points = mean_and_worst(data.settings)
    front = sorted(pareto_front(points), key=lambda i: points[i])
    if not front:
        return None

    def paint(axes: Axes) -> None:
        for i, (setting, (x, y)) in enumerate(zip(data.settings, points, strict=True)):
            colour = PALETTE[0] if i in front else "#8a9096"
            axes.plot(setting.over(average), setting.over(worst), ".", color=colour, markersize=4, alpha=0.5)
            axes.plot(x, y, "s" if setting.baseline else "o", color=colour, markersize=7)
            axes.annotate(setting.label, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.plot(*np.array([points[i] for i in front]).T, color=PALETTE[0], linewidth=1.2, drawstyle="steps-post")
        axes.margins(x=0.16)
        axes.set(xlabel="mean held-out loss over dimensions", ylabel="worst dimension's loss")

    names = [data.settings[i].label for i in front]
    verb = "is" if len(front) == 1 else "are"
    title = f"{len(front)} of {len(points)} settings {verb} on the Pareto front: {_shortened(names)}"
    words = "; ".join(f"{s.label} {number(x)}, {number(y)}" for s, (x, y) in zip(data.settings, points, strict=True))
    note = "Lower is better in both. Squares: baselines; small dots: single seeds; grey: beaten by another setting."
    return Plot(title, f"Scatter plot of mean and worst held-out loss: {words}. {title}.", draw(paint, 3.2), note)


def shadow_prices(data: SweepData, prices: Sequence[Price]) -> Plot | None:
    """The multipliers at each tolerance, and the slope of the optimal objective between neighbours."""
    if not prices:
        return None
    series = list(dict.fromkeys(p.series for p in prices))

    def paint(axes: Axes) -> None:
        for k, name in enumerate(series):
            own = [p for p in prices if p.series == name]
            ends = {p.left.x: p.total[0] for p in own} | {p.right.x: p.total[1] for p in own}
            label = f"multipliers{f' ({name})' if name else ''}"
            _errorbar(axes, list(ends), list(ends.values()), PALETTE[2 * k % 6], MARKERS[k], DASHES[0], label)
            for i, p in enumerate(own):
                x, ink = [p.left.x, p.right.x], PALETTE[(2 * k + 1) % 6]
                if math.isfinite(p.measured.lower):
                    band = p.given_away * p.measured.lower, p.given_away * p.measured.upper
                    axes.fill_between(x, *band, color=ink, alpha=0.18, linewidth=0)
                slope = p.given_away * p.measured.mean
                axes.plot(x, [slope] * 2, color=ink, linewidth=2, label="" if i else "slope of the optimum")
        tops = [v for p in prices for v in (*(s.mean for s in p.total), p.given_away * p.measured.mean)]
        axes.set(xlabel=data.axis.label, ylabel="price of tolerance", ylim=(min(0.0, *tops) * 1.3, 1.35 * max(tops)))
        legend(axes, columns=2)

    judged = [p for p in prices if p.agrees is not None]
    agreeing = sum(bool(p.agrees) for p in judged)
    if judged:
        title = f"Multipliers and slope of the optimum agree in {agreeing} of {len(judged)} active intervals"
    else:
        title = "No interval can be judged: no constraint presses at both ends, or there is one seed only"
    words = "; ".join(
        f"{exact(p.left.x)} to {exact(p.right.x)}: "
        f"slope {number(p.measured.mean)}, multipliers {number(p.implied.mean)}"
        for p in prices
    )
    note = "Points: sum of the multipliers; bars: fall of the optimal objective per unit of loss that is given away."
    return Plot(title, f"Prices of tolerance. {words}. {title}.", draw(paint, 3.0), f"{note} Bands: 95 % over seeds.")


def paired_worst(data: SweepData, reference: Setting, differences: Sequence[tuple[Setting, Spread]]) -> Plot | None:
    """Worst dimension's held-out loss against the reference setting, in pairs of equal seed."""
    rows = [(s, d) for s, d in differences if s is not reference and d.n]
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        for y, (_, d) in enumerate(rows):
            better = math.isfinite(d.upper) and d.upper < 0
            worse = math.isfinite(d.lower) and d.lower > 0
            colour = "#009E73" if better else "#D55E00" if worse else "#8a9096"
            if math.isfinite(d.lower):
                axes.plot([d.lower, d.upper], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot(d.mean, y, "o", color=colour, markersize=7)
        axes.axvline(0, color="black", linewidth=1)
        axes.set_yticks(range(len(rows)), [s.label for s, _ in rows])
        axes.set(xlabel=f"worst dimension's loss minus that of {reference.label}", ylim=(len(rows) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")

    best, gain = min(rows, key=lambda row: row[1].mean)
    error = f" ± {number((gain.upper - gain.lower) / 2, 2)}" if math.isfinite(gain.lower) else ""
    if gain.mean < 0:
        gained = f"{number(gain.mean)}{error}"
        title = f"{best.label} lowers the worst dimension's loss most: {gained} against {reference.label}"
    else:
        title = f"No setting has a lower worst-dimension loss than {reference.label}"
    words = "; ".join(f"{s.label} {number(d.mean)} [{number(d.lower)}, {number(d.upper)}]" for s, d in rows)
    note = "Differences between cells of equal seed, which saw the same batches; bars: 95 % t intervals over the pairs."
    return Plot(title, f"Interval plot: {words}. {title}.", draw(paint, 0.9 + 0.3 * len(rows)), note)


def worst_curve(data: SweepData) -> Plot | None:
    means = _means(data, worst)
    if not means:
        return None

    def paint(axes: Axes) -> None:
        curves(axes, data, [("", worst)])
        axes.set(ylabel="worst dimension's held-out loss")
        if len(data.lines) > 1 or data.baselines:
            legend(axes, columns=3)

    x, low = min(means, key=lambda m: m[1])
    title = f"The worst dimension does best at {_tick(data, x)}: loss {number(low)}"
    return Plot(title, f"Worst dimension's held-out loss. {_words(data, worst)}. {title}.", draw(paint), bands(data))


def curves(
    axes: Axes,
    data: SweepData,
    named: Sequence[tuple[str, Value]],
    colours: Sequence[str] = PALETTE,
    baselines: bool = True,
) -> None:
    """Values along the axis: a colour per name, a dash per series; baselines as horizontal lines."""
    for k, (name, value) in enumerate(named):
        for j, (series, settings) in enumerate(data.lines.items()):
            xs, spreads = [s.x for s in settings], [over_seeds(s.over(value)) for s in settings]
            label = ", ".join(filter(None, (name, series))) or "sweep"
            colour = colours[(k if len(named) > 1 else j) % len(colours)] if len(colours) > 1 else colours[0]
            for s in settings:
                axes.plot([s.x] * len(s.cells), s.over(value), ".", color=colour, markersize=4, alpha=0.5)
            dash = "none" if data.axis.ticks else DASHES[j % len(DASHES)]  # settings in a row have nothing in between
            _errorbar(axes, xs, spreads, colour, MARKERS[k % len(MARKERS)], dash, label)
        if baselines:
            for i, s in enumerate(data.baselines):
                dash = DASHES[(i + 1) % len(DASHES)]
                axes.axhline(over_seeds(s.over(value)).mean, color="#565d64", linestyle=dash, lw=1.2, label=s.label)
    axes.set(xlabel=data.axis.label)
    if data.axis.ticks:
        axes.set_xticks(range(len(data.axis.ticks)), data.axis.ticks, rotation=30, ha="right")


def _errorbar(
    axes: Axes, xs: Sequence[float], spreads: Sequence[Spread], colour: str, marker: str, dash: Any, label: str
) -> None:
    means = [s.mean for s in spreads]
    axes.plot(xs, means, marker=marker, color=colour, linestyle=dash, linewidth=1.8, markersize=5, label=label)
    for x, s in zip(xs, spreads, strict=True):
        if math.isfinite(s.lower):
            axes.plot([x, x], [s.lower, s.upper], color=colour, linewidth=1.2, alpha=0.7)


def _places(data: SweepData) -> list[float]:
    return sorted({s.x for s in data.settings if not s.baseline})


def _tick(data: SweepData, x: float) -> str:
    return data.axis.ticks[int(x)] if data.axis.ticks else f"{data.axis.label} {exact(x)}"


def _means(data: SweepData, value: Value) -> list[tuple[float, float]]:
    """(x, mean over seeds) along the first series, known values only."""
    settings = next(iter(data.lines.values()), [])
    points = [(s.x, over_seeds(s.over(value)).mean) for s in settings]
    return [(x, mean) for x, mean in points if math.isfinite(mean)]


def _range(means: Sequence[tuple[float, float]]) -> str:
    values = [mean for _, mean in means]
    return f"{number(min(values))} to {number(max(values))}" if values else "unknown"


def _words(data: SweepData, value: Value) -> str:
    return ", ".join(f"{s.label} {number(over_seeds(s.over(value)).mean)}" for s in data.settings)


def _shortened(names: Sequence[str], most: int = 4) -> str:
    return listing(names) if len(names) <= most else f"{', '.join(names[:most])}, …"


def cost(data: SweepData, rows: Sequence[dict[str, Any]]) -> Plot:
    """Training time of every cell."""
    seconds = [float(row["seconds"]) for row in rows]

    def paint(axes: Axes) -> None:
        axes.barh(range(len(rows)), seconds, color=PALETTE[0])
        axes.set_yticks(range(len(rows)), [f"{r['label']} s{r['seed']}" for r in rows], fontsize=8)
        axes.set(xlabel="seconds of training", ylim=(len(rows) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")

    tokens = sum(float(row["tokens"]) for row in rows)
    title = f"{len(rows)} cells took {number(sum(seconds))} s of training for {tokens / 1e6:,.2f} million tokens"
    spread = percent(float(np.std(seconds) / np.mean(seconds))) if sum(seconds) else ""
    words = f"Bar plot of seconds per cell, {number(min(seconds))} to {number(max(seconds))}, varying by {spread}"
    return Plot(title, f"{words}. {title}.", draw(paint, 0.9 + 0.17 * len(rows)))
