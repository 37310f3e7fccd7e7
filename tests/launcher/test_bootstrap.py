"""Set-up: the parts that can go wrong before anything is downloaded."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from dpeer.launcher import bootstrap

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 14, 0), (2, 7, 18)])
def test_unsupported_python_is_refused(version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(bootstrap.SetupError, match=r"use 3\.11, 3\.12 or 3\.13"):
        bootstrap.check_python()


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    with pytest.raises(bootstrap.SetupError, match="not a virtual environment"):
        bootstrap.make_venv()
    assert (tmp_path / "thesis.txt").read_text() == "important"


@pytest.mark.parametrize(
    ("found", "missing"),
    [((), "gcc, g[+][+], make"), (("gcc", "make"), "g[+][+]"), (("cc", "c++"), "make"), (("g++", "make"), "gcc")],
)
def test_missing_compilers_are_named(
    found: tuple[str, ...], missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in found:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(bootstrap.SetupError, match=f"^{missing} not found.*build-essential"):
        bootstrap.check_machine(gpu=False)


def test_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / "venv")
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "venv" / "bin" / "python")
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30}))
    with pytest.raises(bootstrap.SetupError, match=r"1\.0 GiB free"):
        bootstrap.check_machine(gpu=False)


def test_failed_command_shows_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "LOG", tmp_path / "log")
    with pytest.raises(bootstrap.SetupError, match="code 3") as caught:
        bootstrap.run(sys.executable, "-c", "import sys; print('no route to host'); sys.exit(3)")
    assert "no route to host" in str(caught.value)
    assert "no route to host" in (tmp_path / "log").read_text()


def test_what_runs_beside_is_waited_for_and_ends_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "LOG", tmp_path / "log")
    with bootstrap.beside(sys.executable, "-c", "print('built')") as wait:
        wait()
    assert "built" in (tmp_path / "log").read_text()
    with (
        bootstrap.beside(sys.executable, "-c", "import sys; sys.exit('no memory')") as wait,
        pytest.raises(bootstrap.SetupError, match=r"code 1[\s\S]*no memory"),
    ):
        wait()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(300)'])"
    began = time.monotonic()
    with pytest.raises(bootstrap.SetupError), bootstrap.beside(sys.executable, "-c", child):
        bootstrap.run(sys.executable, "-c", "import sys; sys.exit(3)")
    assert time.monotonic() - began < 60


def test_fingerprint_follows_the_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bootstrap.fingerprint(gpu=False)
    assert bootstrap.fingerprint(gpu=False) == before
    assert bootstrap.fingerprint(gpu=True) != before
    other = tmp_path / "constraints.txt"
    other.write_text(bootstrap.CONSTRAINTS.read_text() + "# changed\n")
    monkeypatch.setattr(bootstrap, "CONSTRAINTS", other)
    assert bootstrap.fingerprint(gpu=False) != before


def test_set_up_needs_the_standard_library_only() -> None:
    probe = "import runpy; runpy.run_path('launcher/bootstrap.py')"
    # -I -S: no site-packages, no current folder, no user site
    subprocess.run([sys.executable, "-I", "-S", "-c", probe], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("line", "name"),
    [("torch==2.13.0+cpu", "torch"), ("Ray_Core[default]>=2; python_version>'3'", "ray-core"), ("a.b (>1)", "a.b")],
)
def test_distribution_name_of_a_requirement(line: str, name: str) -> None:
    assert bootstrap.distribution(line) == name


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    built_from_source = {"flash"}
    wanted = [*project["dependencies"], *(line for name in extras.keys() - built_from_source for line in extras[name])]
    pins = re.findall(r"^[A-Za-z0-9._-]+(?===)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert {bootstrap.distribution(r) for r in wanted} <= {bootstrap.distribution(pin) for pin in pins}


def test_pins_install_on_the_oldest_supported_python() -> None:
    """Of what is installed here at its pinned version."""
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", (ROOT / "constraints.txt").read_text(), flags=re.M))
    found = {d.metadata["Name"]: d for d in distributions() if d.version == pins.get(d.metadata["Name"])}
    asked = {name: d.metadata.get("Requires-Python") for name, d in found.items()}
    assert len(asked) > 50
    assert [n for n, wanted in asked.items() if wanted and not SpecifierSet(wanted).contains("3.11.0")] == []
