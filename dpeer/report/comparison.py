"""The training arms of an experiment side by side: how often each behaves well, per dimension, with intervals."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dpeer.files import write_text
from dpeer.report.differences import Difference, cost_sentence, difference, phi, point_bounds, points
from dpeer.report.page import templates
from dpeer.report.plot import MARKERS, PALETTE, Z95, Plot, draw, legend
from dpeer.report.run import NAN, Rate
from dpeer.report.text import bounds, interval, listing, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


FLUENCY = "fluency"


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One arm. `shares`: good behaviour per dimension in [0, 1], each over `n` responses; `fluency` likewise.

    satisfied, constraints: held-out constraints met and in all; None for an arm without constraints
    report: the arm's own report page, if it has one
    selection: share of held-out records whose golden answer ranks first, if it is known
    good, fluent: what is true of each response, per dimension and of fluency, in an order of prompts that all arms
        share: pairs an arm with the baseline; without them arms count as independent
    """

    name: str
    shares: dict[str, float]
    n: int
    fluency: float
    satisfied: int | None
    constraints: int | None
    report: Path | None
    note: str = ""
    selection: Rate | None = None
    good: Mapping[str, Sequence[bool]] = field(default_factory=dict)
    fluent: Sequence[bool] = ()

    def rate(self, dimension: str) -> Rate:
        return wilson(self.shares.get(dimension, NAN), self.n)

    @property
    def mean(self) -> float:
        """Over its dimensions."""
        return sum(self.shares.values()) / len(self.shares)

    def against(self, base: ArmRow, dimensions: Sequence[str]) -> dict[str, Difference]:
        """This arm's share minus the base's in each dimension and in fluency."""
        changes = {
            d: difference(self.rate(d), base.rate(d), _paired(self.good.get(d, ()), base.good.get(d, ())))
            for d in dimensions
        }
        mine, theirs = wilson(self.fluency, self.n), wilson(base.fluency, base.n)
        return changes | {FLUENCY: difference(mine, theirs, _paired(self.fluent, base.fluent))}

    @property
    def worst(self) -> str:
        """The dimension with the lowest share."""
        return min(self.shares, key=lambda d: self.shares[d])


def _paired(x: Sequence[bool], y: Sequence[bool]) -> float:
    return phi(x, y) if x and len(x) == len(y) else 0.0


def wilson(share: float, n: int) -> Rate:
    """Share with its 95 % Wilson score interval (Wilson 1927); the bounds are nan when nothing was counted."""
    if n < 1 or math.isnan(share):
        return Rate(rate=share, n=n)
    shrink = 1 + Z95**2 / n
    centre = (share + Z95**2 / (2 * n)) / shrink
    half = Z95 / shrink * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return Rate(rate=share, lower=max(0.0, centre - half), upper=min(1.0, centre + half), n=n)


def comparison_finding(rows: Sequence[ArmRow]) -> str:
    """Which arm has the strongest weakest dimension, and whether the runner-up is within the intervals."""
    ranked = sorted(rows, key=lambda row: row.shares[row.worst], reverse=True)
    best = ranked[0]
    share = percent(best.shares[best.worst])
    sentence = f"{best.name} has the best worst dimension: {best.worst}, good in {share} of responses"
    if len(ranked) == 1:
        return sentence
    second = ranked[1]
    overlap = best.rate(best.worst).lower <= second.rate(second.worst).upper
    behind = f"{second.name}, {second.worst}, {percent(second.shares[second.worst])}"
    return f"{sentence} (next: {behind}{'; intervals overlap' if overlap else ''})"


def share_plot(rows: Sequence[ArmRow], dimensions: Sequence[str]) -> Plot:
    """Grouped dot plot: one group of arms per dimension, 95 % intervals as bars."""
    gap = 0.8 / len(rows)

    def paint(axes: Axes) -> None:
        for k, row in enumerate(rows):
            colour, rates = PALETTE[k % len(PALETTE)], [row.rate(d) for d in dimensions]
            heights = [i + (k - (len(rows) - 1) / 2) * gap for i in range(len(dimensions))]
            axes.hlines(heights, [100 * r.lower for r in rates], [100 * r.upper for r in rates], color=colour, lw=1.8)
            marker = MARKERS[k % len(MARKERS)]
            axes.plot([100 * r.rate for r in rates], heights, marker, color=colour, markersize=6, label=row.name)
        for edge in range(1, len(dimensions)):
            axes.axhline(edge - 0.5, color="#b8bdc2", linewidth=0.8)
        axes.set_yticks(range(len(dimensions)), dimensions)
        axes.set(xlabel="responses with good behaviour (%)", xlim=(-2, 102), ylim=(len(dimensions) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")
        legend(axes, columns=2)

    words = "; ".join(f"{row.name}: " + ", ".join(f"{d} {interval(row.rate(d))}" for d in dimensions) for row in rows)
    height = 1.2 + 0.2 * (len(rows) // 2) + 0.19 * len(rows) * len(dimensions)
    note = "Bars: 95 % Wilson intervals."
    return Plot(_leaders(rows, dimensions), f"Dot plot. {words}.", draw(paint, height), note)


def _leaders(rows: Sequence[ArmRow], dimensions: Sequence[str]) -> str:
    """Who leads where, e.g. "Lagrangian leads on T and E; SFT on A"."""
    leads: dict[str, list[str]] = {}
    for d in dimensions:
        leader = max(rows, key=lambda row: row.shares.get(d, -math.inf))
        leads.setdefault(leader.name, []).append(d)
    parts = [f"{name} {'leads ' * (i == 0)}on {listing(where)}" for i, (name, where) in enumerate(leads.items())]
    title = "; ".join(parts)
    return title[0].upper() + title[1:]


def write_comparison(
    rows: Sequence[ArmRow], path: Path, baseline: str | None = None, subject: str | None = None
) -> Path:
    """Write the comparison page of at least one arm to `path`, with links to each arm's report relative to it.

    `baseline` names the arm that the others are subtracted from, `subject` the one whose differences are said in words.
    """
    assert rows, "a comparison needs at least one arm"
    dimensions = tuple(dict.fromkeys(d for row in rows for d in row.shares))
    links = {row.name: Path(os.path.relpath(row.report, path.parent)).as_posix() for row in rows if row.report}
    counts = sorted({row.n for row in rows})
    base = next((row for row in rows if row.name == baseline), None)
    changes = {row.name: row.against(base, dimensions) for row in rows if base and row is not base}
    page = templates().get_template("comparison.html.j2").render(
        finding=comparison_finding(rows),
        rows=rows,
        dimensions=dimensions,
        links=links,
        responses=f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}",
        baseline=baseline,
        changes=changes,
        paired=base is not None and all(row.good for row in rows),
        selected=any(row.selection for row in rows),
        cost=cost_sentence(subject, baseline, changes[subject]) if baseline and subject in changes else "",
        chart=share_plot(rows, dimensions),
        bounds=bounds,
        points=points,
        point_bounds=point_bounds,
    )  # fmt: skip
    write_text(path, page)
    return path
