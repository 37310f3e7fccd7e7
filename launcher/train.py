"""The driver of a training run. It never touches tensors: it orders steps, keeps the files and restarts groups."""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from typing import Any

from dpeer.config import Config
from dpeer.errors import CheckpointError, ClusterError, ConfigError
from dpeer.files import write_json, write_text
from dpeer.launcher import exit_codes
from dpeer.launcher.cluster import NodeLost, connect
from dpeer.launcher.group import LONG_S, Groups, WorkerFailed, WorkerLost, refuse_other_facts
from dpeer.launcher.lock import LEASE_S, Owner, sole
from dpeer.launcher.preflight.quick import opening, token
from dpeer.launcher.progress import Progress
from dpeer.launcher.signals import Interrupted, Signals
from dpeer.launcher.trackers import Trackers
from dpeer.objective.ledger import infeasible
from dpeer.training.run_dir import RunDir, refuse_unshared
from dpeer.training.scoring import merge

DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}
WORKING_DIR_COPIES = "/runtime_resources/working_dir_files/"  # of Ray, on each node
CACHE_SLICE = 128  # records per worker and call


def run(config: Config, *, resume: bool = False) -> int:
    """Train as the recipe says; returns the process's exit code.

    0 done, 130 / 143 stopped by Ctrl-C / SIGTERM and saved, 85 pre-empted and saved, 86 a node was lost.
    """
    refuse_perishable(config)
    check_startable(RunDir(config.run_dir), resume)
    with Signals():
        try:
            token(config)
            with connect(config.cluster.address):
                if config.cluster.preflight:
                    opening(config)
                groups = Groups(config)
                try:
                    return train(config, groups, resume=resume)
                finally:
                    groups.close()
        except Interrupted as stopped:
            print(stopped, flush=True)
            return stopped.code


def refuse_perishable(config: Config) -> None:
    """ConfigError when the run's folder is in the copy that a Ray job works in, which Ray deletes after the job."""
    if WORKING_DIR_COPIES in str(config.run_dir.absolute()):
        raise ConfigError(
            f"output_dir ({config.output_dir}) is relative to the copy of --working-dir in which a Ray job runs, and "
            "Ray deletes that copy after the job. Give an absolute path on a file system that all nodes share."
        )


def check_startable(files: RunDir, resume: bool) -> None:
    if resume and not files.manifest.exists():
        raise CheckpointError(f"{files.path}: nothing to resume (no manifest.json). Start it without --resume.")
    if files.manifest.exists() and not resume:
        raise CheckpointError(
            f"{files.path}: a run of this name exists. Continue it with --resume, or choose another name "
            "(--set name=...)."
        )


def train(config: Config, groups: Groups, *, resume: bool = False) -> int:
    files = RunDir(config.run_dir)
    check_startable(files, resume)
    if files.finished:
        print(f"{files.path} is finished; nothing to do.")
        if not files.report.exists():  # it was killed at the very end
            write_pages(files)
        return 0
    with sole(config.output_dir / "locks" / f"{config.name}.driver.json", _tell_wait) as other:
        if other:
            raise ClusterError(
                f"{files.path}: another driver ({other.place}) trains this run; two would ruin its ledger and "
                "checkpoints. Wait for its end, or give this run another name (--set name=...)."
            )
        return _train(config, groups, files)


def _tell_wait(owner: Owner) -> None:
    print(
        f"{owner.place}, on another machine, was training this run; waiting up to {LEASE_S:g} s for a sign of it.",
        flush=True,
    )


