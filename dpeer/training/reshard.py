"""A ZeRO-3 checkpoint of another number of ranks, read as it lies: each rank reads the slices that it will hold.

ZeRO-3 (DeepSpeed 0.19: `stage3.py`) cuts every flattened parameter into equal parts, one a rank, of which the last are
padded. A rank's parts lie one after another in the flat groups of its optimizer: fp32 master weights and both moments
alike. Where a group ends depends on the number of ranks, so parts are found by their parameter's name. Only a pickle's
outline is loaded; the numbers are read from their offsets in the file, piece by piece, with nothing beside them in
memory and nothing written to disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dpeer.errors import CheckpointError, DamagedCheckpoint
from dpeer.training.pickles import outline

OPTIMIZER = "_mp_rank_00_optim_states.pt"
MODEL = "zero_pp_rank_0_mp_rank_00_model_states.pt"
MASTER, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")
PIECE = 2**24
"""Elements that are read at a time."""


def part(numel: int, ranks: int) -> int:
    """Elements of one rank's part of a parameter, padding included."""
    return -(-numel // ranks)


class Place(NamedTuple):
    """Where a parameter of `numel` elements lies in each rank's groups: its part begins at `start`."""

    group: int
    start: int
    numel: int


@dataclass(frozen=True)
class Layout:
    """groups: elements of each parameter by name, in the order of the optimizer's flat groups, alike on all ranks."""

    groups: Sequence[Mapping[str, int]]
    ranks: int

    @cached_property
    def places(self) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for group, parameters in enumerate(self.groups):
            start = 0
            for name, numel in parameters.items():
                found[name] = Place(group, start, numel)
                start += part(numel, self.ranks)
        return found

    @cached_property
    def sizes(self) -> list[int]:
        """Elements of each group on one rank."""
        return [sum(part(numel, self.ranks) for numel in group.values()) for group in self.groups]


class Copy(NamedTuple):
    """`numel` elements of group `source` of an old rank, from `start` on, go to group `target` of a new one."""

    source: int
    start: int
    target: int
    into: int
    numel: int


def copies(old: Layout, new: Layout, rank: int) -> dict[int, list[Copy]]:
    """What a rank of the new layout takes from each rank of the old one, in the order of the old rank's groups."""
    found: dict[int, list[Copy]] = {}
    for name, place in new.places.items():
        before, ours, theirs = old.places[name], part(place.numel, new.ranks), part(place.numel, old.ranks)
        at, end = rank * ours, min((rank + 1) * ours, place.numel)
        while at < end:
            other = at // theirs
            count = min(end, (other + 1) * theirs) - at
            copy = Copy(before.group, before.start + at % theirs, place.group, place.start + at - rank * ours, count)
            found.setdefault(other, []).append(copy)
            at += count
    return {other: sorted(taken) for other, taken in sorted(found.items())}


class Shard:
    """The optimizer's file of one old rank."""

    def __init__(self, path: Path) -> None:
        with FakeTensorMode():
            saved = outline(path)["optimizer_state_dict"]
        self.path, self._file = path, path.open("rb", buffering=0)
        self.options: dict[str, Any] = saved["optimizer_state_dict"]["param_groups"][0]
        states = saved["optimizer_state_dict"]["state"]
        self.tensors: dict[str, list[Tensor]] = {MASTER: list(saved["fp32_flat_groups"])}
        self.tensors |= {key: [states[i][key] for i in sorted(states)] for key in MOMENTS} if states else {}
        self._step = states[0].get("step") if states else None

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def step(self) -> Tensor | int | None:
        """Steps that the optimizer has counted; None before its first one."""
        if not isinstance(self._step, Tensor):
            return self._step
        value = torch.empty((), dtype=self._step.dtype)
        self._read(self._step, 0, value)
        return value

    def read(self, kind: str, group: int, start: int, out: Tensor) -> None:
        """Fill `out`, fp32 in the host's memory, from a group."""
        source = self.tensors[kind][group]
        if source.dtype != torch.float32 or start + out.numel() > source.numel():
            raise CheckpointError(
                f"{self.path}: {kind} of group {group} has {source.numel()} elements of {source.dtype}, where "
                f"{start + out.numel()} of torch.float32 are needed. Go on at the number of ranks that saved it."
            )
        self._read(source, start, out)

    def _read(self, source: Tensor, start: int, out: Tensor) -> None:
        storage: Any = source.untyped_storage()
        self._file.seek(storage._checkpoint_offset + (source.storage_offset() + start) * source.element_size())
        left = memoryview(cast(Any, out.reshape(-1).numpy())).cast("B")
        while left:
            if not (count := self._file.readinto(left)):
                raise DamagedCheckpoint(f"{self.path}: ends before its numbers do. Use an earlier checkpoint.")
            left = left[count:]


def shard_of(folder: Path, rank: int) -> Path:
    """The optimizer's file of a rank. CheckpointError: there is none."""
    found = list(folder.glob(f"*zero_pp_rank_{rank}{OPTIMIZER}"))
    if len(found) != 1:
        raise DamagedCheckpoint(f"{folder}: has {len(found)} optimizer files of rank {rank}, where one is expected.")
    return found[0]


def about(folder: Path) -> dict[str, Any]:
    """What rank 0 said of the model beside its own part of it, without tensors."""
    path = folder / MODEL
    if not path.exists():
        raise DamagedCheckpoint(f"{path} is missing; it says how the checkpoint's other files lie.")
    with FakeTensorMode():
        return outline(path)


def layout_of(saved: Mapping[str, Any], ranks: int) -> Layout:
    return Layout([{name: math.prod(shape) for name, shape in group.items()} for group in saved["param_shapes"]], ranks)


def refuse_other(folder: Path, old: Layout, new: Layout) -> None:
    """CheckpointError unless both hold the same parameters."""
    theirs, ours = ({name: place.numel for name, place in layout.places.items()} for layout in (old, new))
    if other := sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)):
        raise CheckpointError(
            f"{folder}: holds other trained parameters than this model ({len(other)} differ, among them "
            f"{', '.join(other[:3])}). Restore model.path and model.lora."
        )


