"""The command line as a whole: quick help, exit codes, one-screen faults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dpeer.launcher.doctor
from dpeer.errors import DataError, Interrupted
from dpeer.launcher.bootstrap import distribution, read_project
from dpeer.launcher.cli import EXTRAS, app

HEAVY = ("torch", "ray", "transformers", "deepspeed", "datasets", "matplotlib", "pandas", "numpy")


def test_help_needs_no_heavy_import() -> None:
    probe = f"import sys, dpeer.launcher.cli; print(*(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_driver_starts_its_workers_before_it_loads_torch() -> None:
    """They load it at the same time."""
    heavy = tuple(sorted({*HEAVY} - {"ray", "numpy"}))
    probe = f"import sys, dpeer.launcher.train; print(*(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


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
        (Interrupted("Stopped; go on.", 143), 143, "Stopped; go on."),
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


HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Hidden())
from dpeer.launcher.cli import app
app()
"""


def without(modules: tuple[str, ...], *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line where these packages are not installed."""
    program = [sys.executable, "-c", HIDDEN.format(modules=set(modules)), *map(str, arguments)]
    return subprocess.run(program, cwd=cwd, capture_output=True, text=True, check=False)


ALL_EXTRAS = tuple({module for modules in EXTRAS.values() for module in modules})


@pytest.mark.parametrize(
    ("absent", "arguments", "package", "extra"),
    [
        (("torch",), ("train", "demo", "--set", "output_dir=runs"), "torch", "dpeer[train]"),
        (("ray",), ("train", "demo", "--set", "output_dir=runs"), "ray", "dpeer[train]"),
        (("transformers",), ("plan", "llama3_8b"), "transformers", "dpeer[train]"),
        (("datasets",), ("data", "check", "no/such-set"), "datasets", "dpeer[train]"),
        (("transformers",), ("data", "check", "sample", "--tokenizer", "x"), "transformers", "dpeer[train]"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(
    absent: tuple[str, ...], arguments: tuple[str, ...], package: str, extra: str, tmp_path: Path
) -> None:
    done = without(absent, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    line, section = done.stderr.splitlines()
    assert section == "see: dpeer help missing-part"
    assert line == f"error: `dpeer {arguments[0]}` needs {package}, which is not installed: pip install '{extra}'"


def test_an_absent_module_that_no_extra_has_is_a_bug(tmp_path: Path) -> None:
    done = without(("numpy",), "irt", "simulate", "--output", "ratings.parquet", cwd=tmp_path)
    assert done.returncode == 1 and "unexpected ModuleNotFoundError" in done.stderr


def test_each_module_comes_with_the_extra_that_is_named() -> None:
    extras = read_project()["optional-dependencies"]
    for names, modules in EXTRAS.items():
        listed = {distribution(line) for name in names.split(",") for line in extras[name]}
        assert set(modules) - {"torch"} <= listed | {"torch"}, names
    assert "torch" in {distribution(line) for line in extras["train"]}  # else vllm brings it


SAMPLE = Path(__file__).parents[2] / "dpeer" / "data" / "sample"


@pytest.mark.parametrize(
    "arguments",
    [
        ("doctor",),
        ("data", "check", SAMPLE),
        ("data", "show", SAMPLE),
        ("train", "demo", "--dry-run"),
        ("irt", "simulate", "--output", "ratings.parquet"),
        ("config", "schema"),
    ],
    ids=str,
)
def test_data_and_ratings_need_no_extra(arguments: tuple[object, ...], tmp_path: Path) -> None:
    done = without(ALL_EXTRAS, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_shell_completion_is_offered() -> None:
    program = [sys.executable, "-m", "dpeer.launcher.cli", "--show-completion", "bash"]
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # the parent may be no shell
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and "complete -o default -F" in done.stdout, done.stderr


def test_importing_the_package_loads_nothing_else() -> None:
    probe = "import sys; before = set(sys.modules); import dpeer; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - set(sys.stdlib_module_names) == {"dpeer"}
    assert {"Lagrangian", "estimate_abilities"} <= set(dir(dpeer))
    with pytest.raises(AttributeError, match="no attribute 'lagrangian'"):
        _ = dpeer.lagrangian
