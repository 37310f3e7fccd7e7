"""Training without Ray: `torchrun --nproc-per-node N -m dpeer.launcher.torchrun RECIPE [KEY=VALUE ...]`.

Rank 0 is the driver of the same run as under Ray, with the same files, lock and signals; the other ranks do what it
says. It goes on from the newest checkpoint, so that torchrun's own restarts resume. Without torchrun it is a run of one
process.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Concatenate

import torch
import torch.distributed as dist

from dpeer.config import Config
from dpeer.errors import ConfigError, DpeerError, Interrupted
from dpeer.launcher.driver import (
    already_finished,
    as_begun,
    disk_faults,
    only_driver,
    refuse_lost_gpus,
    tokenise,
    watch,
    write_pages,
)
from dpeer.launcher.faq import pointer
from dpeer.launcher.gpus import device_line, resolved_gpus
from dpeer.launcher.outlasting import OUTPUT, outlasting
from dpeer.launcher.recipe import training_config
from dpeer.launcher.signals import Signals, preempt_signal
from dpeer.launcher.teams import with_teams
from dpeer.launcher.trackers import check_trackers
from dpeer.training import world
from dpeer.training.agreement import refuse_other_facts, refuse_other_means
from dpeer.training.calls import LONG_S, P, Phase, T, WorkerLost
from dpeer.training.choice import check_settings
from dpeer.training.dates import dated
from dpeer.training.environment import gpu_variables, set_defaults
from dpeer.training.faults import kind
from dpeer.training.rank import ReferenceRank, TrainingRank, carry_out
from dpeer.training.run import TrainingRun
from dpeer.training.run_dir import RunDir

# DeepSpeed's calls of older names, on every step of every rank.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
ROLES: dict[str, type[TrainingRank] | type[ReferenceRank]] = {"policy": TrainingRank, "reference": ReferenceRank}
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BUILD, STOP = "build", "stop"
GRACE_S = 5.0
"""A follower's fault is told after so long: what all ranks meet, rank 0 tells, and torchrun ends the rest."""


