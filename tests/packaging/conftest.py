"""The wheel, built from this source and installed into an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpeer.cache import cache_root

ROOT = Path(__file__).parents[2]
SOURCES = ("dpeer", "eval", "launcher", "ds_configs", "slurm")
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "docs/errors.md")


def names(folder: Path) -> set[str]:
    """What lies directly in a folder, compiled files apart."""
    return {path.name for path in folder.iterdir()} - {"__pycache__"}


@dataclass(frozen=True)
class Installed:
    """The environment that holds the wheel, and what the wheel has added to its folders."""

    python: Path
    wheel: Path
    modules: frozenset[str]
    programs: frozenset[str]

    def run(self, *command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of the environment, in a project's folder."""
        inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS", "PYTHONHOME")}
        inherited |= {"PATH": f"{self.python.parent}:{os.environ['PATH']}", "DPEER_CACHE": str(cache_root())}
        return subprocess.run(
            command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=280, check=False
        )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no leftover of an earlier build comes in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "docs").mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The requirements come from the environment of the tests, the package from the wheel alone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    packages = next((folder / "lib").iterdir()) / "site-packages"
    # The line of a .pth file is a plain folder: links to editable installs in there are not followed.
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    before, programs = names(packages), names(python.parent)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    return Installed(python, wheel, frozenset(names(packages) - before), frozenset(names(python.parent) - programs))
