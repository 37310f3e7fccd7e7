"""Engines as Ray actors: who answers which calls, and what happens when an engine dies or falls silent."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError, RayTaskError

from dpeer.errors import ClusterError, DpeerError
from dpeer.eval.backends import config
from dpeer.eval.backends.types import Answer, Call, Job, Say, refused
from dpeer.eval.backends.vllm.engine import LOADING_THREADS, Engine, environment, started

Task = tuple[Call, ...]
Node = Mapping[str, float]
"""Cores and GPUs."""
IN_FLIGHT = 2
"""Tasks per engine: one being answered, one waiting beside it, so that the engine never idles."""
LIVES = 2
"""A conversation that has been in this many dying engines is not sent again."""
PER_TASK = {"cpu": 64, "gpu": 512}
"""Conversations per task."""


class Worker:
    """The process around an engine. A process that has loaded vLLM once starts its next model much sooner."""

    def __init__(self) -> None:
        self.engine: Engine | None = None

    def start(self, job: Job) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None
        self.engine = started(lambda: Engine(job), job.device)

    def answer(self, calls: Task) -> list[Answer]:
        assert self.engine is not None
        return self.engine.answer(calls)


@dataclass(slots=True)
class _Attempt:
    calls: Task
    deaths: int = 0


@dataclass(slots=True)
class _Replica:
    """An actor and what it was sent, oldest first; None stands for the start of its engine."""

    actor: Any
    fresh: bool
    sent: deque[tuple[Any, _Attempt | None]] = field(default_factory=deque)
    since: float = field(default_factory=time.monotonic)

    def send(self, attempt: _Attempt) -> None:
        if not self.sent:
            self.since = time.monotonic()
        self.sent.append((self.actor.answer.remote(attempt.calls), attempt))


class Farm:
    """Answers the calls of one model after another. Use as a context: leaving it ends all engines."""

    def __init__(
        self,
        spec: config.Farm,
        say: Say = lambda line: None,
        worker: type = Worker,
        free: Sequence[Node] | None = None,
    ) -> None:
        self.spec, self.say, self.worker, self.free = spec, say, worker, free
        self.restarts = 0
        self._idle: list[tuple[dict[str, str], Any]] = []
        self._replicas: list[_Replica] = []

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *exc: object) -> None:
        self._dismiss()
        self.make_room()

    def _dismiss(self) -> None:
        for replica in self._replicas:
            ray.kill(replica.actor)
        self._replicas = []

    def run(self, job: Job, tasks: Iterable[Task]) -> Iterator[list[Answer]]:
        """Answers, task by task as they finish; every call is answered exactly once. Tasks are made as they are needed.

        Raises ClusterError when the engines cannot fit the cluster, cannot start, or died more than max_restarts times.
        """
        source = map(_Attempt, tasks)
        waiting = deque(islice(source, replicas(self.spec, job, self.free)))
        if not waiting:
            return
        check_feasible(len(waiting), resources(job, self.free), job.served.name)
        self.restarts = 0
        self._replicas = [self._hire(job) for _ in waiting]
        try:
            while True:
                self._distribute(waiting, source)
                if not any(r.sent for r in self._replicas):
                    break
                self._wait()
                for replica in list(self._replicas):
                    yield from self._collect(job, replica, waiting)
            if job.device == "cpu":
                self._idle += [(environment(job), r.actor) for r in self._replicas]
                self._replicas = []
        finally:  # on a GPU only the end of a process surely frees all of its memory
            self._dismiss()

    def _distribute(self, waiting: deque[_Attempt], source: Iterator[_Attempt]) -> None:
        """Work for whoever has least, that of dead engines first."""
        while True:
            replica = min(self._replicas, key=lambda r: len(r.sent))
            if len(replica.sent) >= IN_FLIGHT:
                return
            attempt = waiting.popleft() if waiting else next(source, None)
            if attempt is None:
                return
            replica.send(attempt)

    def _wait(self) -> None:
        """Until an engine has answered, or one has had its time."""
        heads = [r.sent[0][0] for r in self._replicas if r.sent]
        oldest = min(r.since for r in self._replicas if r.sent)
        left = max(0.0, oldest + self.spec.timeout_s - time.monotonic())
        ray.wait(heads, num_returns=1, timeout=left)

    def _collect(self, job: Job, replica: _Replica, waiting: deque[_Attempt]) -> Iterator[list[Answer]]:
        while replica.sent:
            ref, attempt = replica.sent[0]
            if not ray.wait([ref], timeout=0)[0]:
                if time.monotonic() - replica.since >= self.spec.timeout_s:
                    silent = f"{'did not start' if attempt is None else 'gave no sign'} for {self.spec.timeout_s:g} s"
                    silent += " (farm.timeout_s)"
                    yield from self._replace(job, replica, waiting, silent)
                return
            try:
                answers = ray.get(ref)
            except RayTaskError as error:
                if isinstance(error.cause, DpeerError):
                    raise error.cause from None
                if attempt is None and replica.fresh:
                    raise _cannot_start(job, error) from error
                yield from self._replace(job, replica, waiting, f"failed ({_first_line(error.cause or error)})")
                return
            except RayError as error:
                yield from self._replace(job, replica, waiting, f"died ({_first_line(error)})")
                return
            replica.sent.popleft()
            replica.since = time.monotonic()
            if attempt is not None:
                yield answers

    def _replace(self, job: Job, replica: _Replica, waiting: deque[_Attempt], reason: str) -> Iterator[list[Answer]]:
        """A new engine takes the dead one's work. What it was answering comes back in single conversations."""
        ray.kill(replica.actor)
        lost = [attempt for _, attempt in replica.sent]
        head = lost[0]
        reused = head is None and not replica.fresh  # a second model in one process: the process may be at fault
        self.restarts += not reused
        if self.restarts > self.spec.max_restarts:
            raise ClusterError(
                f"the engine of {job.served.name} {reason}, and {self.spec.max_restarts} restarts (farm.max_restarts) "
                "are used up. What was finished is saved: run the same command again to go on. With the same end "
                "again, lower engine.max_num_seqs, engine.max_model_len or farm.conversations_per_task."
            )
        waiting.extendleft(a for a in reversed(lost[1:]) if a is not None)
        if head is not None:
            pieces = [_Attempt(calls, head.deaths + 1) for calls in conversations(head.calls)]
            hopeless = [p for p in pieces if p.deaths >= LIVES]
            waiting.extendleft(p for p in reversed(pieces) if p.deaths < LIVES)
            for piece in hopeless:
                yield [refused(c, f"the engine {reason} {LIVES} times on this call", None, None) for c in piece.calls]
        if not reused:
            self.say(
                f"The engine of {job.served.name} {reason}. Starting another "
                f"({self.restarts} of {self.spec.max_restarts}); nothing that was finished is lost."
            )
        self._replicas[self._replicas.index(replica)] = self._hire(job, fresh=True)

    def _hire(self, job: Job, fresh: bool = False) -> _Replica:
        """An actor that is starting its engine: one left over from an earlier model where that is possible."""
        variables = environment(job)
        match = None if fresh else next((entry for entry in self._idle if entry[0] == variables), None)
        if match:
            self._idle.remove(match)
            actor = match[1]
        else:
            if not fresh:
                self.make_room()
            wanted = resources(job, self.free)
            actor = (
                ray.remote(self.worker)
                .options(
                    num_cpus=wanted["CPU"], num_gpus=wanted.get("GPU", 0), runtime_env={"env_vars": environment(job)}
                )
                .remote()
            )
        replica = _Replica(actor, fresh=match is None)
        replica.sent.append((actor.start.remote(job), None))
        return replica

    def make_room(self) -> None:
        """End the processes that wait for a next model: they hold what another kind of engine needs."""
        for _, actor in self._idle:
            ray.kill(actor)
        self._idle = []