class Rank:
    """This process's rank of the one group, rebuilt for each role; and the channels by which rank 0 says what to do."""

    def __init__(self, here: world.World, timeout_s: float) -> None:
        self.here, self.timeout_s = here, timeout_s
        self.rank: TrainingRank | ReferenceRank | None = None
        self.busy = False
        # Followers may wait long: rank 0 exports and writes pages meanwhile. Rank 0 asks for results when its own share
        # is done, and then waits no longer than in any other collective.
        waits_s = timeout_s if here.rank == 0 else LONG_S
        self.orders = dist.new_group(backend="gloo", timeout=timedelta(seconds=LONG_S))
        self.results = dist.new_group(backend="gloo", timeout=timedelta(seconds=waits_s))

    def execute(self, order: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if order == BUILD:
            role, config = arguments
            if self.rank:
                self.rank.close()
            self.rank = None
            self.rank = ROLES[role](with_teams(config, self.here, role), self.here)
            return dict(self.rank.summary)
        assert self.rank is not None
        return carry_out(self.rank, order, *arguments, **options)

    def everywhere(self, order: str, *arguments: Any, **options: Any) -> list[Any]:
        """Rank 0: have all ranks execute an order; one result per rank. WorkerLost when another rank does not."""
        self.busy = True
        try:
            dist.broadcast_object_list([(order, arguments, options)], group=self.orders)
            results = self._gathered(self.execute(order, arguments, options))
        except (RuntimeError, dist.DistError) as error:
            if kind(error) != "collective":
                raise
            raise WorkerLost(
                f"another rank has ended, or has not answered for {self.timeout_s:g} s (cluster.timeout_s) during "
                f"'{order}'; what it says itself stands beside this. The last checkpoint is kept: once the cause is "
                "removed, the same command goes on from it."
            ) from error
        self.busy = False
        return results

    def follow(self) -> None:
        """Other ranks: execute orders until told to stop."""
        while True:
            box: list[Any] = [None]
            dist.broadcast_object_list(box, group=self.orders)
            order, arguments, options = box[0]
            if order == STOP:
                return
            self._gathered(self.execute(order, arguments, options))

    def stop(self) -> None:
        """Rank 0: no more orders. In the middle of one nobody would hear it: rank 0's end is the sign then."""
        if not self.busy:
            dist.broadcast_object_list([(STOP, (), {})], group=self.orders)

    def _gathered(self, result: Any) -> list[Any]:
        results: list[Any] = [None] * self.here.size
        dist.gather_object(result, results if self.here.rank == 0 else None, group=self.results)
        return results


class LocalRanks:
    """The group as the driver on rank 0 sees it; calls are done when they return."""

    def __init__(self, rank: Rank, role: str) -> None:
        self.rank, self.role, self.size = rank, role, rank.here.size

    def start_build(self, config: Config, role: str | None = None) -> list[Any]:
        return self.rank.everywhere(BUILD, role or self.role, config)

    def finish_build(self, pending: list[Any]) -> dict[str, Any]:
        for number, summary in enumerate(pending):
            refuse_other_facts(f"rank {number}", summary["facts"], pending[0]["facts"])
        refuse_other_means({f"rank {number}": summary for number, summary in enumerate(pending)})
        return dict(pending[0])

    def build(self, config: Config, role: str | None = None) -> dict[str, Any]:
        return self.finish_build(self.start_build(config, role))

    def start(self, method: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs) -> list[Any]:
        return self.rank.everywhere(method.__name__, *args, **kwargs)

    def wait(self, phase: str, pending: list[Any]) -> list[Any]:
        return pending

    def call(
        self, phase: Phase | str, method: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> list[T]:
        return self.start(method, *args, **kwargs)

    def call_first(
        self, phase: Phase | str, method: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        result: T = self.rank.execute(method.__name__, args, kwargs)
        return result


class LocalWorkers:
    """One group that takes one role after the other."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank

    def start(self, *roles: str) -> list[LocalRanks]:
        return [LocalRanks(self.rank, role) for role in roles]

    def policy(self) -> LocalRanks:
        return LocalRanks(self.rank, "policy")

    def reference(self) -> LocalRanks:
        return LocalRanks(self.rank, "reference")

    def close(self) -> None:
        """The processes stay."""


def drive(config: Config, rank: Rank) -> int:
    """Rank 0: the whole run; returns the exit code."""
    files = RunDir(config.run_dir)
    try:
        with Signals(files) as signals, only_driver(config), disk_faults(files):
            if not already_finished(files, config):
                tokenise(config, files)
                TrainingRun(config, LocalWorkers(rank), files, signals, partial(watch, config, files)).run()
                write_pages(files)
            rank.stop()
            return 0
    except Interrupted as stopped:
        print(stopped, flush=True)
        rank.stop()
        return stopped.code


def follow(rank: Rank) -> int:
    """Other ranks: rank 0 decides what a signal means."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, preempt_signal()):
        signal.signal(number, signal.SIG_IGN)
    try:
        rank.follow()
    except DpeerError as error:
        time.sleep(GRACE_S)
        print(f"rank {rank.here.rank}: {error}", file=sys.stderr, flush=True)
        return 1
    except (RuntimeError, dist.DistError) as error:
        if kind(error) != "collective":
            raise
        time.sleep(GRACE_S)
        print(f"rank {rank.here.rank}: ends, because another rank has ended or is silent.", file=sys.stderr, flush=True)
        return 1
    return 0


def join(config: Config) -> world.World:
    """The process group that torchrun has set up, or one of this process alone."""
    if gpu := config.cluster.on_gpus:
        set_defaults(gpu_variables(config, "rank"))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return world.alone(config.cluster.timeout_s, gpu=gpu, local_rank=local_rank)
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise ConfigError(
            f"the environment has RANK or WORLD_SIZE, but not {', '.join(missing)}. torchrun sets all of them; for "
            "a run of one process unset RANK and WORLD_SIZE."
        )
    return world.start(
        int(os.environ["RANK"]),
        int(os.environ["WORLD_SIZE"]),
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        config.cluster.timeout_s,
        gpu=gpu,
        local_rank=local_rank,
        join_timeout_s=config.cluster.join_timeout_s,
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="torchrun ... -m dpeer.launcher.torchrun", description="Train without Ray.")
    parser.add_argument("recipe", help="name of a shipped recipe, or the path of a YAML file")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="override")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="the same")
    parser.add_argument("--resume", action="store_true", help="as of dpeer train; here a run goes on without it too")
    given, leads = parser.parse_intermixed_args(arguments), os.environ.get("RANK", "0") == "0"
    try:
        config = training_config(given.recipe, [*given.changes, *given.overrides])
        if config.cluster.reference == "workers":
            raise ConfigError(
                "cluster.reference = workers: torchrun starts one group, so there are no other workers. "
                "Set it to colocated, or to cache."
            )
        check_settings(config, int(os.environ.get("WORLD_SIZE") or 1))
        config = as_begun(config, RunDir(config.run_dir), print if leads else lambda line: None)
        given_config, config = config, dated(resolved_gpus(config, torch.cuda.device_count()))
        refuse_lost_gpus(given_config, config, RunDir(config.run_dir))
        if (line := device_line(given_config, config)) and leads:
            print(line, flush=True)
        check_trackers(config)
        rank = Rank(join(config), config.cluster.timeout_s)
        if rank.here.rank:
            return follow(rank)
        with outlasting(config.run_dir / OUTPUT):
            return drive(config, rank)
    except DpeerError as error:
        print(f"error: {error}\n{pointer(error)}", file=sys.stderr, flush=True)
        return 1
    finally:
        world.stop()


if __name__ == "__main__":
    atexit.register(gc.freeze)  # all memory goes back at the end: nothing is to be looked through for garbage
    sys.exit(main(sys.argv[1:]))
