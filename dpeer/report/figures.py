"""One function per plot of the report: a run in, a titled picture out. The title states the finding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpeer.report.plot import LIMIT, PALETTE, Z95, Line, Plot, Series, draw, line_plot, smooth, thin
from dpeer.report.run import NAN, DimensionStep, Run, Step
from dpeer.report.text import NBSP, constraint_form, exact, foremost, interval, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = len(PALETTE)
MOST_PANELS = 12
VERDICT_STYLE = {"satisfied": ("#009E73", "o"), "violated": ("#D55E00", "X"), "undecided": ("#E69F00", "D")}


def smoothing_span(run: Run) -> int:
    """Steps that the smoothed lines average over: a fifteenth of the run, at least 5."""
    return max(5, len(run.ledger) // 15)


def series(run: Run, value: Callable[[Step], float]) -> Series:
    return np.array([value(step) for step in run.ledger], dtype=np.float64)


def dimension_series(run: Run, dimension: str, field: str) -> Series:
    return series(run, lambda s: getattr(s.dimensions[dimension], field) if dimension in s.dimensions else math.nan)


def constraint_series(run: Run, name: str, field: str) -> Series:
    """Of a step that has no row for the constraint, what can be told from the rest of its line."""
    members = [run.dimensions.index(d) for d in name.split(" over ") if d in run.dimensions]
    place = _pair_place(members, len(run.dimensions))

    def value(step: Step) -> float:
        if name in step.constraints:
            return float(getattr(step.constraints[name], field))
        if step.all_constraints is None or place is None:
            return NAN
        if field == "multiplier":
            values = step.all_constraints.multipliers
            return float(values[place]) if len(values) > place else 0.0
        if field == "estimate":
            first, second = (_followed(run, step.dimensions.get(run.dimensions[d])) for d in members)
            return first - second
        return NAN

    return series(run, value)


def _pair_place(members: Sequence[int], dimensions: int) -> int | None:
    """Place of the ordered pair (i, j) among `itertools.permutations` of two."""
    if len(members) != 2:
        return None
    i, j = members
    return i * (dimensions - 1) + j - (j > i)


def _followed(run: Run, row: DimensionStep | None) -> float:
    """Loss of a dimension in the batch that the multipliers follow."""
    if row is None:
        return NAN
    split = run.get("config.objective.dual.evidence") == "split" and math.isfinite(row.dual.loss)
    return row.dual.loss if split else row.loss


def _steps(run: Run) -> Series:
    return series(run, lambda s: s.step)


def _observed(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if np.isfinite(line.values).any()]


def _largest(values: dict[str, float]) -> str:
    """Name of the largest value; unknown values count as smaller than any other."""
    return max(values, key=lambda name: np.nan_to_num(values[name], nan=-math.inf))


def _busiest(run: Run, field: str) -> list[str]:
    """At most MOST_LINES constraints, those whose value ever rose highest, in their given order."""
    peaks = {name: np.nanmax(constraint_series(run, name, field), initial=-math.inf) for name in run.constraints}
    chosen = sorted(peaks, key=lambda name: peaks[name], reverse=True)[:MOST_LINES]
    return [name for name in peaks if name in chosen]


def _not_drawn(run: Run, names: Sequence[str]) -> str:
    hidden = len(run.constraints) - len(names)
    return f"The {len(names)} constraints that rose highest; {hidden} more are not drawn." if hidden else ""


def _shared_range(lines: Sequence[Line], limits: Sequence[float]) -> tuple[float, float]:
    """One y range for panels read side by side: 1st to 99th percentile of the values and every limit, with some air."""
    values = np.concatenate([line.values[np.isfinite(line.values)] for line in lines])
    inner = np.percentile(values, [1, 99]) if len(values) else np.array([0.0, 1.0])
    marks = np.concatenate([inner, [x for x in limits if math.isfinite(x)]])
    air = 0.1 * float(np.ptp(marks)) or 0.1
    return float(marks.min()) - 2 * air, float(marks.max()) + 2 * air


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines of one quantity; the title is about the first."""

    name: str
    lines: list[Line]
    limit: float = math.inf
    aim: Series | None = None
    unit: str = ""


