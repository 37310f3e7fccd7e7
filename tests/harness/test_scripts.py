"""The scripts as text: shellcheck, and what `dpeer slurm` makes of a recipe."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dpeer.config_io import load_config, resolved
from dpeer.launcher.cli import app
from dpeer.launcher.recipe import recipe_path

SCRIPTS = sorted((Path(__file__).parents[2] / "slurm").glob("*.sh"))


def shellcheck(*paths: Path) -> None:
    program = shutil.which("shellcheck")
    if not program:
        pytest.skip("no shellcheck here; enable with: apt-get install -y --no-install-recommends shellcheck")
    done = subprocess.run([program, *paths], capture_output=True, text=True, cwd=SCRIPTS[0].parents[1])
    assert done.returncode == 0, done.stdout


def test_shipped_scripts_are_clean() -> None:
    assert {"lib.sh", "train.sh", "train_70b.sh", "sweep_tolerance.sh", "judge_farm.sh"} <= {p.name for p in SCRIPTS}
    shellcheck(*SCRIPTS)


def test_dry_run_renders_script_and_config(tmp_path: Path) -> None:
    command = ["slurm", "--recipe", "llama3_70b", "--nodes", "8", "--time", "12:00:00", "--partition", "h200"]
    command += ["--signal", "USR2", "--grace", "300", "--sbatch=--constraint=ib", "--set", f"output_dir={tmp_path}"]
    result = CliRunner().invoke(app, [*command, "--dry-run"])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "llama3-70b" / "slurm"
    script, config = (folder / "job.sh").read_text(), folder / "config.yaml"
    assert script in result.output and config.read_text() in result.output
    for directive in (
        "job-name=llama3-70b", "nodes=8", "gpus-per-node=8", "time=12:00:00", "partition=h200", "signal=B:USR2@300",
        "constraint=ib", "requeue", "dependency=singleton",
    ):  # fmt: skip
        assert f"#SBATCH --{directive}\n" in script
    expected = load_config(recipe_path("llama3_70b"), [f"output_dir={tmp_path}"])
    assert resolved(load_config(config)) == resolved(expected) == yaml.safe_load(config.read_text())
    shellcheck(folder / "job.sh")


def test_too_few_gpus_are_refused_before_submission(tmp_path: Path) -> None:
    command = ["slurm", "--recipe", "llama3_70b", "--nodes", "4", "--set", f"output_dir={tmp_path}"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "do not fit 4 x 8 GPUs" in result.output
    assert not list(tmp_path.iterdir())


def test_gpus_that_stay_idle_are_told(tmp_path: Path) -> None:
    command = ["slurm", "--recipe", "llama3_8b", "--nodes", "2", "--dry-run", "--set", f"output_dir={tmp_path}"]
    assert "note: 8 of 16 GPUs stay idle" in CliRunner().invoke(app, command).output
    every = ["--set", "cluster.policy_workers=16", "--set", "cluster.reference_workers=16"]
    assert "GPUs stay idle" not in CliRunner().invoke(app, [*command, *every]).output


def test_without_slurm_the_script_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    command = ["slurm", "--recipe", "llama3_70b", "--nodes", "8", "--set", f"output_dir={tmp_path}"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "sbatch is not on PATH" in result.output
    assert (tmp_path / "llama3-70b" / "slurm" / "job.sh").exists()
