"""All benchmarks again, or some: their ratios beside the committed ones.

usage: python benchmarks/rerun.py [NAME ...] [--output runs/rerun] [--fresh] [--tolerance x=0.4] [--limit 7200]

Runs the command of each file in benchmarks/results, one at a time, and compares what another machine should repeat:
ratios, shares, counts and tokens. Seconds and megabytes are not compared. The exit code is 1 if one is worse by more
than its unit's tolerance (ratios 25 %, shares 0.1, tokens 2 %, counts 0) or failed. Stopped with Ctrl-C, the same
command goes on: what this revision has measured by the same command is not measured again, unless --fresh is given.
One that fails leaves a log and does not stop the others.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import PORTABLE, RESULTS, ROOT, BenchmarkError, Figure, print_table, read_result, revision

GRACE_S = 20
"""Between the request to end and kill -9."""


@dataclass(frozen=True)
class Row:
    benchmark: str
    figure: str
    committed: str
    now: str
    change: str
    worse: bool


def compared(name: str, before: list[Figure], now: list[Figure], tolerances: dict[str, float]) -> Iterator[Row]:
    """A row per figure with a direction, in a unit that another machine repeats; one that is gone counts as worse."""
    found = {f.name: f for f in now}
    for old in before:
        if not old.better or old.unit not in PORTABLE:
            continue
        if (new := found.get(old.name)) is None:
            yield Row(name, old.name, f"{old.value:g}", "gone", "", True)
            continue
        gap = new.worse_than(old)
        absolute = old.unit == "share" or not old.value
        change = f"{new.value - old.value:+.3g}" if absolute else f"{new.value / old.value - 1:+.0%}"
        yield Row(name, old.name, f"{old.value:g}", f"{new.value:g}", change, gap > tolerances[old.unit])


def measured(result: dict[str, Any], target: Path, limit: float, fresh: bool) -> list[Figure]:
    """Figures of the benchmark, from the file of an earlier try at this revision, or measured now."""
    if target.exists() and not fresh:
        kept = read_result(target)
        if (kept["command"], kept["versions"]["dpeer"]) == (result["command"], revision()):
            print(f"  measured already: {target}", file=sys.stderr, flush=True)
            return list(kept["figures"])
    target.unlink(missing_ok=True)
    interpreter, *arguments = shlex.split(result["command"])
    if interpreter != "python":
        raise BenchmarkError(f"the command of {result['name']} does not begin with python: {result['command']}")
    log = target.with_suffix(".log")
    run([sys.executable, *arguments, "--result", str(target)], log, limit)
    if not target.exists():
        raise BenchmarkError(f"no figures were written; see {log}")
    return list(read_result(target)["figures"])


def run(command: list[str], log: Path, limit: float) -> None:
    """In a process group of its own, which ends with this program, however that ends."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"took more than {limit:g} s (--limit); see {log}") from error
        finally:
            end(process)
    if code:
        raise BenchmarkError(f"ended with {code}: {log.read_text(errors='replace').strip()[-300:]}; see {log}")


def end(process: subprocess.Popen[bytes]) -> None:
    """The process, in time to end well, and whatever is left of its group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def chosen(names: list[str], folder: Path) -> list[dict[str, Any]]:
    known = {path.stem: path for path in sorted(folder.glob("*.json"))}
    if unknown := [name for name in names if name not in known]:
        raise BenchmarkError(f"no result is called {unknown[0]}; there are {', '.join(known) or 'none'}")
    return [read_result(known[name]) for name in names or known]


def tolerance(text: str) -> tuple[str, float]:
    unit, _, value = text.partition("=")
    if unit not in PORTABLE or not value:
        raise argparse.ArgumentTypeError(f"{text}: give UNIT=NUMBER with one of {', '.join(PORTABLE)}")
    return unit, float(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of files in benchmarks/results; default: all")
    parser.add_argument("--committed", type=Path, default=RESULTS, help="folder of the results to compare with")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "rerun", help="new results and logs")
    parser.add_argument("--fresh", action="store_true", help="measure again what this revision has measured")
    parser.add_argument("--tolerance", type=tolerance, action="append", default=[], metavar="UNIT=NUMBER")
    parser.add_argument("--limit", type=float, default=7200, help="seconds that one benchmark may take")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    try:
        for result in chosen(given.names, given.committed):
            name = result["name"]
            print(f"{name}: {result['command']}", file=sys.stderr, flush=True)
            try:
                now = measured(result, given.output.absolute() / f"{name}.json", given.limit, given.fresh)
                rows += compared(name, result["figures"], now, PORTABLE | dict(given.tolerance))
            except BenchmarkError as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                rows.append(Row(name, "", "", "failed", "", True))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    worse = sum(row.worse for row in rows)
    print_table(
        "Committed results and now",
        ["benchmark: figure", "committed", "now", "change", ""],
        [[f"{r.benchmark}: {r.figure}", r.committed, r.now, r.change, "WORSE" * r.worse] for r in rows],
        f"{worse} of {len(rows)} worse than tolerated, or failed",
    )
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