def _panels(run: Run, panels: Sequence[Panel], ylabel: str) -> list[Plot]:
    """One plot per panel against its own limit, all on the same scale."""
    span = smoothing_span(run)
    ylim = _shared_range([line for p in panels for line in p.lines], [p.limit for p in panels])
    plots = []
    for k, p in enumerate(panels):
        ends = [smooth(line.values, span=span)[0][-1] for line in p.lines]
        title = f"{p.name} ends at {number(ends[0])}{p.unit}"
        if len(p.lines) > 1:
            title += f" on the {p.lines[0].name} ({number(ends[1], 2)}{p.unit} in training)"
        if math.isfinite(p.limit):
            title += f", {'above' if ends[0] > p.limit else 'within'} its tolerance {exact(p.limit)}"
        style: dict[str, Any] = {"limit": p.limit, "aim": p.aim, "ylim": ylim, "colour": PALETTE[k % len(PALETTE)]}
        plots.append(line_plot(_steps(run), p.lines, ylabel, title, span=span, **style))
    return plots


def _both(run: Run, dimension: str, field: str, scale: float = 1) -> list[Line]:
    """A dimension's mean over the dual split's batches, where there are any, and over the training batches."""
    trained = Line("training", scale * dimension_series(run, dimension, field))
    unseen = series(run, lambda s: getattr(s.dimensions[dimension].dual, field) if dimension in s.dimensions else NAN)
    return _observed([Line("dual split", scale * unseen), trained])


def _aim(run: Run, name: str) -> Series | None:
    """Where the multiplier of a constraint holds it, if that was ever below the tolerance."""
    aim, tolerance = (constraint_series(run, name, field) for field in ("aim", "tolerance"))
    return aim if (aim < tolerance).any() else None


def hardest(run: Run) -> list[str]:
    """The dimensions that get panels of their own, in their order: of many those with the highest loss at the end."""

    def end(dimension: str) -> float:
        values = (_both(run, dimension, "loss") or [Line(dimension, np.array([NAN]))])[0].values[-smoothing_span(run) :]
        return float(np.nan_to_num(np.nanmean(values) if np.isfinite(values).any() else NAN, nan=-math.inf))

    if len(run.dimensions) <= MOST_PANELS:
        return list(run.dimensions)
    chosen = sorted(run.dimensions, key=end, reverse=True)[:MOST_PANELS]
    return [d for d in run.dimensions if d in chosen]


def loss_panels(run: Run) -> list[Plot]:
    """Loss of each dimension, against its tolerance where the constraint is on the loss itself."""
    on_loss = run.ledger[-1].constraints if constraint_form(run).bounds_loss else {}
    panels = []
    for d in hardest(run):
        if lines := _both(run, d, "loss"):
            bound = (on_loss[d].tolerance, _aim(run, d)) if d in on_loss else (math.inf, None)
            panels.append(Panel(d, lines, *bound))
    unit = " (nats)" if run.get("config.objective.loss", "sigmoid") == "sigmoid" else ""
    return _panels(run, panels, f"loss per edge{unit}") if panels else []


def constraint_panels(run: Run) -> list[Plot]:
    """Constraint values against their tolerances, for the forms where they are not the losses themselves."""
    if constraint_form(run).bounds_loss:
        return []
    panels = []
    for name in _busiest(run, "estimate"):
        if lines := _observed([Line(name, constraint_series(run, name, "estimate"))]):
            known = constraint_series(run, name, "tolerance")
            panels.append(Panel(name, lines, known[np.isfinite(known)][-1], _aim(run, name)))
    return _panels(run, panels, "constraint value") if panels else []


def win_panels(run: Run) -> list[Plot]:
    """Share of each dimension's pairs that are ranked right."""
    panels = [Panel(d, lines, unit=f"{NBSP}%") for d in hardest(run) if (lines := _both(run, d, "accuracy", 100))]
    return _panels(run, panels, "pairs ranked right (%)") if panels else []


def golden_first(run: Run) -> Plot | None:
    """How often golden has the highest log-probability per token of its record, on the dual split."""
    lines = _observed([Line("golden first", 100 * series(run, lambda s: s.dual_selected))])
    if not lines:
        return None
    span = smoothing_span(run)
    end = smooth(lines[0].values, span=span)[0][-1]
    title = f"Golden ranks first in {end:.0f} % of the dual split's records at the end"
    return line_plot(_steps(run), lines, "golden ranks first (% of records)", title, span=span)


def floored(run: Run) -> Plot | None:
    """Weight below 0 that multipliers asked for and did not get."""
    lines = [Line(d, 100 * dimension_series(run, d, "floored")) for d in hardest(run)[:MOST_LINES]]
    lines = [line for line in lines if np.nanmax(line.values, initial=0) > 0]
    if not lines:
        return None
    top = _largest({line.name: float(np.nanmax(line.values)) for line in lines})
    title = f"Multipliers asked to un-learn {top}, whose weight stays at 0 instead"
    return line_plot(_steps(run), lines, "weight not given (%)", title)


