"""One process of identification.py: simulate a table into a file, or read that file and check its design."""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

from dpeer.eval.irt.design import check
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Options


def peak_mb() -> float:
    """The kernel's VmHWM, which unlike ru_maxrss does not carry over from the parent process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def main(job: dict[str, Any]) -> dict[str, Any]:
    if job["step"] == "simulate":
        spec = job["spec"]
        table, _ = simulate(Spec(**spec | {"linked": tuple(spec["linked"]) if spec.get("linked") else None}), seed=0)
        table.to_parquet(job["table"], index=False)
        return {}
    start = time.process_time()
    ratings = encode(Path(job["table"]))
    encoded, peak = time.process_time(), peak_mb()
    report = check(ratings, Options(**job["options"]))
    checked = time.process_time()
    tracemalloc.start()
    check(ratings, Options(**job["options"]))
    return {
        "ratings": len(ratings),
        "read_cpu_s": encoded - start,
        "check_cpu_s": checked - encoded,
        "check_mb": tracemalloc.get_traced_memory()[1] / 1e6,
        "read_mb": peak,
        "rank": report.rank,
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