def _train(config: Config, groups: Groups, files: RunDir) -> int:
    restarts = 0
    with Signals() as signals:
        while True:
            try:
                Attempt(config, groups, files, signals).run()
                return 0
            except WorkerFailed as failed:
                raise ClusterError(
                    f"{failed}\nIts traceback is in {files.keep('error.txt', failed.details)}. The last checkpoint is "
                    "kept: once the cause is removed, go on with --resume."
                ) from failed
            except WorkerLost as lost:
                groups.close()
                if lost.report:
                    print(f"Stacks of all ranks: {files.keep_stall(lost.report)}", flush=True)
                if signals.received:
                    print(f"{lost} Stopped by a signal; the last checkpoint is kept. Go on with --resume.", flush=True)
                    return signals.exit_code
                restarts += 1
                if restarts > config.cluster.max_restarts:
                    raise ClusterError(
                        f"{lost} Gave up after {config.cluster.max_restarts} restarts (cluster.max_restarts). "
                        f"The last checkpoint is kept: run again with --resume."
                    ) from lost
                which = f"{restarts} of {config.cluster.max_restarts}"
                print(f"{lost} Restarting from the last checkpoint ({which}).", flush=True)
            except NodeLost as lost:
                print(f"{lost} The last checkpoint is kept. Go on with --resume.", flush=True)
                return exit_codes.NODE_LOST
            except Interrupted as stopped:
                print(stopped, flush=True)
                return stopped.code
            except OSError as error:
                if error.errno not in DISK_FAULTS:
                    raise
                raise CheckpointError(
                    f"{error.filename or files.path}: cannot be written ({error.strerror}). The last checkpoint is "
                    "kept: once there is room, go on with --resume."
                ) from error


class Attempt:
    """One life of the worker groups: build, load the last checkpoint, train, certify, export."""

    def __init__(self, config: Config, groups: Groups, files: RunDir, signals: Signals) -> None:
        self.config, self.groups, self.files, self.signals = config, groups, files, signals
        self.mode = config.cluster.reference
        self.preference = config.objective.kind == "preference"

    def run(self) -> None:
        start, total = self.build()
        with (
            Progress(self.config.name, total, start) as progress,
            Trackers(self.config, self.files, start) as trackers,
            self.signals.deferred(),
        ):
            self.steps(start, total, progress, trackers)
        self.certify()
        self.groups.policy().call("export", self.files.export, phase="exporting", limit_s=LONG_S)
        self.files.finish()
        write_pages(self.files)

    def build(self) -> tuple[int, int]:
        """Bring the groups up and load the last checkpoint; returns (steps done, steps in all)."""
        if self.mode == "cache":
            fill_cache(self.config, self.groups)
        roles = ("policy", "reference") if self.mode == "workers" else ("policy",)
        policy = self.groups.start(*roles)[0]
        pending = policy.start_build(self.config)
        if self.mode == "workers":
            theirs = self.groups.reference().build(self.config)
        built = policy.finish_build(pending)
        if self.mode == "workers":
            refuse_other_facts("the reference group", theirs["facts"], built["facts"])
        self.files.begin_or_resume(self.config, built["facts"])
        if self.mode == "cache":
            policy.call("read_cache")
        self.files.clear_partial()
        start = self.load()
        self.files.truncate(start)
        return start, int(built["steps"])

    def load(self) -> int:
        """Restore the newest checkpoint, if there is one; returns the number of steps done."""
        saved = self.files.saved_steps()
        if not saved:
            self.files.refuse_lost_checkpoints()
            return 0
        folder, policy = self.files.checkpoint(saved[-1]), self.groups.policy()
        try:
            policy.call_first("convert", folder, phase="converting a checkpoint", limit_s=LONG_S)
            step: int = policy.call("load", folder, phase="loading a checkpoint")[0]
        except WorkerFailed as failed:
            earlier = f" to go on from step {saved[-2]}" if len(saved) > 1 else " to start from the beginning"
            raise CheckpointError(
                f"{folder}: could not be loaded. {failed}\nThe traceback is in "
                f"{self.files.keep('error.txt', failed.details)}; the "
                "checkpoint was not changed. Remove the cause (memory, disk, a missing file) and go on with --resume. "
                f"If the files themselves are damaged, move the folder away{earlier}."
            ) from failed
        return step

    def steps(self, start: int, total: int, progress: Progress, trackers: Trackers) -> None:
        policy, spec = self.groups.policy(), self.config.training
        ahead = self.references_ahead(start) if start < total else None
        tail: list[dict[str, Any]] = []
        for step in range(start, total):
            began = time.perf_counter()
            try:
                references = self.arrived(ahead, step)
            except WorkerLost:
                self.save_whole(step, start)
                raise
            waited = time.perf_counter() - began
            pending = policy.start("train_step", references)
            ahead = self.references_ahead(step + 1) if step + 1 < total else None
            entry = policy.wait(pending, f"training step {step + 1}")[0]
            seconds = time.perf_counter() - began
            timing = {
                "step": entry["step"],
                "seconds": seconds,
                "tokens_per_second": entry["tokens"] / seconds,
                "reference_wait_s": waited,
            }
            self.files.append(entry, timing)
            progress.update(entry, timing)
            trackers.log(entry, timing)
            tail = [*tail[-19:], entry]
            if self.signals.received or (step + 1) % spec.checkpoint_every == 0 or step + 1 == total:
                self.save(step + 1)
            if self.signals.received:
                raise Interrupted(
                    f"Stopped by a signal; saved step {step + 1} of {total} in {self.files.path}. Go on with --resume.",
                    self.signals.exit_code,
                )
        for message in infeasible(tail).values() if self.preference else ():
            progress.warn(f"infeasible: {message}")

    def references_ahead(self, step: int) -> list[Any] | None:
        """Order the reference log-probs of a step, one step before they are needed."""
        if self.mode != "workers" or not self.preference:
            return None
        return self.groups.reference().start("score_step", step)

    def arrived(self, ahead: list[Any] | None, step: int) -> dict[int, list[float]] | None:
        if ahead is None:
            return None
        shares = self.groups.reference().wait(ahead, f"reference log-probs of step {step + 1}")
        return dict(enumerate(merge(shares, self.config.training.records_per_step)))

    def save(self, step: int) -> None:
        temporary, final = self.files.temporary_checkpoint(step), self.files.checkpoint(step)
        self.files.checkpoints.mkdir(parents=True, exist_ok=True)
        policy = self.groups.policy()
        policy.call("save", temporary, phase=f"saving step {step}")
        refuse_unshared(temporary, "the driver")
        self.files.sync()
        policy.commit(temporary, final)
        self.files.prune(self.config.training.keep_checkpoints)

    def save_whole(self, step: int, start: int) -> None:
        """Save between two steps when the reference group is lost; does nothing where the policy group is lost too."""
        if step > start and step not in self.files.saved_steps():
            with suppress(ClusterError, CheckpointError):
                self.save(step)

    def certify(self) -> None:
        """Held-out scores of policy and reference, and the verdicts from them."""
        policy = self.groups.policy()
        mine = policy.start("score_heldout")
        match self.mode:
            case "colocated":
                theirs = policy.wait(policy.start("score_heldout_reference"), "held-out reference scores")
            case "workers":
                theirs = self.groups.reference().call("score_heldout", phase="held-out reference scores")
            case "cache":
                theirs = [dict(enumerate(policy.call_first("cached_heldout", phase="held-out reference scores")))]
        shares = policy.wait(mine, "held-out scores")
        records = sum(map(len, shares))
        scores = merge(shares, records), merge(theirs, records)
        if verdict := policy.call_first("certificate", *scores, phase="certificate"):
            write_json(self.files.certificate, verdict)