def multipliers(run: Run) -> Plot | None:
    if not run.lagrangian:
        return None
    names = _busiest(run, "multiplier")
    lines = _observed([Line(name, constraint_series(run, name, "multiplier")) for name in names])
    if not lines:
        return None
    final = {line.name: float(line.values[-1]) for line in lines}
    top = _largest(final)
    if final[top] > 0:
        title = f"{top} presses hardest at the end: multiplier {number(final[top])}"
    elif any(np.nanmax(line.values) > 0 for line in lines):
        title = "Every multiplier is back at zero at the end"
    else:
        title = "No constraint ever pressed: all multipliers stay at zero"
    return line_plot(_steps(run), lines, "multiplier λ", title, note=_not_drawn(run, names))


def weights(run: Run) -> Plot | None:
    lines = _observed([Line(d, 100 * dimension_series(run, d, "weight")) for d in hardest(run)[:MOST_LINES]])
    if not lines:
        return None
    final = {line.name: float(line.values[-1]) for line in lines}
    top = _largest(final)
    level = np.nanmax(list(final.values())) - np.nanmin(list(final.values())) < 0.5
    title = "All dimensions weigh the same at the end" if level else f"{top} weighs most at the end: {final[top]:.0f} %"
    return line_plot(_steps(run), lines, "weight in the loss (%)", title)


def margins(run: Run) -> Plot | None:
    lines = _observed(
        [
            Line(d, dimension_series(run, d, "margin"), dimension_series(run, d, "margin_se"))
            for d in hardest(run)[:MOST_LINES]
        ]
    )
    if not lines:
        return None
    span = smoothing_span(run)
    means = {line.name: float(smooth(line.values, span=span)[0][-1]) for line in lines}
    lowest = min(lines, key=lambda line: means[line.name])
    se = float(smooth(lowest.values, lowest.se, span)[1][-1])
    error = f" ± {number(Z95 * se, 2)}" if math.isfinite(se) else ""
    title = f"{lowest.name} has the smallest margin at the end: {number(means[lowest.name])}{error}"
    note = "Bands: 95 %, from the standard errors of the steps that the line averages over."
    return line_plot(_steps(run), lines, "margin (nats, scaled by β)", title, span=span, note=note)


def drift(run: Run) -> Plot | None:
    """Log-probability of golden and rejected responses: preference training can lower both."""
    lines = _observed(
        [
            Line("golden", series(run, lambda s: s.golden_logp)),
            Line("rejected", series(run, lambda s: s.rejected_logp)),
        ]
    )
    if not lines:
        return None
    span = smoothing_span(run)
    mean = smooth(lines[0].values, span=span)[0]
    start, end = mean[np.isfinite(mean)][0], mean[-1]
    what = f"{lines[0].name.capitalize()} log-probability"
    if number(start) == number(end):
        title = f"{what} stays at {number(end)} nats per response"
    else:
        title = f"{what} {'rises' if end > start else 'falls'} from {number(start)} to {number(end)} nats per response"
    return line_plot(_steps(run), lines, "log-probability (nats)", title, span=span)


def golden_nll(run: Run) -> Plot | None:
    lines = _observed([Line("golden", series(run, lambda s: s.golden_nll))])
    if not lines:
        return None
    span = smoothing_span(run)
    end = smooth(lines[0].values, span=span)[0][-1]
    title = f"Golden responses cost {number(end)} nats per token at the end"
    return line_plot(_steps(run), lines, "golden NLL (nats per token)", title, span=span)


def throughput(run: Run) -> Plot | None:
    rates = np.array([t.tokens_per_second for t in run.timing], dtype=np.float64)
    if not np.isfinite(rates).any():
        return None
    steps = np.array([t.step for t in run.timing], dtype=np.float64)
    seconds = float(np.nansum([t.seconds for t in run.timing]))
    waited = float(np.nansum([t.reference_wait_s for t in run.timing]))
    index, median = thin(len(rates)), float(np.nanmedian(rates))

    def paint(axes: Axes) -> None:
        axes.plot(steps[index], rates[index], color=PALETTE[0], linewidth=1.2, marker="o" if len(steps) < 3 else "")
        axes.axhline(median, **LIMIT)
        axes.set(xlabel="optimizer step", ylabel="tokens per second")
        axes.set_ylim(bottom=0)

    title = f"Median throughput: {median:,.0f} tokens per second"
    note = f"{number(seconds)} s in {len(steps)} training steps"
    note += f", {percent(waited / seconds)} of them waiting for the reference." if seconds else "."
    note += _use_of_hardware(run)
    return Plot(title, f"Line plot of tokens per second over {len(steps)} steps. {title}. {note}", draw(paint), note)


