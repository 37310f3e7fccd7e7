"""Ray itself: a private cluster on this machine or a running one, and whether a placement can exist in it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Read when ray is imported. The driver says itself, in one line, which worker died.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed while executing")

import psutil
import ray
from ray._private import worker

from dpeer.errors import ClusterError
from dpeer.launcher.security import guard_ray
from dpeer.launcher.signals import preempt_signal
from dpeer.scratch import scratch

OBJECT_STORE_BYTES = 200 * 2**20
PREFIX = "dpeer-ray-"
INNER = "ray"  # Ray opens its own folder to everybody (0777), so it lies inside ours (0700), beside the token
KNOCK_S = 20.0
STARTS = 4
_SECRET = secrets.token_hex(32)  # one per process: Ray reads it once and keeps it over clusters
SOCKETS = Path("/tmp")  # short: Ray's socket paths must stay below 108 bytes


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """A Ray cluster for the length of the block: the given one, RAY_ADDRESS, or a private one bound to 127.0.0.1.

    Guarded by a token (`guard_ray`) wherever that was not set otherwise.
    """
    guard_ray()
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        try:
            _knock(address)
            with _signals_for_driver_only():
                ray.init(address=address, log_to_driver=False)
        except (OSError, RuntimeError) as error:
            raise ClusterError(
                f"{address}: no Ray cluster answers there ({str(error).splitlines()[0]}). Start one, "
                "or give no address (and leave RAY_ADDRESS unset) for a private one on this machine."
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    with scratch(PREFIX, SOCKETS) as folder, _token(folder):
        try:
            with _signals_for_driver_only(), _loopback_only(), _without_services():
                _start(folder)
            yield
        finally:
            _end(folder)


def _start(folder: Path) -> None:
    """Ray allows its daemons 30 s, too little on a machine that is very busy; ClusterError after some attempts."""
    reason = ""
    for _ in range(STARTS):
        try:
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(folder / INNER),
                _node_ip_address="127.0.0.1",
                log_to_driver=False,
                configure_logging=False,
            )
            return
        except Exception as error:  # nothing more exact is raised
            reason = " ".join(str(error).split())
            if "timed out during startup" not in reason and "Failed to start GCS" not in reason:
                raise
            for process in _daemons(folder):
                with suppress(psutil.Error):
                    process.kill()
    raise ClusterError(
        f"Ray's daemons did not start, {STARTS} times in a row: too many processes at work here, or too little memory. "
        f"Try again when the machine is less busy. Ray says: {reason}"
    )


def _daemons(folder: Path) -> set[psutil.Process]:
    """Ray's processes of this private cluster, with those that they have started: agents and workers."""
    daemons: set[psutil.Process] = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(str(folder) in part for part in process.cmdline()):
                daemons |= {process, *process.children(recursive=True)}
    return daemons


def _end(folder: Path) -> None:
    """ray.shutdown would wait a second for each daemon: they hold back SIGTERM (see _signals_for_driver_only)."""
    daemons = _daemons(folder)

    def kill() -> None:
        while hasattr(worker.global_worker, "core_worker"):  # it says good-bye to them
            time.sleep(0.01)
        for process in daemons:
            with suppress(psutil.Error):
                process.kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    ray.shutdown()
    thread.join()


