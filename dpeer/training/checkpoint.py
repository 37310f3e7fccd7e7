"""Checkpoints of a policy group: weights, optimizer, dual state, cursor and a probe that proves a load worked.

`save` writes into a temporary folder, or `begin` does and `finish` ends it, so that the policy may train meanwhile;
`commit` (rank 0, after all ranks have returned) renames the folder. DeepSpeed's shards
are pickles of the run's own making, and those that name anything else are refused. The plain engine's files and
exported models are safetensors.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from dpeer.config import Model
from dpeer.disk import disk_fault, remedy
from dpeer.errors import CheckpointError, ClusterError, DamagedCheckpoint
from dpeer.files import follow_umask, sync_folder
from dpeer.integrity import Entry, read_state, write_state
from dpeer.memory import free_memory
from dpeer.model import flash, kernels
from dpeer.model.families import expert_count
from dpeer.model.lm import load_parts, load_shape
from dpeer.objective.dual import DualState
from dpeer.training import shards
from dpeer.training.calls import SaveCost, Scores
from dpeer.training.numerics import numerics
from dpeer.training.pickles import refuse_foreign_code
from dpeer.training.policy import IDENTITY, Policy
from dpeer.training.reshard import MODEL, OPTIMIZER
from dpeer.training.run_dir import refuse_unshared
from dpeer.training.snapshot import Beside, Snapshot
from dpeer.training.world import World, sum_over_ranks
from dpeer.training.zero3 import SHARDS

PIECE = 2**24
STATE_LOST = "It holds the multipliers and the place in the data of this checkpoint."


class Written(NamedTuple):
    """A rank's part on disk: checksums of its files, and the seconds that writing them took."""

    files: dict[str, Entry]
    seconds: float


@dataclass
class Save:
    """A checkpoint of which this rank's part is being written. `state`: what state.json will hold beside checksums."""

    policy: Policy
    folder: Path
    state: dict[str, Any]
    own: Beside[Written] | Written
    background: bool

    @property
    def writing(self) -> bool:
        return isinstance(self.own, Beside) and self.own.running


def save(policy: Policy, folder: Path, facts: dict[str, Any]) -> SaveCost:
    """Collective. Write this rank's part into `folder`, on disk when this returns; rank 0 adds state.json last.

    `facts` (hashes) are checked on load. CheckpointError when a rank cannot write or does not see the folder.
    """
    return finish(begin(policy, folder, facts, background=False))


def begin(policy: Policy, folder: Path, facts: dict[str, Any], *, background: bool) -> Save:
    """Collective. `save`, of which `finish` is the end. In the background a copy in host memory is written while the
    policy trains on; where the host has no room for the copy, the part is written before this returns."""
    policy.pulse.enter(f"saving step {policy.step}")
    with _explained(policy, folder):
        snapshot = policy.engine.snapshot(folder)
        background = background and _room_for(snapshot.bytes, policy)
        copy = snapshot.copied() if background else snapshot
        del snapshot
        probe, sums = _probe(policy), _sums(policy)
        state = {
            "step": policy.step,
            "world_size": policy.world.size,
            "engine": policy.engine.name,
            "numerics": _numerics(policy),
            "dual": policy.lagrangian.state.to_dict(),
            "probe": {str(k): v for k, v in probe.items()},
            "sums": sums,
            "trained": len(_trained(policy)),
            "facts": facts,
        }
        work = partial(_write, copy, folder, policy.world)
        return Save(policy, folder, state, Beside(work) if background else work(), background)


def _write(snapshot: Snapshot, folder: Path, world: World) -> Written:
    """This rank's part, on disk when this returns."""
    began = time.perf_counter()
    snapshot.write()
    if world.rank == 0:
        for script in folder.glob("zero_to_*.py"):  # DeepSpeed makes them executable by their owner alone
            follow_umask(script)
    entries = shards.record(folder, world)
    return Written(entries, time.perf_counter() - began)


def finish(save: Save) -> SaveCost:
    """Collective. Wait for all parts of a checkpoint, then add its state.json. CheckpointError on every rank when one
    of them could not write."""
    policy, folder = save.policy, save.folder
    policy.pulse.enter(f"saving step {save.state['step']}: waiting for the disk")
    fault, own = "", Written({}, 0.0)
    try:
        with _explained(policy, folder):
            own = save.own.result() if isinstance(save.own, Beside) else save.own
    except CheckpointError as error:
        fault = str(error)
    shares = shards.gathered((fault, own), policy.world)
    if found := next((fault for fault, _ in shares if fault), ""):
        raise CheckpointError(found)
    files = {name: entry for _, written in shares for name, entry in written.files.items()}
    with _explained(policy, folder):
        if policy.world.rank == 0:
            shards.sync_folders(folder)
            write_state(folder / "state.json", save.state | {"files": files})
    dist.barrier()
    refuse_unshared(folder, f"rank {policy.world.rank}")
    return {
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "seconds": max(written.seconds for _, written in shares),
        "background": save.background,
    }


