"""What a driver does around a run, under Ray as under torchrun: lock, progress, disk faults, pages. Needs no Ray."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dpeer.config import Config
from dpeer.disk import GONE, REFUSED, disk_fault, remedy
from dpeer.errors import CheckpointError, ClusterError
from dpeer.files import SILENT_S, clear_temporary, write_text
from dpeer.integrity import Damaged, folder_faults, verify
from dpeer.launcher.lock import DAMAGED, LEASE_S, Owner, sole_owner
from dpeer.launcher.memory_watch import MemoryWatch
from dpeer.launcher.progress import Progress
from dpeer.launcher.trackers import Trackers
from dpeer.objective.rows import TimingRow
from dpeer.training.run_dir import RunDir


def check_startable(files: RunDir, resume: bool) -> None:
    files.refuse_lost_manifest()
    if resume and not files.manifest.exists():
        raise CheckpointError(f"{files.path}: nothing to resume (no manifest.json). Start it without --resume.")
    if files.manifest.exists() and not resume:
        raise CheckpointError(
            f"{files.path}: a run of this name exists. Continue it with --resume, or choose another name "
            "(--set name=...)."
        )


def as_begun(config: Config, files: RunDir, say: Callable[[str], None] = print) -> Config:
    """The config at the learning rate of the run that goes on, see `RunDir.at_its_rate`; says where that differs."""
    begun = files.at_its_rate(config)
    before, now = begun.training.optimizer.lr, config.training.optimizer.lr
    if before != now:
        say(f"training.optimizer.lr is {before:g}, as when this run began: the recipe gives none (a new run: {now:g}).")
    return begun


def refuse_lost_gpus(given: Config, config: Config, files: RunDir) -> None:
    """ClusterError when `auto` would go on on the CPU with what began on GPUs: no GPU is seen where one was."""
    if given.cluster.gpus_per_worker != "auto" or config.cluster.on_gpus or not files.manifest.exists():
        return
    if files.read_manifest()["config"]["cluster"].get("gpus_per_worker") == 1:
        raise ClusterError(
            f"{files.path}: began on GPUs, and none is seen now. Look at nvidia-smi and at what the job was given. To "
            "go on on the CPU: --set cluster.gpus_per_worker=0."
        )


def tokenise(config: Config, files: RunDir) -> None:
    """Before the ranks start, which then only open what this makes and never wait for it in a collective. ConfigError
    where the objective does not fit the dimensions that the data turn out to have."""
    from dpeer.training.prepare import prepare

    with disk_faults(files):
        prepared = prepare(config, whole=True)
    prepared.lagrangian(config)


def already_finished(files: RunDir, config: Config) -> bool:
    """True when there is nothing left to make; pages that a kill at the very end has cost are written.

    CheckpointError: the recipe asks for another run than the finished one."""
    if not files.finished:
        return False
    files.check_resumable(config, {})
    lost = lost_results(files)
    if lost and files.saved_steps():
        print(f"{files.path} is finished, but {lost}. That is made again from its checkpoint.", flush=True)
        return False
    if lost:
        print(f"{files.path} is finished, but {lost}; without a checkpoint it cannot be made again.", flush=True)
    else:
        print(f"{files.path} is finished; nothing to do.", flush=True)
        for path in (files.report, files.export / "README.md"):
            if not path.exists():
                print(f"{path} is missing; made again.", flush=True)
                write_pages(files)
    return True


def lost_results(files: RunDir) -> str:
    """Which result of a finished run is gone or damaged; empty where all are there."""
    if not files.export.is_dir():
        return f"{files.export} is missing"
    if damaged := folder_faults(files.export):
        return " ".join((str(files.export / next(iter(damaged))), *list(damaged.values())[:1]))
    try:
        for path in (files.certificate, files.heldout):
            if path.exists():
                verify(path.read_bytes())
            elif "run" in (manifest := files.read_manifest()) and "heldout" in manifest.get("data", {}):
                return f"{path} is missing"
    except Damaged as error:
        return f"{path} {error}"
    return ""


@contextmanager
def only_driver(config: Config) -> Iterator[None]:
    """Holds the run's lock for the length of the block. ClusterError: a living driver has it."""
    path = config.output_dir / "locks" / f"{config.name}.driver.json"
    with sole_owner(path, partial(_tell_wait, path)) as other:
        if other:
            raise ClusterError(
                f"{config.run_dir}: another driver ({other.place}) trains this run; two would ruin its ledger and "
                "checkpoints. Wait for its end, or give this run another name (--set name=...)."
            )
        yield


class Watcher:
    """Shows each step and sends it to the trackers."""

    def __init__(self, config: Config, progress: Progress, trackers: Trackers) -> None:
        self.progress, self.trackers, self.memory = progress, trackers, MemoryWatch(config)

    def step(self, entry: dict[str, Any], timing: TimingRow) -> None:
        self.progress.update(entry, timing)
        self.trackers.log(entry, timing)
        if message := self.memory.warning(timing):
            self.warn(message)

    def warn(self, message: str) -> None:
        self.progress.warn(message)


@contextmanager
def watch(config: Config, files: RunDir, total: int, start: int) -> Iterator[Watcher]:
    with Progress(config.name, total, start) as progress, Trackers(config, files, start, progress.warn) as trackers:
        yield Watcher(config, progress, trackers)


@contextmanager
def disk_faults(files: RunDir) -> Iterator[None]:
    """CheckpointError for a disk that takes nothing more, and for what others did to the run's files."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        fault, place = disk_fault(error), getattr(error, "filename", None)
        if fault in (errno.ENOENT, errno.ENOTDIR) and files.path.is_dir():
            raise  # the disk is there: it is one file that somebody looked for in vain
        # What is missing or closed elsewhere, such as a program, is no fault of the run's disk.
        elsewhere = place and not Path(str(place)).absolute().is_relative_to(files.path.absolute().parent)
        if fault is None or (fault in REFUSED | GONE and (elsewhere or not place) and isinstance(error, OSError)):
            raise
        raise CheckpointError(
            f"{place or files.path}: {remedy(fault)}. The last checkpoint is kept: then go on with --resume."
        ) from error


def _tell_wait(path: Path, owner: Owner) -> None:
    if owner == DAMAGED:
        who = f"{path} is half-written, so its driver has died or writes it just now. Delete it if none trains this run"
    else:
        who = f"{owner.place}, on another machine, was training this run"
    print(f"{who}; waiting up to {LEASE_S:g} s for a sign of it.", flush=True)


def write_pages(files: RunDir) -> None:
    """Model card and report of a finished run."""
    from dpeer.report.card import model_card
    from dpeer.report.page import write_report

    clear_temporary(files.path, silent_s=SILENT_S)
    write_text(files.export / "README.md", model_card(files.path))
    print(f"model: {files.export}\nreport: {write_report(files.path)}", flush=True)
