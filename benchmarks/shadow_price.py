"""Multipliers against the slope of the optimum: the sweep `toy_contested`, 5 tolerances x 3 seeds, on the toy world.

usage: python benchmarks/shadow_price.py [--json FILE]

Two dimensions exclude each other, so the optimum at a tolerance eps of T is known: margin m = -ln(e^eps - 1) and
multiplier (e^m - 1) / 2. The table shows it beside what training arrived at. Run it from the repository's root.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Figure, Recorder
from rich.console import Console
from rich.table import Table

from dpeer.report.sweep import read_sweep
from dpeer.report.sweep_numbers import Spread, late, over_seeds, prices
from dpeer.toyworld import world as toyworld
from dpeer.toyworld.model import build_base

ROOT = Path("runs/contested")
PROMPTS, HELDOUT, PRETRAIN, SEED = 24, 60, 2400, 0


def prepare() -> None:
    """The contested world and a base model that has seen the toy world's language; kept once made."""
    if not (ROOT / "world" / "test.jsonl").exists():
        toyworld.write_contested(ROOT / "world", SEED, PROMPTS, HELDOUT)
    if not (ROOT / "base").exists():
        language = toyworld.write_world(ROOT / "language", SEED, 1, 1, 1, PRETRAIN)
        build_base(ROOT / "base", language.pretrain, SEED)


def known(eps: float) -> float:
    """Stationarity of L_T / 2 + L_E / 2 + lambda (L_T - eps) in the margin, at L_T = eps and L_E = L_T(-m)."""
    return (1 / math.expm1(eps) - 1) / 2


def spread(s: Spread) -> str:
    return f"{s.mean:.3f} [{s.lower:.3f}, {s.upper:.3f}]"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--json", type=Path)
    recorder = Recorder(options)
    given = options.parse_args()
    prepare()
    subprocess.run([sys.executable, "-m", "dpeer.launcher.cli", "sweep", "run", "toy_contested"], check=True)
    data = read_sweep(ROOT / "tolerance")
    console, rows = Console(), list[dict[str, Any]]()
    table = Table("tolerance of T", "known multiplier", "multiplier", "at the loss reached", title="optimum")
    for setting in data.settings:
        ends = [v for c in setting.cells if (v := late(c.run))]
        t = list(data.dimensions).index("T")
        found = over_seeds([float(v.multipliers[t]) for v in ends])
        reached = over_seeds([known(float(v.loss[t])) for v in ends])
        table.add_row(f"{setting.x:g}", f"{known(setting.x):.3f}", spread(found), spread(reached))
        rows.append({"tolerance": setting.x, "known": known(setting.x), "found": found.mean, "reached": reached.mean})
    console.print(table)
    table = Table(
        "interval", "slope of the optimum", "slope by the multipliers", "difference", "agrees", title="prices"
    )
    for p in prices(data.lines):
        interval = f"{p.left.x:g} to {p.right.x:g}"
        table.add_row(interval, spread(p.measured), spread(p.said), spread(p.gap), str(p.agrees))
        rows.append({"interval": interval, "measured": p.measured.mean, "said": p.said.mean, "agrees": p.agrees})
    console.print(table)
    agree = [bool(row["agrees"]) for row in rows if "agrees" in row]
    figures = [
        Figure("slopes of the optimum that agree with the multipliers", sum(agree) / len(agree), "share", "higher")
    ]
    figures += [
        Figure(f"tolerance {row['tolerance']:g}: multiplier found over that known at the loss reached",
               row["found"] / row["reached"], "x")
        for row in rows
        if "tolerance" in row
    ]  # fmt: skip
    recorder.write(given, figures)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
