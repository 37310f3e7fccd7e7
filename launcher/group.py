"""A group of workers with one role: placement, calls to all ranks, and what is said when one dies or falls silent."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate

import ray
from ray.exceptions import GetTimeoutError, NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dpeer.config import Cluster, Config
from dpeer.errors import ClusterError, DpeerError
from dpeer.launcher.cluster import check_feasible, refuse_lost_nodes
from dpeer.launcher.gpus import resolved_gpus
from dpeer.launcher.last_words import last_lines, wait
from dpeer.launcher.watchdog import SILENT, State, Watch, headline, report
from dpeer.launcher.worker import Worker
from dpeer.training.agreement import refuse_other_facts, refuse_other_means
from dpeer.training.calls import DeviceLost, P, Phase, T, WorkerFailed, WorkerLost
from dpeer.training.environment import gpu_variables
from dpeer.training.faults import kind, tells_of_device
from dpeer.training.pulse import Pulse
from dpeer.training.token_place import PLACE

GRACE_S = 20.0  # how long, after a first failure, the other ranks may still tell what happened to them
PROBE_S = 3.0  # how long a rank may take to say what it is doing
MOST_TOLD = 8  # ranks whose words are kept when many fail at once
DEAD = "dead"
DEATHS = (RayActorError, NodeDiedError, OutOfMemoryError)  # the last by Ray's memory monitor; no RayActorError


class Group:
    """All ranks of one role. `config` fixes placement; the same processes can serve several recipes (`build`).

    No worker is placed on the nodes `left` (Ray's ids)."""

    def __init__(self, role: str, size: int, config: Config, left: Collection[str] = ()) -> None:
        self.role, self.size, self.spec = role, size, config.cluster
        spec, self.variables = self.spec, gpu_variables(config, role) if config.cluster.on_gpus else {}
        self.placement = _reserve(role, size, config, left)
        self.workers = [_worker(self.placement, i, spec) for i in range(size)]
        self.hosts: list[dict[str, Any]] = [{"host": "?", "pid": "?", "node": "", "stderr": ""}] * size
        self.entered: list[Any] = []
        self.own = ""  # address of rank 0
        self.joined = False

    def enter(self) -> None:
        """Begin to load libraries, which takes long; `join` waits for it."""
        spec = self.spec
        places = [w.place.remote() for w in self.workers]
        self.hosts = self._gather(places, "starting", spec.placement_timeout_s, watched=False)
        by_node = sorted(
            range(self.size), key=lambda i: (self.hosts[i]["node"], i)
        )  # hpZ takes neighbours for one node
        self.workers, self.hosts = [self.workers[i] for i in by_node], [self.hosts[i] for i in by_node]
        addresses = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes()}
        own = [addresses[h["node"]] for h in self.hosts]
        settings = {
            "threads": max(1, int(spec.cpus_per_worker)),
            "folder": os.getcwd(),
            "variables": self.variables,
        }
        self.own = own[0]
        self.entered = [w.enter.remote(own[i], settings) for i, w in enumerate(self.workers)]

    def join(self) -> None:
        """Make the ranks one process group."""
        spec, own = self.spec, self.own
        self._gather(self.entered, "loading libraries", watched=False)
        port = self._gather([self.workers[0].open_store.remote(own)], "choosing a port", watched=False)[0]
        limits = {
            "timeout_s": spec.timeout_s,
            "join_timeout_s": spec.join_timeout_s,
            "gpu": spec.on_gpus,
        }
        joins = [w.join.remote(i, self.size, own, port, limits) for i, w in enumerate(self.workers)]
        self._gather(joins, "joining the process group", spec.join_timeout_s + GRACE_S, watched=False)
        self.joined = True

    def build(self, config: Config, role: str | None = None, prepared: Any = None) -> dict[str, Any]:
        return self.finish_build(self.start_build(config, role, prepared))

    def start_build(self, config: Config, role: str | None = None, prepared: Any = None) -> list[Any]:
        values = config.model_dump(mode="python")
        return [w.build.remote(role or self.role, values, prepared) for w in self.workers]

    def finish_build(self, pending: list[Any]) -> dict[str, Any]:
        """Rank 0's summary, after all ranks have proved to hold the same data and weights."""
        summaries = self._gather(pending, "loading data and model")
        for rank, summary in enumerate(summaries):
            refuse_other_facts(self._name(rank), summary["facts"], summaries[0]["facts"])
        refuse_other_means({f"{self.role} rank {rank}": summary for rank, summary in enumerate(summaries)})
        return dict(summaries[0])

    def start(self, method: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs) -> list[Any]:
        """Begin a collective call; `wait` for it later."""
        return [w.call.remote(method.__name__, *args, **kwargs) for w in self.workers]

    def wait(self, phase: str, pending: list[Any]) -> list[Any]:
        return self._gather(pending, phase)

    def call(
        self, phase: Phase | str, method: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> list[T]:
        """Call a method of every rank; one result per rank. Raises WorkerLost, or the rank's own DpeerError."""
        phase = phase if isinstance(phase, Phase) else Phase(phase)
        return self._gather(self.start(method, *args, **kwargs), phase.name, phase.limit_s)

    def call_first(
        self, phase: Phase | str, method: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a method that is not collective on rank 0 alone."""
        phase = phase if isinstance(phase, Phase) else Phase(phase)
        pending = [self.workers[0].call.remote(method.__name__, *args, **kwargs)]
        result: T = self._gather(pending, phase.name, phase.limit_s)[0]
        return result

    def bandwidth(self) -> float:
        """GB/s of an all-reduce by these ranks."""
        limit = self.spec.join_timeout_s + GRACE_S
        asked = [w.bandwidth.remote() for w in self.workers]
        return float(min(self._gather(asked, "measuring an all-reduce", limit, watched=False)))

    def close(self) -> None:
        for worker in self.workers:
            ray.kill(worker)
        remove_placement_group(self.placement)

    def _gather(
        self, refs: Sequence[Any], phase: str, limit_s: float | None = None, *, watched: bool = True
    ) -> list[Any]:
        """One result per rank. The limit is that of a rank's silence: one that is watched and goes on may take long."""
        limit = limit_s or self.spec.timeout_s + GRACE_S
        rank_of = {ref: i for i, ref in enumerate(refs)}
        pending, results = list(refs), {}
        watch = Watch(self.spec.stall_timeout_s, time.monotonic())
        failures: dict[int, Exception] = {}
        told_by = math.inf  # by when ranks must have told of another's failure
        while pending:
            silent_since = min(watch.moved_at(rank_of[r]) for r in pending)
            left = min(told_by, silent_since + limit) - time.monotonic()
            if left <= 0:
                break
            done, pending = wait(pending, 1, min(left, watch.interval_s) if watched else left)
            if done:
                watch.moved(time.monotonic())
            elif watched and watch.stalled(self._pulses([rank_of[r] for r in pending]), time.monotonic()):
                raise self._stalled(
                    f"{self.role} made no progress for {self.spec.stall_timeout_s:g} s during '{phase}' "
                    "(cluster.stall_timeout_s)."
                )
            for ref in done:
                try:
                    results[ref] = ray.get(ref)
                except Exception as error:
                    failures[rank_of[ref]] = error
                    told_by = min(told_by, time.monotonic() + GRACE_S)
                    if _dead(error) or isinstance(_cause(error), DpeerError):
                        pending = []
        if failures or pending:
            silent = sorted((rank_of[r] for r in pending), key=watch.moved_at)
            raise self._failure(failures, silent, phase, limit)
        return [results[r] for r in refs]

    def _failure(self, failures: dict[int, Exception], silent: list[int], phase: str, limit: float) -> Exception:
        for error in failures.values():
            cause = _cause(error)
            if isinstance(cause, DpeerError):
                return cause
        dead = [rank for rank, error in failures.items() if _dead(error)]
        states = self._states() if not dead else []
        dead += [rank for rank, state in enumerate(states) if state.phase == DEAD]
        if dead:
            return self._death(dead, failures, phase)
        kinds = {rank: kind(_cause(error) or error) for rank, error in failures.items()}
        if own := [rank for rank, what in kinds.items() if what in ("own", "memory")]:
            return WorkerFailed(self._headline(own[0], failures[own[0]], phase), str(failures[own[0]]))
        if broken := [rank for rank, what in kinds.items() if what == "device"]:
            title = self._headline(broken[0], failures[broken[0]], phase)
            return self._device_lost(broken[0], f"{title}.", self._details(failures))
        if silent:
            own_limit = limit == self.spec.timeout_s + GRACE_S
            bound = f" (cluster.timeout_s = {self.spec.timeout_s:g})" if own_limit else ""
            title = f"{self._name(silent[0])} did not answer during '{phase}' within {limit:.0f} s{bound}."
            return WorkerLost(f"{title} {headline(states)}", report(title, states), self._details(failures))
        rank, error = next(iter(failures.items()))
        return WorkerLost(f"{self._headline(rank, error, phase)}.", details=self._details(failures))

    def _death(self, dead: list[int], failures: dict[int, Exception], phase: str) -> WorkerLost:
        """Of a rank; what others raised before may be its cause, such as a GPU's fault that ended a collective."""
        title, words = f"{self._name(dead[0])} died during '{phase}'.", self._words(dead)
        raised = {rank: error for rank, error in failures.items() if rank not in dead}
        said = self._told(raised, words)
        if isinstance(failures.get(dead[0]), OutOfMemoryError):
            return WorkerLost(f"{title} Ray ended it because its node ran out of memory.", details=said)
        broken = [rank for rank, error in raised.items() if kind(_cause(error) or error) == "device"]
        broken += [rank for rank, text in words.items() if tells_of_device(text)]
        return self._device_lost(broken[0], title, said) if broken else WorkerLost(title, details=said)

    def _device_lost(self, rank: int, title: str, details: str) -> DeviceLost:
        host = self.hosts[rank]["host"]
        return DeviceLost(f"{title} A GPU of host {host} has failed.", details, host, self.hosts[rank]["node"])

    def _headline(self, rank: int, error: Exception, phase: str) -> str:
        cause = _cause(error) or error
        reason = (str(cause).strip().splitlines() or ["no message"])[0][:300]
        return f"{self._name(rank)} failed during '{phase}': {type(cause).__name__}: {reason}"

    def _details(self, failures: dict[int, Exception]) -> str:
        """Traceback of each failed rank, then the last lines on its stderr, where NCCL and CUDA write their reasons."""
        return self._told(failures, self._words(list(failures)))

    def _words(self, ranks: Sequence[int]) -> dict[int, str]:
        """What these ranks wrote on stderr last, as far as their nodes still answer."""
        chosen = ranks[:MOST_TOLD]
        texts = last_lines([(self.hosts[rank]["node"], self.hosts[rank]["stderr"]) for rank in chosen])
        return {rank: text for rank, text in zip(chosen, texts, strict=True) if text}

    def _told(self, failures: dict[int, Exception], words: dict[int, str]) -> str:
        traces = [f"--- {self._name(rank)} ---\n{error}" for rank, error in list(failures.items())[:MOST_TOLD]]
        lines = [f"--- stderr of {self._name(rank)}, last lines ---\n{text}" for rank, text in words.items()]
        return "\n".join([*traces, *lines])

    def _name(self, rank: int) -> str:
        place = self.hosts[rank]
        return f"{self.role} worker rank {rank} (host {place['host']}, pid {place['pid']})"

    def _stalled(self, title: str) -> WorkerLost:
        states = self._states()
        dead = [rank for rank, state in enumerate(states) if state.phase == DEAD]
        if dead:
            return WorkerLost(f"{self._name(dead[0])} died. {title}", details=self._told({}, self._words(dead)))
        return WorkerLost(f"{title} {headline(states)}", report(title, states))

    def _pulses(self, ranks: Sequence[int]) -> dict[int, Pulse | None]:
        """What ranks say of their progress, asked all at once; None where no answer came in time."""
        asked = self._ask("pulse", ranks)
        return {rank: pulse if isinstance(pulse, Pulse) else None for rank, pulse in asked.items()}

    def _states(self) -> list[State]:
        """Phase and stacks of every rank."""
        states = []
        for rank, answer in self._ask("look", range(self.size)).items():
            values = answer if isinstance(answer, dict) else {"phase": DEAD if answer == DEAD else SILENT}
            states.append(State(self._name(rank), **values))
        return states

    def _ask(self, method: str, ranks: Sequence[int]) -> dict[int, Any]:
        """Answers of the ranks' health threads: DEAD for a rank that is gone, None for one that does not answer."""
        refs = {rank: getattr(self.workers[rank], method).remote() for rank in ranks}
        wait(list(refs.values()), len(refs), PROBE_S)
        return {rank: _answer(ref) for rank, ref in refs.items()}


class Groups:
    """The policy and reference groups, made when first needed, kept for the next recipe of the same placement."""

    def __init__(self, config: Config) -> None:
        self.config = resolved_gpus(config)
        self.spec = self.config.cluster
        self._groups: dict[str, Group] = {}
        self.left: set[str] = set()  # nodes with a broken GPU
        check_feasible(wanted(self.config), bundle(self.spec))

    def policy(self) -> Group:
        return self.start("policy")[0]

    def reference(self) -> Group:
        return self.start("reference")[0]

    def start(self, *roles: str) -> list[Group]:
        """The groups of these roles."""
        self.begin(*roles)
        with self._whole(new := [role for role in roles if not self._groups[role].joined]):
            for role in new:
                self._groups[role].join()
        return [self._groups[role] for role in roles]

    def begin(self, *roles: str) -> None:
        """Have those that are not there yet load their libraries, all at the same time; does not wait for that."""
        sizes = {"policy": self.spec.policy_workers, "reference": self.spec.reference_workers}
        with self._whole(new := [role for role in roles if role not in self._groups]):
            for role in new:
                self._groups[role] = Group(role, sizes[role], self.config, self.left)
            for role in new:
                self._groups[role].enter()

    @contextmanager
    def _whole(self, new: Sequence[str]) -> Iterator[None]:
        """Whatever ends the block, a signal too, must not leave processes of these roles behind."""
        try:
            yield
        except BaseException:
            for role in new:
                if group := self._groups.pop(role, None):
                    group.close()
            raise

    def close(self) -> None:
        while self._groups:
            self._groups.popitem()[1].close()


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=0)
    except DEATHS:
        return DEAD
    except (RayTaskError, GetTimeoutError):
        return None


def wanted(config: Config) -> dict[str, int]:
    """Workers that a run holds at the same time, by role."""
    spec = config.cluster
    if spec.reference == "workers":
        return {"policy": spec.policy_workers, "reference": spec.reference_workers}
    if config.reference_group:  # one after the other
        return {"policy": max(spec.policy_workers, spec.reference_workers)}
    return {"policy": spec.policy_workers}


def bundle(spec: Cluster) -> dict[str, float]:
    assert spec.gpus_per_worker != "auto"
    return {"CPU": spec.cpus_per_worker} | ({"GPU": 1.0} if spec.on_gpus else {})


def _reserve(role: str, size: int, config: Config, left: Collection[str]) -> PlacementGroup:
    spec = config.cluster
    needed = max(wanted(config), {role: size}, key=lambda groups: sum(groups.values()))
    elsewhere = [{"ray.io/node-id": f"!in({','.join(sorted(left))})"}] * size if left else None
    group = placement_group([bundle(spec)] * size, strategy="PACK", bundle_label_selector=elsewhere)
    deadline = time.monotonic() + spec.placement_timeout_s
    try:
        while not group.wait(PROBE_S):
            refuse_lost_nodes(needed, bundle(spec), left)
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{role}: {size} x {bundle(spec)} could not be placed within {spec.placement_timeout_s:g} s, "
                    "though the cluster is large enough: other jobs hold the resources. Wait for them or raise "
                    "cluster.placement_timeout_s."
                )
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def _worker(group: PlacementGroup, index: int, spec: Cluster) -> Any:
    environment = {"OMP_NUM_THREADS": str(max(1, int(spec.cpus_per_worker))), "OMP_WAIT_POLICY": "PASSIVE"}
    environment["DS_ACCELERATOR"] = "cuda" if spec.on_gpus else "cpu"  # whatever the driver has for itself
    environment |= {PLACE: os.environ[PLACE]} if PLACE in os.environ else {}  # a cluster that runs already has its own
    actor: Any = Worker
    return actor.options(
        num_cpus=spec.cpus_per_worker,
        num_gpus=int(spec.on_gpus),
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        runtime_env={"env_vars": environment},
    ).remote()


def _cause(error: Exception) -> BaseException | None:
    return error.cause if isinstance(error, RayTaskError) else None


def _dead(error: Exception) -> bool:
    return isinstance(error, DEATHS)
