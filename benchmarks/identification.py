"""The identification check of a million ratings (`--quick`: a tenth): its CPU
seconds and memory, beside those of reading the table.

usage: python benchmarks/identification.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common import CACHE, BenchmarkError, Figure, Recorder, machine, measure, print_table

WORKER = Path(__file__).resolve().parent / "irt_workers" / "identify.py"
EFFECTS = {"length": True, "halo": True, "self_family": True, "self_model": True}
DESIGNS: dict[str, dict[str, Any]] = {  # 20 models, 5 judges (one of them a model under test), 4 dimensions
    "every judge rates everything": {"items": 2500},
    "linked: 100 anchor items, 2 judges on the others": {"items": 6150, "linked": (100, 2)},
}


def run(name: str, shrink: int) -> list[dict[str, Any]]:
    """The check of one design, without and with every effect that the data may hold."""
    spec: dict[str, Any] = {"models": 20, "judges": 5, "dimensions": 4, "self_judges": 1}
    spec |= DESIGNS[name] | {"items": DESIGNS[name]["items"] // shrink}
    folder = CACHE / "identification"
    folder.mkdir(parents=True, exist_ok=True)
    table = str(folder / "ratings.parquet")
    measure(sys.executable, WORKER, {"step": "simulate", "spec": spec, "table": table})
    jobs = {"plain": {}, "with 4 effects": EFFECTS}
    return [
        {"design": name, "model": label}
        | measure(sys.executable, WORKER, {"step": "check", "table": table, "options": options})
        for label, options in jobs.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU seconds and memory of the identification check.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the ratings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")
    recorder = Recorder(parser)
    given = parser.parse_args()
    try:
        rows = [row for name in DESIGNS for row in run(name, 10 if given.quick else 1)]
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table(
        "Identification check",
        ["design", "ratings", "read, CPU s", "peak RSS, MB", "check, CPU s", "check, MB"],
        [
            [
                f"{row['design']}, {row['model']}",
                f"{row['ratings']:,}",
                *(f"{row['read_cpu_s']:.2f}", f"{row['read_mb']:.0f}"),
                *(f"{row['check_cpu_s']:.2f}", f"{row['check_mb']:.0f}"),
            ]
            for row in rows
        ],
        f"one process per row, one thread; check, MB: most that it held at once; {machine()['cpu']}",
    )
    figures = []
    for row in rows:
        name = f"{row['ratings']:,} ratings, {row['design']}, {row['model']}"
        figures.append(Figure(f"{name}: check over reading", row["check_cpu_s"] / row["read_cpu_s"], "x", "lower"))
        figures.append(Figure(f"{name}: check", row["check_cpu_s"], "CPU s", "lower"))
        figures.append(Figure(f"{name}: memory of the check", row["check_mb"], "MB", "lower"))
    recorder.write(given, figures)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
