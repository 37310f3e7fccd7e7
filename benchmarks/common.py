"""What the benchmarks share: a peer's own environment, one process per measurement, medians, one format of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("DPEER_CACHE") or ROOT / ".cache").absolute()
RESULTS = ROOT / "benchmarks" / "results"
FORMAT = 1
PORTABLE = {"x": 0.25, "share": 0.1, "tokens": 0.02, "count": 0.0}
"""Units of figures that another machine repeats, and how much worse each may be there: relative, of shares absolute."""


class BenchmarkError(Exception):
    """Something that makes the figures impossible or worthless; shown without a traceback (`Recorder`)."""


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, BenchmarkError):
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def peer_environment(name: str, *installs: Sequence[str]) -> Path:
    """Python of the virtual environment CACHE/name, made by one `pip install` per list of requirements. Idempotent."""
    folder = CACHE / name
    python, stamp, wanted = folder / "bin" / "python", folder / "installed.json", json.dumps([*map(list, installs)])
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"installing {', '.join(r for i in installs for r in i)} into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _checked([sys.executable, "-m", "venv", str(folder)], os.environ)
    for requirements in installs:
        _checked([str(python), "-m", "pip", "install", "--quiet", *requirements], os.environ)
    stamp.write_text(wanted)
    return python


def measure(python: Path | str, script: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run `script` in a process of its own, one thread, offline; `job` goes in and its result comes out as JSON."""
    settings = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    settings |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(CACHE / "huggingface"), "PYTHONPATH": str(ROOT)}
    settings |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "MPLCONFIGDIR": str(CACHE / "matplotlib")}
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "job.json"), Path(folder, "result.json")
        given.write_text(json.dumps(job))
        _checked([str(python), str(script), str(given), str(found)], os.environ | settings)
        result: dict[str, Any] = json.loads(found.read_text())
    return result


def _checked(command: list[str], environment: Any) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout)[-3000:]
        raise BenchmarkError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, then the lowest and the highest value in brackets."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = {p: version(p) for p in ("torch", "transformers", "deepspeed")}
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count(), "threads": 1} | packages


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> None:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)


@dataclass(frozen=True)
class Figure:
    """One number of a result.

    unit: of `PORTABLE` (x: a ratio), or of this machine alone (CPU s, s, MB, ...). `better`: lower or higher, where the
    number is a claim; `goal`: the bound on that side. `low` and `high`: the range over rounds, or an interval.
    """

    name: str
    value: float
    unit: str
    better: str = ""
    goal: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def median(
        cls, name: str, values: Sequence[float], unit: str, better: str = "", goal: float | None = None
    ) -> Figure:
        return cls(name, statistics.median(values), unit, better, goal, min(values), max(values))

    @classmethod
    def ratio(
        cls, name: str, over: Sequence[float], under: Sequence[float], better: str = "", goal: float | None = None
    ) -> Figure:
        """The medians' ratio; its range is that of ratios of values of the same round, where rounds pair up."""
        middle = statistics.median(over) / statistics.median(under)
        each = [a / b for a, b in zip(over, under, strict=True)] if len(over) == len(under) else [middle]
        return cls(name, middle, "x", better, goal, min([middle, *each]), max([middle, *each]))

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal

    def worse_than(self, other: Figure) -> float:
        """How much worse than `other`: relative to it, of shares in absolute terms; negative: better."""
        gap = (self.value - other.value) * (1 if self.better == "lower" else -1)
        if self.unit == "share" or not other.value:
            return gap
        return gap / abs(other.value)


class Recorder:
    """Adds `--result [FILE]` to a benchmark's options, and writes that file: benchmarks/results/NAME.json by default.

    To be made before anything is measured: the load that it notes is that of others.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        name = Path(sys.argv[0]).with_suffix(".json").name
        words = f"also write the figures as JSON; without FILE to benchmarks/results/{name}"
        parser.add_argument("--result", type=Path, nargs="?", const=RESULTS / name, metavar="FILE", help=words)
        self.load = os.getloadavg()
        sys.excepthook = _tell

    def write(
        self, given: argparse.Namespace, figures: Sequence[Figure], note: str = "", peers: dict[str, str] | None = None
    ) -> None:
        """`note`: one sentence that the figures need; `peers`: versions of other programs that were measured."""
        if given.result is None:
            return
        if unfit := [f for f in figures if f.goal is not None and f.better not in ("lower", "higher")]:
            raise BenchmarkError(f"{unfit[0].name} has a goal, so it must say which direction is better")
        about = (sys.modules["__main__"].__doc__ or "").strip().partition("\n\n")[0]
        settings = {
            k: v for k, v in vars(given).items() if v is not None and v is not False and not isinstance(v, Path)
        }
        result = {
            "format": FORMAT,
            "name": given.result.stem,
            "what": " ".join(about.split()),
            "settings": settings,
            "figures": [{k: v for k, v in asdict(f).items() if v not in (None, "")} for f in map(_rounded, figures)],
            "note": note,
            "machine": _host() | {"load_at_start": [round(value, 1) for value in self.load]},
            "versions": _versions() | (peers or {}),
            "command": command_line(sys.argv),
            "date": datetime.now(UTC).date().isoformat(),
            "cpu_s": round(cpu_seconds(), 1),
        }
        given.result.parent.mkdir(parents=True, exist_ok=True)
        given.result.write_text(json.dumps(result, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        print(f"written: {given.result}", file=sys.stderr)


def read_result(path: Path) -> dict[str, Any]:
    """A result whose `figures` are Figure objects."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found.get("format") != FORMAT:
        raise BenchmarkError(f"{path} has format {found.get('format')}, this version reads {FORMAT}. Measure it again.")
    return found | {"figures": [Figure(**figure) for figure in found["figures"]]}


def command_line(arguments: Sequence[str]) -> str:
    """How to measure the same again, from the repository's root: without --result and its file, and without --json."""
    kept, skip = [], False
    for argument in arguments[1:]:
        if skip and not argument.startswith("-"):
            skip = False
            continue
        skip = argument in ("--result", "--json")
        if not skip and not argument.startswith(("--result=", "--json=")):
            kept.append(argument)
    script = Path(arguments[0]).resolve()
    return shlex.join(["python", str(script.relative_to(ROOT) if script.is_relative_to(ROOT) else script), *kept])


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for, all threads."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def revision() -> str:
    """Commit of the checkout, with a plus where the package differs from it; the version without git."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return version("dpeer")
    changed = subprocess.run([*git, "status", "--porcelain", "--", "dpeer", "eval", "launcher"], capture_output=True)
    return head.stdout.strip() + "+" * bool(changed.stdout.strip())


def _rounded(figure: Figure) -> Figure:
    numbers = {k: float(f"{v:.4g}") for k, v in asdict(figure).items() if isinstance(v, int | float) and k != "goal"}
    return Figure(**(asdict(figure) | numbers))


def _host() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": machine()["cpu"], "cores": os.cpu_count(), "memory_gb": round(memory / 1e9)}


def _versions() -> dict[str, str]:
    found = {"dpeer": revision(), "python": platform.python_version()}
    for package in ("torch", "transformers", "deepspeed"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
