"""What must hold on and between nodes.

Each function takes facts by host; it returns what it found, as text or as a Warn, and raises a Fault for what would
stop or spoil a run.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpeer.config import Config
from dpeer.launcher.doctor import BUSY
from dpeer.launcher.nvidia import Card, ailing, driver_line, used
from dpeer.launcher.preflight.checklist import Fault, Warn

GIB = 2**30
FP32_TOKENS = 2048
SLOW_NODE_GB_S, SLOW_NODES_GB_S = 8.0, 4.0  # below PCIe 4.0 between GPUs, and below 40 Gbit/s between nodes
SKEW_WARN_S, SKEW_FAIL_S = 1.0, 10.0


def node_count(hosts: Sequence[str], wanted: int | None) -> str:
    shown = f"{_count(len(hosts), 'node')}: {_some(hosts)}"
    if wanted and len(hosts) < wanted:
        raise Fault(
            f"{shown}; cluster.nodes wants {wanted}.",
            f"Start the other {wanted - len(hosts)}, or lower cluster.nodes.",
        )
    return shown


def gpu_count(seen: Mapping[str, int], ray: Mapping[str, float], per_worker: float) -> str | Warn:
    """`seen`: GPUs that each node's driver reports; `ray`: GPUs that Ray was told of."""
    if not per_worker:
        return "not used (cluster.gpus_per_worker is 0)"
    if wrong := [f"{host}: Ray has {ray[host]:g}, the driver shows {n}" for host, n in seen.items() if ray[host] > n]:
        raise Fault(
            f"{_some(wrong)}.", "A GPU is down or --num-gpus is wrong: look at nvidia-smi there, restart Ray there."
        )
    counts = Counter(ray.values())
    if len(counts) > 1:
        odd = [f"{host} {n:g}" for host, n in ray.items() if n != counts.most_common(1)[0][0]]
        return Warn(
            f"nodes differ: most have {counts.most_common(1)[0][0]:g}, {_some(odd)}.", "Is a GPU missing there?"
        )
    return f"{next(iter(ray.values()), 0):g} on each node"


def gpu_driver(cards: Mapping[str, Sequence[Card]]) -> str | Warn:
    drivers = {host: driver_line(found) for host, found in cards.items()}
    most = Counter(drivers.values()).most_common(1)[0][0]
    if odd := [f"{host} {driver}" for host, driver in drivers.items() if driver != most]:
        return Warn(f"most nodes have driver {most}, {_some(odd)}.", "Install one driver, or leave these nodes out.")
    return most


def gpu_memory(cards: Mapping[str, Sequence[Card]]) -> str | Warn:
    if busy := [f"{host}: {words}" for host, found in cards.items() for words in used(found, BUSY)]:
        return Warn(f"{_some(busy)}.", "Others use them: look at nvidia-smi there, end what is left of earlier jobs.")
    least = min((card.free for found in cards.values() for card in found if card.free), default=0)
    return f"at least {least / 1024:.1f} GiB free on each GPU" if least else "the driver does not tell"


def gpu_health(cards: Mapping[str, Sequence[Card]]) -> str | Warn:
    if ill := [f"{host}: {words}" for host, found in cards.items() for words in ailing(found)]:
        return Warn(
            f"{_some(ill)}.", "One such GPU slows or ends the whole run: leave its node out (sbatch --exclude)."
        )
    return "no GPU is slowed, none has uncorrectable memory errors"


def gpu_links(gigabytes_s: float, ranks: int, nodes: int) -> str | Warn:
    """Bus bandwidth of NCCL's all-reduce, as nccl-tests count it."""
    if ranks == 1:
        return "one rank: nothing to exchange"
    shown = f"all-reduce of {ranks} ranks on {_count(nodes, 'node')}: {gigabytes_s:.1f} GB/s"
    if gigabytes_s >= (SLOW_NODES_GB_S if nodes > 1 else SLOW_NODE_GB_S):
        return shown
    network = "NCCL seems to use TCP: look at NCCL_IB_HCA, NCCL_SOCKET_IFNAME, GPUDirect."
    inside = "GPUs seem not to reach each other directly: look at nvidia-smi topo -m and at /dev/shm."
    return Warn(f"{shown}, which is slow.", f"{network if nodes > 1 else inside} NCCL_DEBUG=INFO says what it chose.")


def precision(config: Config) -> str | Warn:
    """fp32 on GPUs: no fused attention takes it, so that memory grows with the square of a record's length."""
    shown = f"model.dtype {config.model.dtype}, records of up to {config.data.max_tokens} tokens"
    if config.model.dtype == "fp32" and config.cluster.on_gpus and config.data.max_tokens > FP32_TOKENS:
        return Warn(
            f"{shown}: on GPUs attention in fp32 is slow and takes memory with the square of the length.",
            "Set model.dtype to bf16 (master weights stay fp32), or lower data.max_tokens.",
        )
    return shown


def same_versions(versions: Mapping[str, Mapping[str, str | None]], own: Mapping[str, str | None]) -> str:
    """`own`: the driver's."""
    differ = [
        f"{package} {found[package]} on {host} (driver: {own[package]})"
        for host, found in versions.items()
        for package in own
        if found[package] != own[package]
    ]
    if differ:
        raise Fault(f"mixed versions: {_some(differ)}.", "Install the same environment on every node.")
    return ", ".join(f"{p} {own[p]}" for p in ("python", "torch", "deepspeed", "transformers", "ray"))


