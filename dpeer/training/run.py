"""The order of a run: build, load the newest checkpoint, train, certify, export. It exists once, for every launcher.

A driver executes it: it orders steps and keeps the files, and never touches tensors of the model. How ranks are
reached, who watches and who may stop the run comes from the launcher. Nothing here needs torch until ranks are built,
so that a driver can have them load their libraries at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

from dpeer.config import Config
from dpeer.errors import CheckpointError, ClusterError, DamagedCheckpoint, Diverged, Interrupted
from dpeer.integrity import refuse_damaged_model, write_state
from dpeer.objective.rows import TimingRow
from dpeer.training import ending
from dpeer.training.agreement import refuse_other_facts, refuse_other_means
from dpeer.training.calls import (
    LONG_S,
    Phase,
    PolicyCalls,
    Ranks,
    ReferenceCalls,
    WorkerFailed,
    WorkerLost,
    Workers,
    merge,
)
from dpeer.training.cost import cost
from dpeer.training.publish import publish
from dpeer.training.run_dir import RunDir
from dpeer.training.saves import Saves
from dpeer.training.together import refuse_misfit, refuse_misfits, way_back

TAIL = 20
"""Last ledger lines by which constraints are judged infeasible."""
EXPORTING = Phase("exporting", LONG_S)
REFERENCE = "held-out reference scores"
DUAL_REFERENCE = "reference scores of the dual split"


class StopRequests(Protocol):
    """Wishes to stop, by signals: while deferred they wait for the end of a step and its checkpoint."""

    @property
    def received(self) -> int | None: ...
    @property
    def exit_code(self) -> int: ...
    def deferred(self) -> AbstractContextManager[None]: ...


class Watcher(Protocol):
    """Who is told of each step: its ledger line and its timing line."""

    def step(self, entry: dict[str, Any], timing: TimingRow) -> None: ...
    def warn(self, message: str) -> None: ...


class TrainingRun:
    """One life of the workers. `watch` opens a watcher for (steps in all, steps done)."""

    def __init__(
        self,
        config: Config,
        workers: Workers,
        files: RunDir,
        stops: StopRequests,
        watch: Callable[[int, int], AbstractContextManager[Watcher]],
    ) -> None:
        self.config, self.workers, self.files, self.stops, self.watch = config, workers, files, stops, watch
        self.mode = config.cluster.reference
        self.dual_records = config.dual_records
        self.preference = config.objective.kind == "preference"
        self.total = 0  # steps of the whole run, once the ranks have counted them
        self.dual_reference: list[list[float]] = []  # of the whole dual split, once it was needed
        self.saves = Saves(config, files, workers, self.prune)

    def run(self) -> None:
        """To the end, from wherever an earlier life has left the run. Raises Interrupted once a stop is saved."""
        refuse_misfits(self.files)
        for path in {self.config.model.path, self.config.model.reference_path or ""}:
            refuse_damaged_model(path)
        start = self.build()
        with self.watch(self.total, start) as watcher, self.stops.deferred():
            done = self.steps(start, watcher)
        last = self.conclude(done)
        self.certify()
        made = self.workers.policy().call(EXPORTING, PolicyCalls.export, self.files.export)[0]
        for line in made["notes"]:
            print(line, flush=True)
        if made["files"] is not None:  # reading it back takes minutes, and no GPU
            self.workers.close()
        self.files.finish(last, publish(self.files.export, made))

    def build(self) -> int:
        """Build the ranks and load the last checkpoint; returns the number of steps done."""
        policy, built = self.ranks()
        means = built["means"]
        self.files.begin_or_resume(self.config, built["facts"], means)
        for line in built.get("reading", ()):
            print(line, flush=True)
        n, chosen = means["sequence_parallel"], self.config.training.sequence_parallel == "auto"
        shared = f"; {n} rank{'s' * (n > 1)} to a pack" if n > 1 or chosen else ""
        print(
            f"{self.config.name}: {means['engine']} engine ({built['why']}), attention by {means['attention']}, layers "
            f"by {means['kernels']}{shared}",
            flush=True,
        )
        for line in built["warnings"]:
            print(f"warning: {line}", flush=True)
        if self.mode == "cache":
            policy.call("reading the reference cache", PolicyCalls.read_cache)
        self.total = int(built["steps"])
        saved = self.files.saved_steps()
        if not saved:
            self.files.refuse_lost_checkpoints()
        self.files.clear_partial()
        start = load(policy, self.files, saved[-1]) if saved else 0
        self.files.note(means)
        self.files.truncate(start)
        self.prune()
        return start

    def ranks(self) -> tuple[Ranks, dict[str, Any]]:
        """Bring the groups up and fill the reference cache; the policy, still as it starts, and what it says of
        itself."""
        from dpeer.training.fill import fill_cache, fill_cache_by_policy

        by_policy = self.config.model.reference_in_policy
        if self.mode == "cache" and not by_policy:
            fill_cache(self.config, self.workers)
        policy = self.workers.start(*roles(self.config))[0]
        pending = policy.start_build(self.config)
        if self.mode == "workers":
            theirs = self.workers.reference().build(self.config)
        built = policy.finish_build(pending)
        if self.mode == "workers":
            refuse_other_facts("the reference group", theirs["facts"], built["facts"])
            refuse_other_means({"policy rank 0": built, "the reference group": theirs})
        if self.mode == "cache" and by_policy:
            fill_cache_by_policy(self.config, policy, built["facts"])
        return policy, built

    def steps(self, start: int, watcher: Watcher) -> int:
        """Train until the end or an early stop; returns the number of steps done."""
        policy, total = self.workers.policy(), self.total
        if self.ends_early(start):  # a kill may have come between a checkpoint and its verdict
            return start
        if start == 0:
            self.sample(0)
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
            pending = policy.start(PolicyCalls.timed_step, references)
            ahead = self.references_ahead(step + 1) if step + 1 < total else None
            try:
                shares = policy.wait(f"training step {step + 1}", pending)
            except Diverged:  # all ranks have said so, and can still end the checkpoint that they are writing
                with suppress(ClusterError, CheckpointError):
                    self.saves.finish()
                raise
            entry, costs = shares[0][0], [c for _, c in shares]
            timing = cost(entry, costs, time.perf_counter() - began, waited)
            if not any(c["writing"] for c in costs):
                self.saves.finish()
            if save := self.saves.told(timing["seconds"], watcher.warn):
                timing["save"] = save
            self.files.append(entry, timing)
            watcher.step(entry, timing)
            tail = [*tail[1 - TAIL :], entry]
            self.sample(step + 1)
            if self.stops.received or self.saves.due(step + 1, total):
                self.saves.save(step + 1, now=bool(self.stops.received) or step + 1 == total)
                self.stop_here(step + 1)
            if self.ends_early(step + 1):
                break
        self.saves.finish()
        done = int(tail[-1]["step"]) if tail else start
        self.stop_here(done)
        if self.preference:
            from dpeer.objective.ledger import infeasible

            for message in infeasible(tail).values():
                watcher.warn(f"infeasible: {message}")
        return done

    def stop_here(self, step: int) -> None:
        """Interrupted where a signal asks for it, once the last checkpoint, which is of this step, is whole: a signal
        may have come while the copy for it was made."""
        if self.stops.received:
            self.saves.finish()
            raise Interrupted(
                f"Stopped by a signal; saved step {step} of {self.total} in {self.files.path}. Go on with --resume.",
                self.stops.exit_code,
            )

    def sample(self, step: int) -> None:
        """Have the policy answer its few prompts, where that is due."""
        every = self.config.training.sample_every
        if every and (step % every == 0 or step == self.total):
            replies = self.workers.policy().call("sampling replies", PolicyCalls.sample)[0]
            self.files.append_samples(step, replies)

    def ends_early(self, step: int) -> bool:
        """Whether training is over at this checkpoint, before its time. A stop is on disk before anything follows."""
        spec, every = self.config.training, self.config.training.checkpoint_every
        if self.files.stopped:
            return True
        if every is None or step in (0, self.total) or step % every:
            return False
        look = step // every
        if spec.stop_when == "certified" and self.proven(look):
            confidence = ending.confidence(look, self.config.objective.certificate.confidence)
            why = {"reason": "certified", "look": look, "confidence": confidence}
        elif spec.patience and ending.exhausted(self.scores(), spec.patience):
            why = {"reason": "patience", "patience": spec.patience}
        else:
            return False
        write_state(self.files.stop, {"step": step, **why})
        return True

    def scores(self) -> dict[int, float]:
        every = self.config.training.checkpoint_every
        assert every is not None  # where checkpoints are judged
        return ending.scores(self.files.rows(), every, self.total)

    def best(self) -> int | None:
        """The checkpoint to be exported, among those on disk; None where that is the last one."""
        if self.config.training.keep == "last":
            return None
        return ending.best(self.scores(), self.files.saved_steps())

    def conclude(self, done: int) -> int:
        """Have the ranks hold the checkpoint with which the run ends; returns its step. A run that ended because its
        last checkpoint was proven ends with that one."""
        stopped = self.files.stopped
        if stopped:
            print(f"{self.config.name}: training ended early, at step {done} ({stopped['reason']}).", flush=True)
        best = None if stopped and stopped["reason"] == "certified" else self.best()
        return done if best in (None, done) else load(self.workers.policy(), self.files, best)

    def references_ahead(self, step: int) -> Any:
        """Order the reference log-probs of a step, one step before they are needed."""
        if self.mode != "workers" or not self.preference:
            return None
        return self.workers.reference().start(ReferenceCalls.score_step, step)

    def arrived(self, ahead: Any, step: int) -> dict[int, list[float]] | None:
        if ahead is None:
            return None
        shares = self.workers.reference().wait(f"reference log-probs of step {step + 1}", ahead)
        return dict(enumerate(merge(shares, self.config.training.records_per_step + self.dual_records)))

    def prune(self) -> None:
        self.files.prune(self.config.training.keep_checkpoints, self.best())

    def save_whole(self, step: int, start: int) -> None:
        """Save between two steps when the reference group is lost; does nothing where the policy group is lost too."""
        with suppress(ClusterError, CheckpointError):
            self.saves.finish()
            if step > start and step not in self.files.saved_steps():
                self.saves.save(step, now=True)

    def proven(self, look: int) -> bool:
        """Whether the whole dual split, as the policy stands, proves every tolerance at the k-th look at it."""
        policy = self.workers.policy()
        shares = policy.call("scoring the dual split", PolicyCalls.score_dual)
        records = sum(map(len, shares))
        if not self.dual_reference:
            match self.mode:
                case "colocated":
                    theirs = policy.call(DUAL_REFERENCE, PolicyCalls.score_dual_reference)
                case "workers":
                    theirs = self.workers.reference().call(DUAL_REFERENCE, ReferenceCalls.score_dual)
                case "cache":
                    theirs = [dict(enumerate(policy.call_first(DUAL_REFERENCE, PolicyCalls.cached_dual)))]
            self.dual_reference = merge(theirs, records)
        scores = merge(shares, records), self.dual_reference
        return policy.call_first("certifying the dual split", PolicyCalls.proven, *scores, look)

    def certify(self) -> None:
        """Held-out scores of policy and reference, and the verdicts from them."""
        policy = self.workers.policy()
        mine = policy.start(PolicyCalls.score_heldout)
        match self.mode:
            case "colocated":
                theirs = policy.wait(REFERENCE, policy.start(PolicyCalls.score_heldout_reference))
            case "workers":
                theirs = self.workers.reference().call(REFERENCE, ReferenceCalls.score_heldout)
            case "cache":
                theirs = [dict(enumerate(policy.call_first(REFERENCE, PolicyCalls.cached_heldout)))]
        shares = policy.wait("held-out scores", mine)
        records = sum(map(len, shares))
        scores = merge(shares, records), merge(theirs, records)
        if verdict := policy.call_first("certificate", PolicyCalls.certificate, *scores, self.files.heldout):
            write_state(self.files.certificate, verdict)


def roles(config: Config) -> tuple[str, ...]:
    """Groups that train."""
    return ("policy", "reference") if config.cluster.reference == "workers" else ("policy",)


def load(policy: Ranks, files: RunDir, step: int) -> int:
    """Restore a checkpoint; returns its step."""
    folder = files.checkpoint(step)
    refuse_misfit(files, files.read_manifest(), step)
    try:
        return policy.call("loading a checkpoint", PolicyCalls.load, folder)[0]
    except DamagedCheckpoint as error:
        raise CheckpointError(f"{error} {way_back(files, step)}") from error
    except WorkerFailed as failed:
        kept = files.keep_error(str(failed), failed.details)
        raise CheckpointError(
            f"{folder}: could not be loaded. {failed}\nThe traceback is in {kept}; "
            "the checkpoint was not changed. Remove the cause (memory, disk) and go on with --resume. If the files "
            f"themselves are damaged: {way_back(files, step)}"
        ) from failed
