"""A probe on every node, asked all at once."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dpeer.launcher.cluster import unplaceable
from dpeer.launcher.preflight.checklist import Fault
from dpeer.launcher.preflight.probe import Probe

ANSWER_S = 90.0


class Nodes:
    """The nodes of the connected cluster on which a worker could run; of a private one, only this process itself."""

    def __init__(self, bundle: Mapping[str, float], *, private: bool) -> None:
        alive = sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: (n["NodeManagerHostname"], n["NodeID"]))
        usable = [n for n in alive if not unplaceable([dict(bundle)], [n["Resources"]])]
        alive = usable or alive  # a head that only serves need not share the files
        self.labels = _labels(alive)
        self.gpus = {label: float(n["Resources"].get("GPU", 0)) for label, n in zip(self.labels, alive, strict=True)}
        self.addresses = {label: n["NodeManagerAddress"] for label, n in zip(self.labels, alive, strict=True)}
        self.here = socket.gethostname()
        self._local = Probe() if private else None
        self._actors: dict[str, Any] = {}
        if not private:
            actor: Any = ray.remote(num_cpus=0, max_restarts=0)(Probe)
            for label, node in zip(self.labels, alive, strict=True):
                pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                self._actors[label] = actor.options(scheduling_strategy=pinned).remote()

    def ask(self, method: str, *args: Any) -> dict[str, Any]:
        """The answer of every node to the same question."""
        return self.ask_each(method, dict.fromkeys(self.labels, args))

    def ask_each(self, method: str, args: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        """Answers by node to a question of its own. Raises a Fault that names the nodes which did not answer."""
        if self._local:
            return {label: getattr(self._local, method)(*given) for label, given in args.items()}
        refs = {label: getattr(self._actors[label], method).remote(*given) for label, given in args.items()}
        deadline, answers, lost = time.monotonic() + ANSWER_S, {}, []
        for label, ref in refs.items():
            try:
                answers[label] = ray.get(ref, timeout=max(0.0, deadline - time.monotonic()))
            except GetTimeoutError:
                lost.append(f"{label}: no answer within {ANSWER_S:g} s")
            except RayError as error:
                lost.append(f"{label}: {str(error).strip().splitlines()[-1][:200]}")
        if lost:
            raise Fault(
                f"nodes do not answer: {'; '.join(lost[:4])}.",
                "Every node needs the same Python environment and code, and room for one more process.",
            )
        return answers

    def skews(self) -> dict[str, float]:
        """Seconds by which each node's clock is ahead of this process's, to half a round trip."""
        offsets = {}
        for label in self.labels:
            before = time.time()
            theirs = self.ask_each("clock", {label: ()})[label]
            offsets[label] = theirs - (before + time.time()) / 2
        return offsets

    def cut(self) -> dict[str, dict[str, str]]:
        """From each node: which others take no connection from there, and why."""
        ports = self.ask_each("listen", {label: (address,) for label, address in self.addresses.items()})
        target = {label: (self.addresses[label], ports[label]) for label in self.labels}
        others = {label: [t for other, t in target.items() if other != label] for label in self.labels}
        label_of = {t: label for label, t in target.items()}
        failed = self.ask_each("unreachable", {label: (targets,) for label, targets in others.items()})
        return {a: {label_of[tuple(t)]: why for t, why in failures.items()} for a, failures in failed.items()}

    def close(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)


def _labels(alive: list[dict[str, Any]]) -> list[str]:
    """Host names, told apart by address and node id where several nodes share one."""
    names = [n["NodeManagerHostname"] for n in alive]
    counts = Counter(names)
    return [
        name if counts[name] == 1 else f"{name}/{n['NodeManagerAddress']}/{n['NodeID'][:6]}"
        for name, n in zip(names, alive, strict=True)
    ]
