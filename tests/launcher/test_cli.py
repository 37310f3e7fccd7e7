"""The command line as a whole: quick help, exit codes, one-screen faults."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dpeer.launcher.doctor
from dpeer.errors import DataError
from dpeer.launcher.cli import app

HEAVY = ("torch", "ray", "transformers", "deepspeed", "datasets", "matplotlib", "pandas", "numpy")


def test_help_needs_no_heavy_import_and_is_quick() -> None:
    probe = f"import sys, dpeer.launcher.cli; print(*(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "dpeer.launcher.cli", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert cpu_seconds < 0.5


def test_help_lists_every_command() -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    for command in ("train", "export", "report", "data", "demo", "doctor"):
        assert command in output


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["train", "demo", "--bogus"], ["export"]])
def test_wrong_usage_ends_with_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("fault", "code", "shown"),
    [
        (DataError("train.csv:7: [mask] is empty"), 1, "error: train.csv:7: [mask] is empty"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("boom"), 1, "unexpected ZeroDivisionError: boom"),
    ],
)
def test_faults_become_one_screen(fault: BaseException, code: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise fault

    monkeypatch.setattr(dpeer.launcher.doctor, "show", fail)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == code
    assert shown in result.output
    assert "Traceback (most" not in result.output


def test_unexpected_fault_leaves_its_traceback_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(dpeer.launcher.doctor, "show", lambda: 1 / 0)
    result = CliRunner().invoke(app, ["--debug", "doctor"])
    (saved,) = tmp_path.glob("dpeer-error-*.txt")
    assert saved.name in result.output
    assert "ZeroDivisionError" in saved.read_text()
    assert "Traceback (most" in result.output


def test_doctor_names_what_is_here() -> None:
    import torch

    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert torch.__version__ in result.output
    assert "CmdStan" in result.output


def test_export_of_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(tmp_path)])
    assert result.exit_code == 1
    assert "no manifest.json here" in result.output