@contextmanager
def _explained(policy: Policy, folder: Path) -> Iterator[None]:
    """CheckpointError for a disk that does not take this rank's part."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        raise CheckpointError(
            f"{folder}: rank {policy.world.rank} on {platform.node()} could not write its part. The folder "
            f"{remedy(fault)} ({_free(folder):,} MiB are free), then go on with --resume. Earlier checkpoints are "
            "untouched."
        ) from error


def _room_for(size: int, policy: Policy) -> bool:
    """Collective. Whether the copies of all ranks of this host take at most half of the memory that is free there, to
    this process's control groups too: beyond the limit of a job or a container every save would kill it."""
    here = platform.node()
    needed = sum(other for host, other in shards.gathered((here, size), policy.world) if host == here)
    return bool(needed <= free_memory() / 2)


def commit(temporary: Path, final: Path) -> None:
    """Make a checkpoint visible, once every rank has returned from `save`."""
    os.replace(temporary, final)
    sync_folder(final.parent)


def load(policy: Policy, folder: Path, facts: dict[str, Any]) -> None:
    """Collective. Restore at the same or another number of ranks; refuses what does not belong or did not load."""
    policy.pulse.enter(f"loading {folder.name}")
    state = read_state(folder / "state.json", STATE_LOST)
    refuse_other_run(folder, state["facts"], facts)
    if (wrote := state.get("engine", "deepspeed")) != policy.engine.name:
        raise CheckpointError(
            f"{folder}: was written by engine {wrote}, and cannot be read by {policy.engine.name}. Go on with "
            f"cluster.engine={wrote}, or leave it at auto."
        )
    same_ranks = state["world_size"] == policy.world.size
    files = state.get("files", {})
    if policy.engine.sharded and not same_ranks:  # what the ranks read of it, each a share
        read = sorted(name for name in files if name.endswith((OPTIMIZER, MODEL)))
        own = read[policy.world.rank :: policy.world.size]
        shards.share(folder, {name: files[name] for name in own}, policy.world)
    else:
        shards.verify(folder, files, policy.world)
    if policy.engine.sharded and same_ranks:
        refuse_foreign_code(folder / SHARDS)
    _refuse_other_parameters(policy, folder, state.get("trained"))
    with _older_parameters_explained(policy, folder, state):
        policy.engine.load(folder, state["world_size"])
    policy.step = policy.pulse.step = state["step"]
    policy.lagrangian = policy.lagrangian.at(DualState.from_dict(state["dual"]))
    _check_sums(policy, folder, state.get("sums", {}))
    equal: list[Any] = [None] * policy.world.size
    dist.all_gather_object(equal, state["numerics"] == _numerics(policy))
    exact = same_ranks and all(equal)
    _check_probe(policy, folder, state["probe"], 1e-6 if exact else IDENTITY[policy.config.model.dtype])


def _trained(policy: Policy) -> list[str]:
    return [name for name, p in policy.engine.module.named_parameters() if p.requires_grad]


def _refuse_other_parameters(policy: Policy, folder: Path, saved: int | None) -> None:
    if saved is not None and saved != (mine := len(_trained(policy))):
        raise CheckpointError(
            f"{folder}: holds {saved} trained parameters, and this model has {mine}. What model.lora.targets="
            f"{policy.config.model.lora and policy.config.model.lora.targets} means has changed: go on with the dpeer "
            "that began the run (versions.dpeer in its manifest.json), or start a new run."
        )


@contextmanager
def _older_parameters_explained(policy: Policy, folder: Path, state: Mapping[str, Any]) -> Iterator[None]:
    """Checkpoints that do not say how many parameters they train may be older than adapters of fused experts, and than
    text parts with names of their own: neither fits the model as it is built now."""
    try:
        yield
    except Exception as error:
        if "trained" in state or not _built_otherwise_once(policy.config.model):
            raise
        raise CheckpointError(
            f"{folder}: does not fit the model as this dpeer builds it ({str(error).splitlines()[0][:200]}). Earlier "
            "versions gave experts that are fused no adapters under model.lora.targets=all-linear, and named the "
            "parameters of models that see or hear otherwise. Go on, or export, with the dpeer that began the run "
            "(versions.dpeer in its manifest.json), or start a new run."
        ) from error