def conversations(calls: Iterable[Call]) -> Iterator[Task]:
    return (tuple(group) for _, group in groupby(calls, key=lambda c: c.conversation))


def tasks_of(calls: Iterable[Call], per_task: int) -> Iterator[Task]:
    """Tasks of `per_task` conversations; a conversation is never divided."""
    whole = conversations(calls)
    while task := tuple(chain.from_iterable(islice(whole, per_task))):
        yield task


def resources(job: Job, free: Sequence[Node] | None = None) -> dict[str, float]:
    """What one engine takes of the cluster: on GPUs also cores for what loads weights, tokenises and schedules.

    free: what others leave of each node; None: everything.
    """
    if job.device != "gpu":
        return {"CPU": 1.0}
    gpus = job.settings.tensor_parallel
    cores = min(cores_beside(gpus, nodes) for nodes in (all_nodes(), free) if nodes is not None)
    return {"CPU": cores, "GPU": float(gpus)}


def cores_beside(gpus: int, nodes: Iterable[Node]) -> float:
    """Cores of an engine on so many GPUs, so that every node that has room for one fills all its GPUs and keeps a core
    for others; LOADING_THREADS per GPU at most. One at least, also where a node has fewer cores than engines."""
    shares = [(n["CPU"] - 1) * gpus // n["GPU"] for n in nodes if capacity(n, {"CPU": 1, "GPU": gpus})]
    return float(max(1, min(LOADING_THREADS * gpus, *shares))) if shares else 1.0


def per_task(spec: config.Farm, job: Job, engines: int) -> int:
    """Conversations per task: as the recipe says, else by device; fewer where so many engines would have no work."""
    if spec.conversations_per_task is not None:
        return spec.conversations_per_task
    usual = PER_TASK[job.device]
    share = job.count // (IN_FLIGHT * engines) if job.count else usual
    return min(usual, max(PER_TASK["cpu"], share))


def all_nodes() -> list[Node]:
    return [n["Resources"] for n in ray.nodes() if n["Alive"]]


def free_nodes() -> list[Node]:
    """What nobody holds now of each node. Asked before a farm's first engine: ended ones return theirs late."""
    return list(available_resources_per_node().values())


def replicas(spec: config.Farm, job: Job, free: Sequence[Node] | None = None) -> int:
    """Engines of one model at once: as the recipe says, else one on CPU and on GPU all that fit what is free of each
    node (None: everything); one at least, which waits."""
    if spec.replicas is not None:
        return spec.replicas
    if job.device != "gpu":
        return 1
    wanted = resources(job, free)
    return max(1, sum(capacity(n, wanted) for n in (all_nodes() if free is None else free)))


def check_feasible(count: int, wanted: Mapping[str, float], name: str) -> None:
    """ClusterError when so many engines cannot fit the cluster even if it were idle."""
    nodes = all_nodes()
    places = sum(capacity(node, wanted) for node in nodes)
    if places >= count:
        return
    available = "; ".join(_readable({k: n.get(k, 0) for k in wanted}) for n in nodes) or "no node"
    advice = f"Set farm.replicas={places}"
    if not places and any(n.get("GPU", 0) >= wanted.get("GPU", 0) for n in nodes):
        advice = "Start the node's Ray with a core more (ray start --num-cpus)"
    elif not places:
        advice = "Set engine.device=cpu (or DPEER_DEVICE=cpu), lower engine.tensor_parallel"
    raise ClusterError(
        f"{name}: wanted {count} engine{'s' * (count > 1)} of {_readable(wanted)} each; available per node: "
        f"{available}. {count - places} can never be placed. {advice}, or use a larger cluster."
    )


def capacity(node: Node, wanted: Mapping[str, float]) -> int:
    """Engines that fit a node."""
    return min(int(node.get(k, 0) / v + 1e-9) for k, v in wanted.items() if v)


def _cannot_start(job: Job, error: RayTaskError) -> ClusterError:
    cause = error.cause or error
    return ClusterError(
        f"the engine of {job.served.name} ({job.served.path}) does not start: {type(cause).__name__}: "
        f"{_first_line(cause)}. Check its path, engine.dtype, engine.max_model_len and memory."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _readable(values: Mapping[str, float]) -> str:
    return ", ".join(f"{v:g} {k}" for k, v in values.items())
