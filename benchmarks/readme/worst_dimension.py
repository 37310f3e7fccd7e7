"""The picture of README: loss of the worst dimension in the demo, Lagrangian DPO against pooled DPO.

Lines are training batches from the ledgers; points with bars are held-out records from the certificates, and the title
speaks of these. usage: worst_dimension.py [DEMO] [PICTURE], by default runs/demo docs/img/worst_dimension.svg
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpeer.errors import DpeerError
from dpeer.report.plot import LIMIT, PALETTE, Series, render, smooth, thin
from dpeer.report.run import Certified, Run, read_run
from dpeer.report.text import exact

ROOT = Path(__file__).parents[2]
ARMS = (("pooled", "pooled DPO", PALETTE[1], "s"), ("lagrangian", "Lagrangian DPO", PALETTE[0], "o"))
SPAN = 9
HEIGHT_IN = 2.9
GREY = "#595959"


@dataclass(frozen=True, slots=True)
class Curve:
    """Loss per step [S] of the dimension that is worst there, and the worst dimension on held-out records."""

    name: str
    colour: str
    marker: str
    steps: Series
    loss: Series
    heldout: Certified


def worst_loss(run: Run, span: int = SPAN) -> Series:
    """Per step the largest of the dimensions' losses, each smoothed over `span` steps: [S], in nats."""

    def losses(dimension: str) -> Series:
        steps = (step.dimensions.get(dimension) for step in run.ledger)
        return np.array([math.nan if d is None else d.loss for d in steps])

    return np.nanmax([smooth(losses(d), span=span)[0] for d in run.dimensions], axis=0)


def curve(root: Path, folder: str, name: str, colour: str, marker: str) -> Curve:
    run = read_run(root / folder)
    if run.certificate is None or not run.certificate.constraints:
        raise DpeerError(f"{run.path} has no certificate, so its held-out losses are unknown. Run `dpeer demo`.")
    worst = max(run.certificate.constraints, key=lambda c: c.estimate)
    return Curve(name, colour, marker, np.array([step.step for step in run.ledger], float), worst_loss(run), worst)


def interval(certified: Certified) -> tuple[float, float]:
    """Of the mean with every pair counted in full; certificates of earlier versions have only that."""
    mean = certified.mean
    return (certified.lower, certified.upper) if math.isnan(mean.lower) else (mean.lower, mean.upper)


def finding(curves: Sequence[Curve]) -> str:
    parts = [f"{c.heldout.estimate:.2f} with {c.name}" for c in curves]
    names = " and ".join(dict.fromkeys(c.heldout.name for c in curves))
    return f"Held-out loss of the worst dimension ({names}):\n{', '.join(parts)}"


def paint(figure: Figure, curves: Sequence[Curve]) -> None:
    figure.suptitle(finding(curves), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    axes: Axes = figure.add_subplot()
    end = max(c.steps[-1] for c in curves)
    for i, c in enumerate(curves):
        index, x = thin(len(c.steps)), end * (1.03 + 0.03 * i)
        axes.plot(c.steps[index], c.loss[index], color=c.colour, linewidth=1.8)
        low, high = interval(c.heldout)
        axes.vlines(x, low, high, color=c.colour, linewidth=1.8)
        axes.plot(x, c.heldout.estimate, c.marker, color=c.colour, markersize=6)
        words = f"{c.name}\n{c.heldout.estimate:.2f} [{low:.2f}, {high:.2f}]"
        axes.annotate(words, (end * 1.1, c.heldout.estimate), color=c.colour, va="center", annotation_clip=False)
    tolerance = curves[0].heldout.tolerance
    axes.axhline(tolerance, **LIMIT)
    axes.axhline(math.log(2), color=GREY, linestyle=(0, (1, 2)), linewidth=1)
    low, high = ("top", -3), ("bottom", 3)  # away from each other
    limits = ((tolerance, f"tolerance {exact(tolerance)}", "black", low), (math.log(2), "untrained 0.69", GREY, high))
    for y, words, ink, (side, shift) in limits:
        axes.annotate(words, (end, y), xytext=(0, shift), textcoords="offset points", ha="right", va=side, color=ink)
    axes.set(xlabel="optimizer step", ylabel="sigmoid loss (nats)", xlim=(0, end * 1.08))
    axes.set_ylim(bottom=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", nargs="?", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("picture", nargs="?", type=Path, default=ROOT / "docs" / "img" / "worst_dimension.svg")
    arguments = parser.parse_args()
    curves = [curve(arguments.demo, *arm) for arm in ARMS]
    (svg,) = render(lambda figure: paint(figure, curves), HEIGHT_IN, "svg")
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    arguments.picture.write_bytes(svg)
    print(finding(curves).replace("\n", " "))


if __name__ == "__main__":
    main()