def _built_otherwise_once(spec: Model) -> bool:
    fused = spec.lora and spec.lora.targets == "all-linear" and expert_count(load_shape(spec.path, spec.revision))
    return bool(fused or load_parts(spec.path, spec.revision))


def refuse_other_run(folder: Path, saved: dict[str, Any], expected: dict[str, Any]) -> None:
    """CheckpointError when a checkpoint's facts are not those of the run that wants to go on from it."""
    for key, value in expected.items():
        if saved.get(key) != value:
            raise CheckpointError(
                f"{folder}: belongs to another run: {key} was {saved.get(key)}, now {value}. Restore it or start anew."
            )


def _numerics(policy: Policy) -> list[str]:
    """What must be equal for a forward pass to repeat to the last digits."""
    trained = {str(p.dtype) for p in policy.engine.module.parameters() if p.requires_grad}
    # Adapters beside a bf16 base were fp32 once; everything else has always had the recipe's precision.
    means = ["deterministic"] if policy.config.training.deterministic else []
    means += [flash.active()] if policy.world.device.type == "cuda" else []
    means += [kernels.active()] if kernels.active() != kernels.EAGER else []
    means += [f"{n} ranks to a pack"] if (n := policy.world.team.size) > 1 else []
    means += [f"MLPs in tiles of {tile} tokens"] if (tile := policy.config.model.mlp_tile) else []
    return [*numerics(policy.world.device), *means, *(sorted(trained) if policy.config.model.lora else [])]


def _free(folder: Path) -> int:
    """MiB left on the nearest folder that exists."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free >> 20


def _sums(policy: Policy) -> dict[str, float]:
    """Sums of squares in fp64 over all ranks of what the optimizer holds: the same for every number of ranks."""
    held = policy.engine.held()
    own = [sum(map(_square_sum, tensors)) for tensors in held.values()]
    total = torch.tensor(own, dtype=torch.float64)
    if policy.engine.sharded:
        total = sum_over_ranks(total)
    else:
        _refuse_parted(policy, own)
    return dict(zip(held, total.tolist(), strict=True))


def _refuse_parted(policy: Policy, own: list[float]) -> None:
    """Collective. ClusterError when ranks that each hold everything no longer hold the same."""
    everyone: list[Any] = [None] * policy.world.size
    dist.all_gather_object(everyone, own)
    for rank, other in enumerate(everyone):
        if not all(abs(a - b) <= 1e-9 * abs(a) for a, b in zip(everyone[0], other, strict=True)):
            raise ClusterError(
                f"step {policy.step}: weights or optimizer states of ranks 0 and {rank} have parted (sums of squares "
                f"{everyone[0]} and {other}). Resume from the last checkpoint; if it happens again, suspect hardware."
            )


def _square_sum(tensor: torch.Tensor) -> float:
    """In pieces: a whole sub-group in fp64 would take gigabytes at every save."""
    pieces: tuple[torch.Tensor, ...] = torch.split(tensor.flatten(), PIECE)
    return sum(float(piece.double().square().sum()) for piece in pieces)


def _check_sums(policy: Policy, folder: Path, expected: dict[str, float]) -> None:
    loaded = _sums(policy)
    for name, before in expected.items():
        if not abs(loaded[name] - before) <= 1e-9 * before:
            raise DamagedCheckpoint(
                f"{folder}: the {name} that were loaded have the sum of squares {loaded[name]:.10g}, those saved had "
                f"{before:.10g}. The optimizer's state did not load; use an earlier checkpoint."
            )


def _probe(policy: Policy) -> Scores:
    """Log-probs of the first record: what the restored model must reproduce. Every rank gets them."""
    shares: list[Scores | None] = [None] * policy.world.size
    dist.all_gather_object(shares, policy.score(policy.data.trees[:1]))
    return {k: v for share in shares if share for k, v in share.items()}


def _check_probe(policy: Policy, folder: Path, expected: dict[str, list[float]], tolerance: float) -> None:
    probe = _probe(policy)
    for key, values in expected.items():
        for before, after in zip(values, probe[int(key)], strict=True):
            if not abs(before - after) <= tolerance * max(1.0, abs(before)):
                raise DamagedCheckpoint(
                    f"{folder}: the restored model gives log-prob {after:.8g} where the saved one gave {before:.8g} "
                    f"(relative tolerance {tolerance:.0e}). The weights did not load; use an earlier checkpoint."
                )
