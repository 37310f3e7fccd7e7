"""docs/BENCHMARKS.md and its pictures, from the results in benchmarks/results: `python benchmarks/write_docs.py`."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import PORTABLE, RESULTS, ROOT, Figure, read_result
from dpeer.report.plot import LIMIT, PALETTE, render

PAGE = ROOT / "docs" / "BENCHMARKS.md"
PICTURES = ROOT / "docs" / "img" / "benchmarks"
MOST = 16
"""Rows of a picture."""
UNITS = {"x": "ratio", "share": "share"}
HEAD = """# Measured

Speed, memory and statistics, as measured: each section is a script in `benchmarks/` and what it found, with the
machine, the versions and the command that repeats it. Ratios, shares and counts are what another machine should repeat;
seconds and megabytes belong to the machine that is named. The load is that of the minute before the start: other work
shared these cores. The range of a ratio is that over rounds.

<!-- not run `python benchmarks`: hours; tests/benchmarks checks the results -->

    python benchmarks/rerun.py                # all again: committed, now, change; goes on where it was stopped
    python benchmarks/rerun.py engine         # one of them
    python benchmarks/engine.py --result      # measure anew and keep: benchmarks/results/engine.json
    python benchmarks/write_docs.py           # this page and its pictures from the results

How each comparison is made fair is told in [benchmarks/README.md](../benchmarks/README.md). Nothing here was measured
on a GPU, which is what `python benchmarks/gpu.py` is for. A benchmark without a section has not been run in this format
yet.
"""


def results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    return [read_result(path) for path in sorted(folder.glob("*.json"))]


def shown(value: float) -> str:
    """Three digits that count, or a whole number."""
    if value == round(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}"


def with_unit(value: float, unit: str) -> str:
    """Ratios with four digits, as goals stand close to 1."""
    return f"{value:.4g}x" if unit == "x" else shown(value) if unit in PORTABLE else f"{shown(value)} {unit}"


def goal(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    return f"at {'most' if figure.better == 'lower' else 'least'} {with_unit(figure.goal, figure.unit)}"


def met(figure: Figure) -> str:
    return {None: "", True: "met", False: "**missed**"}[figure.met]


def table(figures: Sequence[Figure]) -> str:
    lines = ["| figure | value | range | goal | |", "|---|---:|---:|---|---|"]
    for f in figures:
        width = "" if f.low is None or f.high is None else f"{shown(f.low)} to {shown(f.high)}"
        unit = f"{with_unit(f.value, f.unit)}{' tokens' * (f.unit == 'tokens')}"
        lines.append(f"| {f.name} | {unit} | {width} | {goal(f)} | {met(f)} |")
    return "\n".join(lines)


def section(result: dict[str, Any]) -> str:
    machine, name = result["machine"], result["name"]
    versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    lines = [
        f"## {name}",
        result["what"],
        *([result["note"]] if result["note"] else []),
        table(result["figures"]),
        f"![{finding(result)}](img/benchmarks/{name}.svg)",
        f"`{result['command']}`, {result['date']}, {result['cpu_s']:,.0f} CPU seconds in all. "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, load at the start "
        f"{machine['load_at_start'][0]:g}; {versions}.",
    ]
    return "\n\n".join(lines) + "\n"


def overview(found: Sequence[dict[str, Any]]) -> str:
    """Every figure with a goal."""
    lines = ["| benchmark | figure | value | goal | |", "|---|---|---:|---|---|"]
    for result in found:
        for f in result["figures"]:
            if f.goal is not None:
                link = f"[{result['name']}](#{result['name'].lower()})"
                lines.append(f"| {link} | {f.name} | {with_unit(f.value, f.unit)} | {goal(f)} | {met(f)} |")
    return "\n".join(lines) + "\n"


def page(found: Sequence[dict[str, Any]]) -> str:
    return "\n".join([HEAD, "## Goals\n", overview(found), *map(section, found)])


def finding(result: dict[str, Any]) -> str:
    """The first figure in words."""
    first = result["figures"][0]
    aim = f" (goal: {goal(first)})" if first.goal is not None else ""
    return f"{result['name']}: {first.name}, {with_unit(first.value, first.unit)}{aim}"


def label(figure: Figure) -> str:
    return textwrap.fill(textwrap.shorten(figure.name, 88, placeholder="…"), 46)


def paint(canvas: Canvas, result: dict[str, Any]) -> None:
    """The figures in the unit of the first, with their ranges and goals."""
    unit = result["figures"][0].unit
    rows = [f for f in result["figures"] if f.unit == unit][:MOST]
    title = textwrap.fill(finding(result), 62)
    canvas.suptitle(title, x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    axes = canvas.add_subplot()
    for y, f in enumerate(rows):
        if f.low is not None and f.high is not None:
            axes.hlines(y, f.low, f.high, color=PALETTE[0], linewidth=2.5, alpha=0.4)
        axes.plot(f.value, y, "o", color=PALETTE[1 if f.met is False else 0], markersize=4.5)
        if f.goal is not None:
            axes.vlines(f.goal, y - 0.4, y + 0.4, **LIMIT)
    axes.set_yticks(range(len(rows)), [label(f) for f in rows], fontsize=6.5)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if unit == "x":
        axes.axvline(1, color="#595959", linewidth=0.8)
    reach = [v for f in rows for v in (f.value, f.low, f.high, f.goal) if v is not None]
    axes.set_xlim(min(0, *reach), 1.06 * max(*reach, 0) or 1)
    aims = any(f.goal is not None for f in rows)
    axes.set_xlabel(UNITS.get(unit, unit) + "; dashed: goal" * aims, fontsize=7.5)


def picture(result: dict[str, Any]) -> bytes:
    count = min(MOST, sum(f.unit == result["figures"][0].unit for f in result["figures"]))
    return render(lambda canvas: paint(canvas, result), 0.95 + 0.26 * count, "svg")[0]


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0]).parse_args()
    found = results()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("*.svg"):
        old.unlink()
    for result in found:
        (PICTURES / f"{result['name']}.svg").write_bytes(picture(result))
    PAGE.write_text(page(found), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(found)} benchmarks")


if __name__ == "__main__":
    main()