def _knock(address: str) -> None:
    """OSError where nothing listens: Ray itself would try for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()


def environment_of_children() -> dict[str, str]:
    """For processes that this driver starts and that shall join its cluster."""
    address = ray.get_runtime_context().gcs_address
    private = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if address.startswith("127.") else {}  # see _loopback_only
    return os.environ | {"RAY_ADDRESS": address} | private


@contextmanager
def _token(folder: Path) -> Iterator[None]:
    """A secret that every process of the private cluster must show, and a place for what engines leave in temporary
    folders: it goes with the cluster."""
    path, rest = folder / "token", folder / "tmp"
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(_SECRET)
    rest.mkdir()
    set_here = {"RAY_AUTH_TOKEN_PATH": str(path), "DPEER_ENGINE_TMP": str(rest)}
    before = {name: os.environ.get(name) for name in set_here}
    os.environ.update(set_here)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Around ray.init: without this Ray turns 127.0.0.1 into the machine's own address and listens on all of them.

    It is what Ray does where clusters are not supported; RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 sets it before the import.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _without_services() -> Iterator[None]:
    """Around ray.init: no autoscaler, no forwarder of logs, no count of users, no web server in the node's agent.

    A private cluster has no use for them, and each takes seconds of every start. The agent is that of a Ray without
    its extra `default`.
    """
    from ray._private import node, utils

    unused = ("start_monitor", "start_log_monitor", "start_api_server")
    before = {(node.Node, name): getattr(node.Node, name) for name in unused}
    before |= {(utils, "get_dashboard_dependency_error"): utils.get_dashboard_dependency_error}
    try:
        for name in unused:
            setattr(node.Node, name, lambda *_, **__: None)
        utils.get_dashboard_dependency_error = lambda: ImportError("not asked for")
        yield
    finally:
        for (place, name), value in before.items():
            setattr(place, name, value)


@contextmanager
def _signals_for_driver_only() -> Iterator[None]:
    """Around ray.init: a signal to the whole process group must not end Ray's daemons before the driver has saved.

    They inherit the blocked signals, as Ray itself does it for SIGINT. Ray's own SIGTERM handler is taken out again.
    """
    handler = signal.getsignal(signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP, preempt_signal()})
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_for_nodes(count: int, gpus: int, timeout_s: float) -> None:
    """Wait until the cluster at RAY_ADDRESS has that many nodes, each with that many GPUs; else ClusterError."""
    deadline = time.monotonic() + timeout_s
    nodes, reason = list[dict[str, Any]](), ""
    while len(nodes) < count:
        if time.monotonic() > deadline:
            names = ", ".join(n["NodeManagerHostname"] for n in nodes) or "none"
            raise ClusterError(
                f"{len(nodes)} of {count} nodes have joined the Ray cluster within {timeout_s:g} s: {names}. {reason}"
                "Look at the logs of the others: a port that is closed between nodes, a folder that is not shared, or "
                "another network interface are the usual causes."
            )
        time.sleep(1)
        try:
            with connect(os.environ["RAY_ADDRESS"]):
                while len(nodes := _alive()) < count and time.monotonic() < deadline:
                    time.sleep(1)
        except ClusterError as error:  # the first node is not up yet
            reason = f"{error} "
    for node in nodes:
        if (has := node["Resources"].get("GPU", 0)) != gpus:
            raise ClusterError(
                f"{node['NodeManagerHostname']} offers {has:g} GPUs to Ray, {gpus} are expected on each node. "
                "Exclude the node (sbatch --exclude) or ask for what it has."
            )
    print(f"{count} nodes: {', '.join(sorted(n['NodeManagerHostname'] for n in nodes))}", flush=True)


def _alive() -> list[dict[str, Any]]:
    return [n for n in ray.nodes() if n["Alive"]]


class NodeLost(ClusterError):
    """The cluster has shrunk below what the run needs."""


def refuse_lost_nodes(wanted: Mapping[str, int], bundle: Mapping[str, float], left: Collection[str] = ()) -> None:
    """NodeLost when groups that once fitted the cluster no longer do: waiting for their placement would be in vain.

    `left`: ids of nodes that count as lost though they live.
    """
    nodes = [dict(n["Resources"]) for n in _alive() if n["NodeID"] not in left]
    if unplaceable([dict(bundle)] * sum(wanted.values()), nodes):
        groups = " + ".join(f"{n} {role}" for role, n in wanted.items())
        why = "A node was lost or has a broken GPU" if left else "A node was lost"
        raise NodeLost(
            f"{why}: the {len(nodes)} nodes that are left have no room for {groups} workers of "
            f"{_readable(bundle)} each."
        )


def check_feasible(wanted: Mapping[str, int], bundle: Mapping[str, float]) -> None:
    """ClusterError when the worker groups (role -> workers) cannot fit the cluster even if it were idle."""
    nodes = [dict(n["Resources"]) for n in _alive()]
    if missing := unplaceable([dict(bundle)] * sum(wanted.values()), nodes):
        groups = " + ".join(f"{n} {role}" for role, n in wanted.items())
        available = "; ".join(_readable({k: n.get(k, 0) for k in bundle}) for n in nodes) or "no node"
        raise ClusterError(
            f"wanted {groups} workers of {_readable(bundle)} each; available per node: {available}. {missing} of them "
            f"can never be placed. Lower {' or '.join(f'cluster.{role}_workers' for role in wanted)}, or "
            "cluster.cpus_per_worker / cluster.gpus_per_worker, or use a larger cluster."
        )


def unplaceable(bundles: Sequence[dict[str, float]], nodes: Sequence[dict[str, float]]) -> int:
    """How many of the (equal) bundles do not fit the nodes' total resources."""
    free = [dict(n) for n in nodes]
    missing = 0
    for wanted in bundles:
        node = next((n for n in free if all(n.get(k, 0) + 1e-9 >= v for k, v in wanted.items())), None)
        if node is None:
            missing += 1
            continue
        for key, value in wanted.items():
            node[key] = node.get(key, 0) - value
    return missing


def _readable(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{v:g} {k}" for k, v in resources.items())
