"""benchmarks/gpu.py for machines without a GPU: exactness and the whole path in tiny shapes, so that it cannot rot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quick_run_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--quick", "--device", "cpu", "--stages", "exact,path"]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert set(stages["exact"]["families"]) == {"llama", "LoRA"}
    assert all(all(f["checks"].values()) for f in stages["exact"]["families"].values())
    assert stages["path"]["checks"]["goes on as if undisturbed"] is True


def test_unknown_stage_and_failing_stage(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--out", str(tmp_path), "--stages"]
    done = subprocess.run([*command, "exakt"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "no stage is called exakt" in done.stderr
    if not torch.cuda.is_available():
        command[3] = "cuda"
        done = subprocess.run([*command, "exact"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "exact (trees against separate sequences): FAILED" in done.stdout
        assert "not right here: exact" in done.stdout