def same_source(hashes: Mapping[str, str], own: str) -> str:
    if differ := [host for host, found in hashes.items() if found != own]:
        raise Fault(f"dpeer's code on {_some(differ)} is not the driver's.", "Give all nodes the same checkout.")
    return f"{own[:12]} everywhere"


def clock_skew(skews: Mapping[str, float]) -> str | Warn:
    """Seconds by which each node's clock is ahead of the driver's."""
    host, worst = max(skews.items(), key=lambda item: abs(item[1]))
    shown = f"{host} is {worst:+.1f} s off the driver's clock."
    fix = "Start a time service (chrony, systemd-timesyncd) on the nodes: log times and file ages would mislead."
    if abs(worst) > SKEW_FAIL_S:
        raise Fault(shown, fix)
    if abs(worst) > SKEW_WARN_S:
        return Warn(shown, fix)
    return f"within {max(0.1, abs(worst)):.1f} s"


def disk_space(free: Mapping[str, int], needed: int, present: int, folder: Path) -> str:
    """Bytes free under the output folder per node, bytes that the run writes, bytes that it has written already."""
    left = max(0, needed - present)
    host, least = min(free.items(), key=lambda item: item[1])
    shown = f"checkpoints and export need {_size(left)}, {folder} has {_size(least)} free"
    if least < left:
        raise Fault(
            f"{shown} (seen from {host}).",
            "Make room, choose another output_dir, or lower training.keep_checkpoints.",
        )
    return shown


def host_memory(total: Mapping[str, int], available: Mapping[str, int], needed: int) -> str | Warn:
    host = min(total, key=lambda h: total[h])
    shown = f"gathering the weights for the export takes {_size(needed)} on one node; {host} has {_size(total[host])}"
    if total[host] < needed:
        raise Fault(f"{shown}.", "Use nodes with more memory, or train an adapter (model.lora).")
    host = min(available, key=lambda h: available[h])
    if available[host] < needed:
        return Warn(f"{shown}, of which {host} has {_size(available[host])} free now.", "Other jobs may be in the way.")
    return shown


def host_activations(available: Mapping[str, int], needed: int) -> str | Warn:
    """`needed`: by packs as full, and records as long, as the recipe lets them be; those of the data may be shorter."""
    host = min(available, key=lambda h: available[h])
    shown = (
        f"activations of full packs (model.offload_activations) take up to {_size(needed)} on one node; {host} has "
        f"{_size(available[host])} free now"
    )
    if available[host] < needed:
        return Warn(
            f"{shown}.",
            "Should the records be that long: lower training.tokens_per_pack and data.max_tokens, or let more ranks "
            "share a pack (training.sequence_parallel).",
        )
    return shown


def inputs_present(missing: Mapping[str, Sequence[str]], entered: Mapping[str, bool], folder: str) -> str:
    if outside := [host for host, inside in entered.items() if not inside]:
        raise Fault(f"{_some(outside)} cannot enter {folder}, where the driver runs.", "Start from a shared folder.")
    if gone := [f"{path} on {host}" for host, paths in missing.items() for path in paths]:
        raise Fault(f"not there: {_some(gone)}.", "Put model and data on a file system that all nodes share.")
    return "model and data are visible everywhere"


def writable(failures: Mapping[str, str | None], folder: Path) -> str:
    if wrong := [f"{host}: {why}" for host, why in failures.items() if why]:
        raise Fault(
            f"{folder} cannot be written to: {_some(wrong)}.",
            "Choose an output_dir on a file system with room that is mounted read-write on all nodes.",
        )
    return f"{folder}"


def shared(unseen: Mapping[str, Sequence[str]], folder: Path) -> str:
    """`unseen`: for each node the hosts whose file did not appear there."""
    if apart := [f"{host} does not see what {_some(others)} wrote" for host, others in unseen.items() if others]:
        raise Fault(
            f"{folder} is not one folder: {_some(apart)}.",
            "Checkpoints need an output_dir on a file system that the driver and all nodes share.",
        )
    return f"every node sees the files of all {len(unseen)}"


def network(failures: Mapping[str, Mapping[str, str]]) -> str:
    """From host -> to host -> why not."""
    if cut := [f"{a} to {b} ({why})" for a, others in failures.items() for b, why in others.items()]:
        raise Fault(
            f"no connection from {_some(cut)}.",
            "Open all ports above 1024 between the nodes (process groups choose theirs freely).",
        )
    return f"{len(failures)} nodes reach each other"


def token(environment: Mapping[str, str]) -> str | Warn:
    """The secret that Ray asks of everybody who joins: readable by this process, and by nobody else."""
    if environment.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return Warn("RAY_AUTH_MODE is disabled.", "Whoever reaches a Ray port can run code as you: use a token.")
    if environment.get("RAY_AUTH_TOKEN"):
        return "from RAY_AUTH_TOKEN"
    given = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    if not given and not path.exists():
        return "none set"
    try:
        text = path.read_text().strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise Fault(
            f"token file {path} cannot be read: {reason}.",
            "RAY_AUTH_TOKEN_PATH must name the file with which the head was started, readable by you.",
        ) from error
    if not text:
        raise Fault(f"token file {path} is empty.", "Use the file with which the head was started.")
    if stat.S_IMODE(mode) & 0o077:
        return Warn(f"token file {path} can be read by others (mode {stat.S_IMODE(mode):o}).", f"chmod 600 {path}")
    return f"{path}"


def _some(items: Sequence[str], most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _size(n: float) -> str:
    return f"{n / GIB:,.1f} GiB" if n >= GIB / 10 else f"{n / 2**20:,.1f} MiB"
