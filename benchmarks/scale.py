"""Large tables: the design check of many rated texts and raters, a report of many models, an import of many ratings.

usage: python benchmarks/scale.py [check] [report] [import] [--quick] [--json FILE]

Each row is a process of its own, one thread. No fit is made: the report draws from made-up posterior draws.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common import CACHE, BenchmarkError, Figure, Recorder, machine, measure, print_table

WORKER = Path(__file__).resolve().parent / "irt_workers" / "scale.py"
JOBS: dict[str, list[dict[str, int]]] = {
    "check": [{"texts": 3000, "raters": 16}, {"texts": 36_000, "raters": 11_000}],
    "report": [{"models": 10}, {"models": 1000}],
    "import": [{"ratings": 100_000}, {"ratings": 1_000_000}],
}


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU seconds and memory of large tables.")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(JOBS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="the small row of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")
    recorder = Recorder(parser)
    given = parser.parse_args()
    if unknown := set(given.steps) - set(JOBS):
        parser.error(f"no step {unknown.pop()}; there are {', '.join(JOBS)}")
    folder = CACHE / "scale"
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    try:
        for step in given.steps or JOBS:
            for size in JOBS[step][: 1 if given.quick else None]:
                rows.append(
                    {"step": step} | measure(sys.executable, WORKER, {"step": step, "folder": str(folder), **size})
                )
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table(
        "Large tables",
        ["step", "size", "CPU s", "peak RSS, MB", "written, MB", "result"],
        [
            [row["step"], row["size"], f"{row['cpu_s']:.1f}", f"{row['peak_mb']:.0f}", f"{row['written_mb']:.1f}",
             row["result"]]
            for row in rows
        ],
        f"one process per row, one thread; {machine()['cpu']}",
    )  # fmt: skip
    kinds = (("CPU", "cpu_s", "CPU s"), ("peak memory", "peak_mb", "MB"))
    figures = [
        Figure(f"{r['step']}, {r['size']}: {name}", r[key], unit, "lower") for name, key, unit in kinds for r in rows
    ]
    recorder.write(given, figures)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
