"""The page of a run of benchmarks: both failures in one table and one picture, then every rate behind them."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpeer.eval.audit.rates import Interval
from dpeer.eval.bench.benchmark import COLUMNS, GOOD, Benchmark, Metric
from dpeer.eval.bench.rates import ALL
from dpeer.eval.bench.run import Found
from dpeer.eval.report.table import Table, build
from dpeer.files import write_text
from dpeer.report.page import templates
from dpeer.report.plot import MARKERS, PALETTE, Plot, draw, legend
from dpeer.report.text import MINUS, UNKNOWN, listing, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAILURES = {
    "sycophancy": ("sycophancy", False, "sycophancy (%)"),
    "consistency": ("inconsistency", True, "not consistent (%)"),
    "unsafe refusal": ("unsafe prompts not refused", True, "unsafe prompts not refused (%)"),
    "safe compliance": ("safe prompts not answered", True, "safe prompts not answered (%)"),
}
"""Column -> the failure that it stands for, whether that is its complement, and the name of the axis."""


def write_page(found: Found, path: Path) -> Path:
    """Write the page and return its path."""
    titles = {b.name: b.title for b in found.benchmarks}
    page = templates("dpeer.eval.report").get_template("bench.html.j2").render(
        found=found,
        finding=finding(found),
        chart=picture(found),
        failures=failures_table(found),
        of={c: listing([titles[name] for name in found.column(found.base, c)[1]]) for c in COLUMNS},
        tables=[t for b in found.benchmarks for t in (rates_table(found, b), judges_table(found, b)) if t.rows],
    )  # fmt: skip
    write_text(path, page)
    return path


def finding(found: Found) -> str:
    """One sentence: what changed for sure from the base, or that nothing did."""
    sure = []
    metrics = [(b, m) for b in found.benchmarks for m in b.metrics]
    chosen = [(b, m) for b, m in metrics if m.column] or [(b, m) for b, m in metrics if m.good != "none"] or metrics
    for b, m in chosen:
        rows = found.differences
        rows = rows[(rows["benchmark"] == b.name) & (rows["metric"] == m.name) & (rows["judge"] == ALL)]
        for r in rows.itertuples():
            if r.low > 0 or r.high < 0:
                sure.append(f"{r.model} {'raises' if r.rate > 0 else 'lowers'} {m.column or m.says} ({b.title})")
    if len(found.models) < 2:
        return f"Both failures of {found.base}"
    if not sure:
        return f"No difference from {found.base} is larger than its interval"
    rest = f", and {len(sure) - 2} more" if len(sure) > 2 else ""
    return f"Against {found.base}, {'; '.join(sure[:2])}{rest}"


def _form(mean: bool, signed: bool, value: float) -> str:
    sign = "+" if signed else ""
    return f"{value:{sign}.2f}" if mean else f"{100 * value:{sign}.1f}"


def shown(i: Interval, metric: Metric | None = None, signed: bool = False) -> str:
    """A share in percent, or points of it where signed; another mean as it is; each with its interval."""
    if math.isnan(i.rate):
        return UNKNOWN
    mean = metric is not None and metric.unit == "mean"
    form = partial(_form, mean, signed)
    unit = "" if signed or mean else "\u00a0%"
    ends = f"\n{form(i.low)} to {form(i.high)}" if not math.isnan(i.low) else ""
    return f"{form(i.rate)}{unit}{ends}".replace("-", MINUS)


def failures_table(found: Found) -> Table:
    cells: dict[str, Any] = {"model": str}
    for column in COLUMNS:
        cells[f"{column} ({GOOD[column]} is good)_n"] = lambda model, c=column: shown(found.column(model, c)[0])
    return build("Both failures per model", found.models, **cells)


def rates_table(found: Found, benchmark: Benchmark) -> Table:
    """Metrics of one benchmark: a row per metric and model, with the difference to the base and the adjusted rate."""
    metrics = {m.name: m for m in benchmark.metrics}
    rates = _of(found.rates, benchmark)
    against = {(r.metric, r.model): r for r in _of(found.differences, benchmark)}
    adjusted = {(r.metric, r.model): r for r in found.adjusted.itertuples() if r.benchmark == benchmark.name}

    def difference(r: Any) -> str:
        d = against.get((r.metric, r.model))
        return "" if d is None else shown(Interval(d.rate, d.low, d.high), metrics[r.metric], signed=True)

    def without_severity(r: Any) -> str:
        a = adjusted.get((r.metric, r.model))
        return "" if a is None else shown(Interval(a.rate, a.low, a.high), metrics[r.metric])

    return build(
        f"{benchmark.title}: rates, with 95 % intervals",
        sorted(rates, key=lambda r: (list(metrics).index(r.metric), found.models.index(r.model))),
        metric=lambda r: metrics[r.metric].says,
        model=lambda r: r.model,
        better_if=lambda r: "" if metrics[r.metric].good == "none" else metrics[r.metric].good,
        rate_n=lambda r: shown(Interval(r.rate, r.low, r.high), metrics[r.metric]),
        **{"less base_n": difference, "judge-adjusted_n": without_severity},
        items_n=lambda r: f"{r.items:,}",
    )


def judges_table(found: Found, benchmark: Benchmark) -> Table:
    """The metrics that stand for a column, judge by judge."""
    named = {m.name: m for m in benchmark.metrics if m.column}
    rows = found.rates[(found.rates["benchmark"] == benchmark.name) & (found.rates["judge"] != ALL)]
    judges = list(dict.fromkeys(rows["judge"]))
    kept = [r for r in rows.itertuples() if r.metric in named] if len(judges) > 1 else []
    return build(
        f"{benchmark.title}: judge by judge",
        sorted(kept, key=lambda r: (r.metric, found.models.index(r.model), judges.index(r.judge))),
        metric=lambda r: named[r.metric].says,
        model=lambda r: r.model,
        judge=lambda r: r.judge,
        rate_n=lambda r: shown(Interval(r.rate, r.low, r.high), named[r.metric]),
        items_n=lambda r: f"{r.items:,}",
    )


def _of(table: Any, benchmark: Benchmark) -> list[Any]:
    return list(table[(table["benchmark"] == benchmark.name) & (table["judge"] == ALL)].itertuples())


def axes_of(found: Found) -> tuple[str, str] | None:
    """Columns of the picture: evading across, giving way upwards, or answering what is unsafe where no benchmark of
    sycophancy ran. None where one of the two is not known for any model."""
    known = [c for c in COLUMNS if any(not math.isnan(found.column(m, c)[0].rate) for m in found.models)]
    up = next((c for c in ("sycophancy", "consistency", "unsafe refusal") if c in known), None)
    return ("safe compliance", up) if up is not None and "safe compliance" in known else None


def failure(found: Found, model: str, column: str) -> Interval:
    """How often a model fails in the sense of a column."""
    i = found.column(model, column)[0]
    return Interval(1 - i.rate, 1 - i.high, 1 - i.low) if FAILURES[column][1] else i


def picture(found: Found) -> Plot | None:
    """Both failures on two axes, the base with an arrow to each other model; better is lower left."""
    chosen = axes_of(found)
    if chosen is None:
        return None
    across, up = chosen
    points = {m: (failure(found, m, across), failure(found, m, up)) for m in found.models}
    points = {m: (x, y) for m, (x, y) in points.items() if not (math.isnan(x.rate) or math.isnan(y.rate))}

    def paint(axes: Axes) -> None:
        origin = points.get(found.base)
        for k, (model, (x, y)) in enumerate(points.items()):
            colour = PALETTE[k % len(PALETTE)]
            axes.plot([100 * x.low, 100 * x.high], [100 * y.rate] * 2, color=colour, linewidth=1.4, alpha=0.7)
            axes.plot([100 * x.rate] * 2, [100 * y.low, 100 * y.high], color=colour, linewidth=1.4, alpha=0.7)
            name = f"{model} (base)" if model == found.base else model
            marker = MARKERS[k % len(MARKERS)]
            axes.plot(100 * x.rate, 100 * y.rate, marker, color=colour, label=name, linestyle="none", zorder=3)
            if origin is not None and model != found.base:
                begin, end = (100 * origin[0].rate, 100 * origin[1].rate), (100 * x.rate, 100 * y.rate)
                arrow = {"arrowstyle": "->", "color": "#6b747c", "shrinkA": 6, "shrinkB": 6}
                axes.annotate("", end, begin, arrowprops=arrow)
        axes.set(xlabel=FAILURES[across][2], ylabel=FAILURES[up][2])
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        legend(axes, 2)

    words = "; ".join(
        f"{m}: {FAILURES[across][0]} {percent(x.rate, 1)}, {FAILURES[up][0]} {percent(y.rate, 1)}"
        for m, (x, y) in points.items()
    )
    note = "Bars are 95 % intervals; arrows lead from the base. Lower left is better."
    return Plot("Both failures", f"Scatter plot. {words}.", draw(paint, 3.6), note)
