"""What the benchmarks share: a peer's own environment, one process per measurement, medians, one table format."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("DPEER_CACHE") or ROOT / ".cache").absolute()


class BenchmarkError(Exception):
    """Something that makes the figures impossible or worthless; shown without a traceback."""


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
