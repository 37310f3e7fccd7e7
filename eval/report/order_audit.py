"""The page of an order audit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpeer.eval.audit.audit import Audit, Group
from dpeer.eval.audit.rates import Interval
from dpeer.files import write_text
from dpeer.report.page import templates
from dpeer.report.plot import PALETTE, Plot, draw, legend
from dpeer.report.text import UNKNOWN, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LABEL = 20
"""Characters of a source's name in the picture, its last: the folders before it say least."""


def shown(interval: Interval | None) -> str:
    """E.g. "9.8 % (7.1 to 13.2)"; a dash where nothing is known."""
    if interval is None or math.isnan(interval.rate):
        return UNKNOWN
    return f"{percent(interval.rate, 1)} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def best_known(group: Group) -> Interval:
    """The rate without chance errors, or the rate as judged where there is none."""
    return group.corrected or group.rate


def finding(audit: Audit) -> str:
    """One sentence: the group whose order is contradicted most."""
    known = [g for g in audit.groups if not math.isnan(best_known(g).rate)]
    if not known:
        return "No judge takes a side on any edge"
    most = max(known, key=lambda g: best_known(g).rate)
    rate = best_known(most)
    where = f"{most.dimension} of {most.source}" if len({g.source for g in known}) > 1 else most.dimension
    return f"Judges contradict the order most in {where}: {shown(rate)} of its edges"


def write_page(audit: Audit, path: Path) -> Path:
    """Write the page and return its path."""
    template = templates("dpeer.eval.report").get_template("order_audit.html.j2")
    several = len({g.source for g in audit.groups}) > 1
    page = template.render(audit=audit, finding=finding(audit), several=several, chart=_chart(audit.groups))
    write_text(path, page)
    return path


def _chart(groups: Sequence[Group]) -> Plot:
    several = len({g.source for g in groups}) > 1
    labels = [f"{g.source[-LABEL:]}: {g.dimension}" if several else g.dimension for g in groups]

    def paint(axes: Axes) -> None:
        kinds = (("as judged", -0.12, PALETTE[1], "s"), ("without chance errors", 0.12, PALETTE[0], "o"))
        for label, shift, colour, marker in kinds:
            known = [(y, g.rate if shift < 0 else g.corrected) for y, g in enumerate(groups)]
            points = [(y + shift, i) for y, i in known if i is not None and not math.isnan(i.rate)]
            for y, i in points:
                axes.plot([100 * i.low, 100 * i.high], [y, y], color=colour, linewidth=2)
            if points:
                rates = [100 * i.rate for _, i in points]
                axes.plot(rates, [y for y, _ in points], marker, color=colour, label=label, linestyle="none")
        axes.set_yticks(range(len(groups)), labels)
        axes.set(xlabel="violated edges (%), with 95 % intervals", ylim=(len(groups) - 0.4, -0.6))
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")
        legend(axes)

    words = "; ".join(
        f"{label}: {shown(g.rate)} as judged, {shown(g.corrected)} without chance errors"
        for label, g in zip(labels, groups, strict=True)
    )
    return Plot("How often judges contradict the order", f"Dot plot. {words}.", draw(paint, 1.2 + 0.45 * len(groups)))