def write_pages(files: RunDir) -> None:
    """Model card and report of a finished run."""
    from dpeer.report.card import model_card
    from dpeer.report.page import write_report

    write_text(files.export / "README.md", model_card(files.path))
    print(f"model: {files.export}\nreport: {write_report(files.path)}", flush=True)


def fill_cache(config: Config, groups: Groups) -> None:
    """Compute the reference log-probs of all records once, unless the cache has them; then free the workers."""
    from dpeer.training.prepare import prepare
    from dpeer.training.reference import cache_path, write_cache

    prepared = prepare(config)
    train, heldout = prepared.train, prepared.heldout
    paths = {d.sha256: cache_path(config, d) for d in (train, heldout) if d}
    if all(path.exists() for path in paths.values()):
        return
    print(f"{config.name}: computing the reference log-probabilities", flush=True)
    groups.close()  # policy workers of an earlier run would hold the places
    group, phase = groups.reference(), "filling the reference cache"
    refuse_other_facts("the reference group", group.build(config)["facts"], prepared.facts)
    scores: list[list[float]] = []
    slice_size = CACHE_SLICE * config.cluster.reference_workers
    for start in range(0, len(train.trees), slice_size):  # each call is far shorter than cluster.timeout_s
        stop = min(start + slice_size, len(train.trees))
        scores += merge(group.call("score_train", start, stop, phase=phase), stop - start)
    write_cache(paths[train.sha256], scores)
    if heldout:
        write_cache(paths[heldout.sha256], merge(group.call("score_heldout", phase=phase), len(heldout.trees)))
    groups.close()
