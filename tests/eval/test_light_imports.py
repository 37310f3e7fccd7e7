"""Configs, rubrics, tables and imported ratings need neither torch nor ray, vllm, transformers or datasets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "vllm", "transformers", "datasets", "deepspeed", "openai")
MODULES = ["dpeer.eval.config", "dpeer.registry", "dpeer.eval.questions.rubric", "dpeer.eval.questions.prompts"]
MODULES += [
    f"dpeer.eval.{room}.{path.stem}"
    for room in ("store", "elsewhere")
    for path in sorted((ROOT / "eval" / room).glob("[a-z]*.py"))
]


def heavy_after(code: str) -> str:
    code += f"; import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_light_modules_load_nothing_heavy() -> None:
    assert len(MODULES) > 8
    assert heavy_after(f"import {', '.join(MODULES)}") == ""


@pytest.mark.parametrize(
    "code",
    [
        "from dpeer.eval.backends.registry import BACKENDS; assert {'openai', 'vllm'} <= {*BACKENDS.names()}",
        "from dpeer.eval.elsewhere.benchmarks import BENCHMARKS; assert 'xstest' in BENCHMARKS.names()",
        "from dpeer.eval.config import EvalConfig; EvalConfig(name='n', judges=[{'name': 'j', 'path': 'p'}])",
    ],
)
def test_looking_up_names_loads_nothing_heavy(code: str) -> None:
    assert heavy_after(code) == ""


def test_torchrun_needs_no_ray() -> None:
    """A machine that has torch alone trains."""
    absent = ("ray", "vllm", "tensorboard", "cmdstanpy")
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); import dpeer.launcher.torchrun"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_what_is_heavy_is_seen() -> None:
    assert "torch" in heavy_after("import torch").split()
