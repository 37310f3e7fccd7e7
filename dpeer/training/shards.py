"""Checksums of a checkpoint's files, whatever they are: every rank hashes what bears its number, rank 0 the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dpeer.errors import DamagedCheckpoint
from dpeer.files import sync, sync_folder
from dpeer.integrity import READERS, Entry, faults, listed
from dpeer.training.world import World

NUMBER = re.compile(r"rank_(\d+)(?!\d)")


def owner(name: str, size: int) -> int:
    """The rank that hashes a file: the one that its name speaks of, else rank 0."""
    found = NUMBER.search(Path(name).name)
    return int(found.group(1)) if found and int(found.group(1)) < size else 0


def record(folder: Path, world: World) -> dict[str, Entry]:
    """Not collective. Force this rank's files below `folder` to disk, which it has written; their checksums by path.
    The hash is computed while the disk is waited for."""
    mine = [p for p in folder.rglob("*") if owner(p.name, world.size) == world.rank and p.is_file()]
    with ThreadPoolExecutor(READERS) as pool:
        synced = [pool.submit(sync, path) for path in mine]
        own = listed(folder, mine, fresh=True)
        for done in synced:
            done.result()
    return own


def sync_folders(folder: Path) -> None:
    """Force to disk which files there are below `folder`."""
    for place in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        sync_folder(place)


def verify(folder: Path, entries: Mapping[str, Entry], world: World) -> None:
    """Collective. CheckpointError, the same on every rank, for a file that is not as it was written; every rank reads
    those that it will load."""
    share(folder, {n: e for n, e in entries.items() if owner(n, world.size) == world.rank}, world)


def share(folder: Path, own: Mapping[str, Entry], world: World) -> None:
    """The same, with this rank's share chosen by the caller."""
    found = {name: fault for part in gathered(faults(folder, own), world) for name, fault in part.items()}
    refuse(folder, found)


def refuse(folder: Path, found: Mapping[str, str]) -> None:
    """DamagedCheckpoint for the first of a folder's faults."""
    if found:
        name, fault = next(iter(found.items()))
        more = f" ({len(found) - 1} more files are damaged)" if len(found) > 1 else ""
        raise DamagedCheckpoint(f"{folder / name} {fault}{more}.")


def gathered(own: Any, world: World) -> Sequence[Any]:
    """Collective. Every rank's share, in the order of ranks."""
    shares: list[Any] = [None] * world.size
    dist.all_gather_object(shares, own)
    return shares
