"""Is dpeer right, restartable and fast on this machine's GPU? One command, about six minutes on an H100.

usage: python benchmarks/gpu.py [--quick] [--stages facts,exact] [--device cuda] [--out runs/gpu]

Nothing is downloaded: models are random, made from configs on the device. Every stage is a process of its own with a
time limit, so one that fails stops no other. The exit code is 1 if exactness or the whole path fails; the others are
figures. On a machine without a GPU the stages run in tiny shapes and fp32: that proves the benchmark, not the GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Stage:
    title: str
    limit_s: int
    quick: bool
    """Part of --quick."""
    decides: bool
    """Whether it decides the exit code."""


STAGES = {
    "facts": Stage("versions, kernels, ceilings", 90, True, False),
    "exact": Stage("trees against separate sequences", 240, True, True),
    "path": Stage("train, kill -9, resume, export", 300, True, True),
    "speed": Stage("HFU and memory of a step", 300, False, False),
    "peer": Stage("beside TRL", 240, False, False),
    "context": Stage("longest context", 200, False, False),
}
ON_CPU = ("facts", "exact", "path")


def run_stage(name: str, out: Path, device: str, quick: bool) -> dict[str, Any]:
    """The stage's result; what it printed lies beside it in NAME.log. Its temporary files are in memory if they fit."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 60e9
    with tempfile.TemporaryDirectory(prefix="dpeer-gpu-", dir=memory if roomy else None) as scratch:
        return run_child(name, out, device, quick, scratch)


def run_child(name: str, out: Path, device: str, quick: bool, scratch: str) -> dict[str, Any]:
    file, log = out / f"{name}.json", out / f"{name}.log"
    file.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--child", name, "--device", device, "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TMPDIR": scratch}
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    limit = STAGES[name].limit_s * (4 if device == "cpu" else 1)  # a CPU may be shared and slow
    began = time.monotonic()
    with log.open("w") as stream:
        child = subprocess.Popen(
            [*command, *(["--quick"] if quick else [])], env=environment, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            child.wait(limit)
            end = f"ended with exit code {child.returncode}"
        except subprocess.TimeoutExpired:
            end = f"was stopped after {limit} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    seconds = time.monotonic() - began
    if file.exists():
        return json.loads(file.read_text()) | {"seconds": seconds}
    last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return {"passed": False, "lines": [f"{end}; {log} ends with:", last], "seconds": seconds}


def child(name: str, out: Path, device: str, quick: bool) -> None:
    """Run one stage in this process and write its result."""
    sys.path.insert(0, str(HERE))
    try:
        result = importlib.import_module(f"gpu_stages.{name}").run(device, quick, out)
    except Exception as error:
        traceback.print_exc()
        result = {"passed": False, "lines": [f"{type(error).__name__}: {str(error)[:500]}"]}
    temporary = out / f".{name}.{os.getpid()}"
    temporary.write_text(json.dumps(result, indent=1, default=str))
    temporary.replace(out / f"{name}.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="facts, exactness and the whole path, in 90 s")
    parser.add_argument("--stages", help=f"of {', '.join(STAGES)}; default: all, without a GPU {', '.join(ON_CPU)}")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=STAGES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.out, given.device, given.quick)
        return 0
    device = given.device
    if device == "auto":  # this process never touches CUDA
        look = "import torch; print(torch.cuda.is_available())"
        found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
        device = "cuda" if "True" in found.stdout else "cpu"
    usual = [n for n, s in STAGES.items() if (n in ON_CPU or device == "cuda") and (s.quick or not given.quick)]
    names = given.stages.split(",") if given.stages else usual
    if unknown := sorted(set(names) - set(STAGES)):
        parser.error(f"--stages: no stage is called {', '.join(unknown)}; there are {', '.join(STAGES)}")
    out = (given.out or Path(tempfile.mkdtemp(prefix="dpeer-gpu-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    print(f"device {device}; results in {out}", flush=True)
    results: dict[str, Any] = {}
    for name in names:
        results[name] = found = run_stage(name, out, device, given.quick)
        word = {True: "passed", False: "FAILED", None: "measured"}[found["passed"]]
        print(f"\n{name} ({STAGES[name].title}): {word}, {found['seconds']:.0f} s", flush=True)
        for line in found["lines"]:
            print(f"  {line}", flush=True)
    (out / "gpu.json").write_text(json.dumps({"device": device, "quick": given.quick, "stages": results}, indent=1))
    bad = [n for n in names if STAGES[n].decides and results[n]["passed"] is not True]
    print(f"\n{'not right here: ' + ', '.join(bad) if bad else 'right as far as was tried'}; {out / 'gpu.json'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
