"""The Ray actor: one rank of a worker group. Thin: all work is done by dpeer.training."""

from __future__ import annotations

import faulthandler
import gc
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import ray

from dpeer.errors import ClusterError, DpeerError
from dpeer.launcher import watchdog
from dpeer.launcher.faq import raised_in
from dpeer.launcher.last_words import stderr_file
from dpeer.training.environment import set_defaults
from dpeer.training.pulse import Pulse


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"health": 1})
class Worker:
    """Joins a process group once; may then be built several times (another recipe, the same processes)."""

    def __init__(self) -> None:
        self.world: Any = None
        self.rank: Any = None
        self.store: Any = None

    def place(self) -> dict[str, Any]:
        """Where this worker runs, and the file that takes its stderr."""
        node = ray.get_runtime_context().get_node_id()
        return {"node": node, "pid": os.getpid(), "host": socket.gethostname(), "stderr": stderr_file()}

    def enter(self, own_address: str, settings: dict[str, Any]) -> None:
        """Go to the driver's working directory and load what takes long, so that all ranks are ready to join."""
        try:
            os.chdir(settings["folder"])
        except OSError as error:
            raise ClusterError(
                f"host {socket.gethostname()} cannot enter {settings['folder']} ({error.strerror}), where the driver "
                "runs. Start the run from a folder that all nodes share."
            ) from error
        faulthandler.enable()  # of all threads: watchdogs abort from one of their own
        set_defaults(settings["variables"])
        if interface := _interface(own_address):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        gc.disable()  # a million objects of modules, of which none is garbage: not to be looked through, now or later
        import torch

        import dpeer.training.rank  # noqa: F401

        gc.freeze()
        gc.enable()
        torch.set_num_threads(settings["threads"])

    def open_store(self, address: str) -> int:
        """The port at `address` where the ranks of this worker's group will meet."""
        from dpeer.training import world

        self.store = world.open_store(address)
        return int(self.store.port)

    def join(self, rank: int, size: int, address: str, port: int, limits: dict[str, Any]) -> None:
        """Join the group's process group at rank 0's `address` and `port`."""
        from dpeer.training import world

        self.world = world.start(rank, size, address, port, store=self.store, **limits)

    def bandwidth(self) -> float:
        """Collective: GB/s of an all-reduce."""
        from dpeer.training.world import all_reduce_bandwidth

        return all_reduce_bandwidth(self.world)

    def build(self, role: str, config: dict[str, Any], prepared: Any = None) -> dict[str, Any]:
        """Load data (unless `prepared` has them) and model of a recipe; returns the facts about the data."""
        from dpeer.config import Config
        from dpeer.launcher.teams import with_teams
        from dpeer.training.rank import ReferenceRank, TrainingRank

        if self.rank:
            self.rank.close()
        self.rank = None
        with _refusals():
            spec = with_teams(Config.model_validate(config), self.world, role, prepared)
            if role == "policy":
                self.rank = TrainingRank(spec, self.world, prepared)
            else:
                self.rank = ReferenceRank(spec, self.world)
        return dict(self.rank.summary)

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        from dpeer.training.rank import carry_out

        with _refusals():
            return carry_out(self.rank, method, *args, **options)

    @ray.method(concurrency_group="health")
    def pulse(self) -> Pulse:
        """What this rank is doing; answers while the main thread is busy."""
        return self.rank.pulse if self.rank else Pulse("starting")

    @ray.method(concurrency_group="health")
    def look(self) -> dict[str, Any]:
        """Phase and Python stacks of this rank; answers while the main thread is inside a collective."""
        return {"phase": self.pulse().phase} | watchdog.look()


@contextmanager
def _refusals() -> Iterator[None]:
    """An error takes along where it was raised: its traceback stays here."""
    try:
        yield
    except DpeerError as error:
        error.module = raised_in(error)
        raise


def _interface(address: str) -> str | None:
    """The network interface that carries this node's address: gloo must not guess between several."""
    found = (name for name, addresses in psutil.net_if_addrs().items() if address in {a.address for a in addresses})
    return next(found, None)