def _use_of_hardware(run: Run) -> str:
    """Sentences on where the time went, and on GPUs how well they were used and how full; empty where not measured."""

    def median(name: str) -> float:
        values = np.array([getattr(t, name) for t in run.timing], dtype=np.float64)
        return float(np.nanmedian(values)) if np.isfinite(values).any() else math.nan

    said = ""
    spent = {name: float(np.nansum([t.phases.get(name, 0.0) for t in run.timing])) for name in run.timing[-1].phases}
    if total := sum(spent.values()):
        shares = ", ".join(f"{name} {percent(s / total)}" for name, s in spent.items() if s)
        said += f" Of the ranks' time: {shares}; {median('tokens_per_micro_step'):,.0f} tokens per micro-step."
    if math.isfinite(hfu := median("hfu")):
        said += (
            f" HFU {percent(hfu)} (recomputation counted as work), MFU {percent(median('mfu'))}, of the "
            f"{median('ceiling') / 1e12:,.0f} TFLOP/s that this GPU reached in a large matrix product."
        )
    if np.isfinite(taken := np.array([t.memory_allocated for t in run.timing], dtype=np.float64)).any():
        held = np.nanmax([t.memory_reserved for t in run.timing])
        said += f" GPU memory at most {np.nanmax(taken) / 2**30:.1f} GiB of tensors, {held / 2**30:.1f} GiB held."
    return said


def certificate(run: Run) -> Plot | None:
    """Interval of each constraint value on held-out records against its tolerance."""
    certificate = run.certificate
    if certificate is None or not certificate.constrained:
        return None
    everything = certificate.constrained
    rows = foremost(everything)

    def paint(axes: Axes) -> None:
        for y, c in enumerate(rows):
            colour, marker = VERDICT_STYLE[c.verdict]
            axes.plot([c.lower, c.upper], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot(c.estimate, y, marker, color=colour, markersize=7)
            axes.plot([c.tolerance] * 2, [y - 0.36, y + 0.36], color="black", linewidth=2)
        axes.set_yticks(range(len(rows)), [f"{c.name}\n{c.verdict}" for c in rows])
        axes.set(xlabel="held-out value (black bar: tolerance)", ylim=(len(rows) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")

    decided = sum(c.verdict != "undecided" for c in everything)
    title = f"The held-out records decide {decided} of {len(everything)} constraints"
    words = "; ".join(
        f"{c.name} {number(c.estimate)} [{number(c.lower)}, {number(c.upper)}], tolerance {exact(c.tolerance)}, "
        f"{c.verdict}"
        for c in rows
    )
    note = f"Coloured bars: tolerances that would be undecided, at {percent(certificate.confidence)} confidence."
    return Plot(title, f"Interval plot. {words}.", draw(paint, 0.9 + 0.48 * len(rows)), note)


def selection(run: Run) -> Plot | None:
    """How often golden has the highest length-normalised log-probability among a record's responses."""
    selection = run.certificate.selection if run.certificate else None
    if selection is None:
        return None
    rows = {"all masks": selection.overall, **selection.masks}

    def paint(axes: Axes) -> None:
        for y, rate in enumerate(rows.values()):
            colour = "black" if y == 0 else PALETTE[0]
            axes.plot([100 * rate.lower, 100 * rate.upper], [y, y], color=colour, linewidth=2)
            axes.plot(100 * rate.rate, y, "o", color=colour, markersize=6)
        axes.set_yticks(range(len(rows)), [f"{name} (n = {rate.n})" for name, rate in rows.items()])
        axes.set(xlabel="golden ranks first (% of records)", xlim=(-2, 102), ylim=(len(rows) - 0.4, -0.6))

    title = f"Golden ranks first in {interval(selection.overall)} of records"
    words = "; ".join(f"{name} {interval(rate)}" for name, rate in rows.items())
    note = "By log-probability per token among the responses of a record; bars: 95 % intervals."
    return Plot(title, f"Dot plot. {words}.", draw(paint, 0.9 + 0.27 * len(rows)), note)