def fill(folder: Path, old: Layout, new: Layout, rank: int, targets: Mapping[str, Sequence[Tensor]]) -> None:
    """Read a rank's groups by kind; what no parameter covers, the padding, becomes zero."""
    for tensor in (t for groups in targets.values() for t in groups):
        tensor.zero_()
    piece = torch.empty(PIECE)
    for other, taken in copies(old, new, rank).items():
        with Shard(shard_of(folder, other)) as shard:
            for kind, groups in targets.items():
                for copy, done, count in _pieces(taken):
                    shard.read(kind, copy.source, copy.start + done, piece[:count])
                    groups[copy.target][copy.into + done :][:count] = piece[:count]


def _pieces(taken: Sequence[Copy]) -> Iterator[tuple[Copy, int, int]]:
    for copy in taken:
        for done in range(0, copy.numel, PIECE):
            yield copy, done, min(PIECE, copy.numel - done)


@torch.no_grad()
def load(optimizer: Any, folder: Path, ranks: int, size: int, rank: int) -> dict[str, Any]:
    """Fill DeepSpeed's ZeRO-3 optimizer on one of `size` ranks from the shards that `ranks` had written; returns what
    they said of the model."""
    saved, flats = about(folder), optimizer.fp32_partitioned_groups_flat
    old = layout_of(saved, ranks)
    names = optimizer.param_names
    new = Layout([{names[p]: p.ds_numel for p in group} for group in optimizer.fp16_groups], size)
    refuse_other(folder, old, new)
    if new.sizes != [flat.numel() for flat in flats]:
        raise CheckpointError(
            f"{folder}: was saved by {ranks} ranks, and cluster.deepspeed keeps the optimizer where only as many can "
            "load it. Go on with that number, or with zero3 or zero3_offload."
        )
    with Shard(shard_of(folder, 0)) as first:
        step, options, kinds = first.step, first.options, list(first.tensors)
    targets: dict[str, Sequence[Tensor]] = {MASTER: flats}
    for flat in flats:
        state = optimizer.optimizer.state[flat]
        state.clear()
        state |= {key: torch.empty_like(flat) for key in kinds if key != MASTER}
        if step is not None:  # one each: torch counts in place, and on the device where its kernel is
            state["step"] = step.to(flat.device, copy=True) if isinstance(step, Tensor) else step
    targets |= {key: [optimizer.optimizer.state[flat][key] for flat in flats] for key in kinds if key != MASTER}
    fill(folder, old, new, rank, targets)
    for group in optimizer.optimizer.param_groups:
        group |= {key: value for key, value in options.items() if key != "params"}
    _publish(optimizer)
    return saved


def _publish(optimizer: Any) -> None:
    """Have the model compute with the master weights as they are now, as DeepSpeed does after loading."""
    flats, computing = optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat
    for flat, copied, parts in zip(flats, computing, optimizer.fp16_partitioned_groups, strict=True):
        copied.data.copy_(flat.data)
        for own, value in zip(parts, optimizer.unflatten(copied, parts), strict=True):
            own.data = value.data
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
