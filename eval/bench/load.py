"""Items of a benchmark from the published data, a file, a folder, or the sample that comes along."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.data.parse import Invalid
from dpeer.data.places import rows_of, splits
from dpeer.data.read import Row, rows
from dpeer.errors import DataError
from dpeer.eval.bench.benchmark import SAMPLES, Benchmark, Item
from dpeer.eval.store.columns import identifier

SAMPLE = "sample"


def source_of(benchmark: Benchmark, data: str) -> str:
    """Where the items come from, as a person would write it. DataError where none is given nor on a hub."""
    if data == SAMPLE:
        return str(SAMPLES / benchmark.sample)
    if not data and not benchmark.data:
        wanted = f" (a folder with {' or '.join(benchmark.files)}, or such a file)" if benchmark.files else ""
        raise DataError(
            f"{benchmark.name}: no hub has its data in one readable piece; give them with --data {benchmark.name}=PATH"
            f"{wanted}, or try --data {benchmark.name}={SAMPLE}"
        )
    return data or benchmark.data


def load_items(benchmark: Benchmark, data: str = "", limit: int | None = None, seed: int = 0) -> list[Item]:
    """All items, or `limit` of them, chosen by the seed so that a larger limit only adds; whole clusters where items
    go together, so that there may be a few more.

    Raises DataError that names file, row and column.
    """
    source = source_of(benchmark, data)
    given, faults = _rows(benchmark, source)
    items: dict[str, Item] = {}
    origin: dict[str, str] = {}
    for row in given:
        try:
            for item in benchmark.items(row):
                identifier(item.id, "id")
                if item.id in items and benchmark.several_rows:
                    items[item.id] = _united(items[item.id], item)
                    continue
                if item.id in items:
                    raise Invalid("id", f"the id {excerpt(item.id)} occurs twice, first in {origin[item.id]}")
                items[item.id], origin[item.id] = item, row.where
        except Invalid as invalid:
            faults.append(Fault(row.where, invalid.column, invalid.message))
    if faults:
        raise data_error(source, faults)
    if not items:
        raise DataError(f"{source}: none of its {len(given)} rows is an item of {benchmark.name}")
    return _chosen(list(items.values()), limit, seed)


def _united(item: Item, other: Item) -> Item:
    """Asks that two rows bring; of asks under one name the first is kept."""
    return replace(item, asks={**other.asks, **item.asks}, facts={**other.facts, **item.facts})


def _rows(benchmark: Benchmark, source: str) -> tuple[list[Row], list[Fault]]:
    folder = Path(source)
    if folder.is_dir() and (found := next((folder / f for f in benchmark.files if (folder / f).is_file()), None)):
        return rows(found)
    return rows_of(source, "test" if "test" in splits(source) else "train")


def _chosen(items: list[Item], limit: int | None, seed: int) -> list[Item]:
    if limit is None or limit >= len(items):
        return items
    clusters: dict[str, int] = {}
    for item in items:
        clusters[item.cluster or item.id] = clusters.get(item.cluster or item.id, 0) + 1
    kept: set[str] = set()
    count = 0
    for cluster in sorted(clusters, key=lambda c: hashlib.sha256(f"{seed}\0{c}".encode()).digest()):
        if count >= limit:
            break
        kept.add(cluster)
        count += clusters[cluster]
    return [item for item in items if (item.cluster or item.id) in kept]
