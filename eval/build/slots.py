"""Seeds from their sources, and the records that are planned from them: pure functions of spec and seeds."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dpeer.data.cells import Invalid
from dpeer.data.duplicates import Index
from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.data.places import rows_of
from dpeer.errors import ConfigError
from dpeer.eval.build.spec import JOIN, SPLITS, BuildSpec, Seeds
from dpeer.eval.questions.prompting import visible
from dpeer.eval.store.columns import column_value, encodable
from dpeer.eval.store.parts import content_id


@dataclass(frozen=True, slots=True)
class Seed:
    """What a record starts from. source: number of its source in the spec. where: file and row, for messages."""

    text: str
    source: int
    where: str

    @property
    def key(self) -> str:
        return content_id(seed=self.text)


@dataclass(frozen=True, slots=True)
class Slot:
    """A record to be made. `generator`: name of the model that writes it. copy: counts records of one seed and mask."""

    split: str
    mask: tuple[str, ...]
    seed: Seed
    language: str
    generator: str
    copy: int

    @property
    def id(self) -> str:
        """The same in whatever split the seed is, so that texts stay of use."""
        return content_id(mask=self.mask, seed=self.seed.text, language=self.language, copy=self.copy)[:16]

    @property
    def mask_name(self) -> str:
        return JOIN.join(self.mask)


def key_of(prompt: str) -> str:
    """A text as `dpeer.data.duplicates` compares it."""
    return json.dumps([["user", prompt]], ensure_ascii=False)


def load_seeds(spec: BuildSpec) -> tuple[list[Seed], dict[str, int]]:
    """All seeds that differ, and how many were left out why. DataError names file, row and column of faults."""
    every: list[Seed] = []
    left_out: Counter[str] = Counter()
    for number, source in enumerate(spec.seeds):
        found = _texts(source, number)
        if source.limit is not None and source.limit < len(found):
            order = sorted(range(len(found)), key=lambda k: _lot(spec.seed, found[k].key))
            left_out["above the limit of its source"] += len(found) - source.limit
            found = [found[k] for k in sorted(order[: source.limit])]
        every += found
    index, kept = Index(), dict[str, Seed]()  # of those kept only: many that are alike would pass for boilerplate
    for seed in every:
        key = key_of(seed.text)
        if key in kept:
            left_out["repeats an earlier seed"] += 1
        elif index.alike(key):
            left_out["nearly repeats an earlier seed"] += 1
        else:
            kept[key] = seed
            index.add(key)
    return list(kept.values()), dict(left_out)


def _texts(source: Seeds, number: int) -> list[Seed]:
    given, faults = rows_of(source.path, source.split)
    found = []
    for row in given:
        try:
            value = column_value(row, source.column, f"name it in seeds.{number}.column")
            if not isinstance(value, str) or not value.strip():
                raise Invalid(source.column, f"must be text, got {excerpt(value)}")
            found.append(Seed(visible(encodable(value, source.column)).strip(), number, row.where))
        except Invalid as invalid:
            faults.append(Fault(row.where, invalid.column, invalid.message))
    if faults:
        raise data_error(source.path, faults)
    return found


def _lot(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def planned(
    spec: BuildSpec, seeds: Sequence[Seed], limit: int | None = None
) -> dict[tuple[str, tuple[str, ...]], list[Slot]]:
    """Per split and mask: the records that may be made, in the order in which they are tried.

    A seed belongs to one split, in all masks and whatever the limit, so that no two splits start from the same one.
    Raises ConfigError where a mask has fewer seeds than records.
    """
    places, slots = _split(spec, seeds), dict[tuple[str, tuple[str, ...]], list[Slot]]()
    names = [served.name for served in spec.generators]
    for rank, (mask, counts) in enumerate(spec.wanted.items()):
        for split in SPLITS:
            count = counts.of(split) if limit is None else min(limit, counts.of(split))
            if not count:
                continue
            fitting = [seed for seed in places[split] if _fits(spec.seeds[seed.source], mask)]
            if len(fitting) * spec.reuse < count:
                raise ConfigError(_too_few(spec, split, mask, count, len(fitting), len(seeds)))
            drawn = sorted(
                (
                    (copy, _lot(spec.seed, *mask, copy, seed.key), seed)
                    for copy in range(spec.reuse)
                    for seed in fitting
                ),
                key=lambda one: one[:2],
            )[: count + round(count * spec.spare)]
            slots[split, mask] = [
                Slot(
                    split,
                    mask,
                    seed,
                    spec.seeds[seed.source].language or spec.languages[n % len(spec.languages)],
                    names[(n // len(spec.languages) + rank) % len(names)],  # each writes in all languages
                    copy,
                )
                for n, (copy, _, seed) in enumerate(drawn)
            ]
    return slots


def _fits(source: Seeds, mask: Iterable[str]) -> bool:
    return not source.dimensions or any(d in source.dimensions for d in mask)


def _split(spec: BuildSpec, seeds: Sequence[Seed]) -> Mapping[str, list[Seed]]:
    """Seeds per split: of each source a share that follows from what the splits want, chosen by hash."""
    wanted = {split: max(c.of(split) for c in spec.wanted.values()) for split in SPLITS}
    total, places = sum(wanted.values()), {split: list[Seed]() for split in SPLITS}
    for source in range(len(spec.seeds)):
        own = sorted((s for s in seeds if s.source == source), key=lambda s: _lot(spec.seed, "split", s.key))
        ends, told = [0], 0
        for split in SPLITS:
            told += wanted[split]
            ends.append(round(len(own) * told / total))
        for split, low, high in zip(SPLITS, ends, ends[1:], strict=False):
            places[split] += own[low:high]
    return places


def _too_few(spec: BuildSpec, split: str, mask: Iterable[str], count: int, fitting: int, seeds: int) -> str:
    share = f"{fitting} of {seeds} seeds are for it (a seed belongs to one split, in proportion to `records`)"
    return (
        f"mask {JOIN.join(mask)}, split {split}: {count} records are wanted, and {share}. Give more seeds, ask for "
        f"fewer records, or make more than {spec.reuse} of one seed (`reuse`)."
    )
