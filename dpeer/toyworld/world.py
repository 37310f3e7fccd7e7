"""A world of templates whose truth is known: PersonaKnob-like records, and an oracle that reads any text back.

Every response has one clause per dimension, in the order E A T C, each good or bad. Golden is good in every active
dimension; the reject for X is bad in X and equal to golden elsewhere. The planted tension: T is rarely active, and
where it is not, golden usually carries a bad T clause and its rejects a good one, and preferring golden unteaches T.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from dpeer.data.schema import DataSet, Message, Record, Response
from dpeer.errors import DataError
from dpeer.toyworld.text import CLAUSES, FEELINGS, PROMPTS, SCENES, Quality

DIMENSIONS = tuple(CLAUSES)
"""In the order of the clauses. Masks and data sets list them alphabetically, as the loader does."""
RARE = "T"
RARE_MASKS = 0.19
"""Share of records in which T is active: makes about 8 % of the edges T edges."""
TENSION = 0.8
"""Where T is inactive: share of records whose golden is bad and whose rejects are good in T."""
CONTESTED = ("T", "E")
"""The two dimensions that exclude each other in `write_contested`."""

_MASKS = [m for size in range(2, len(DIMENSIONS) + 1) for m in itertools.combinations(sorted(DIMENSIONS), size)]
_WITH_RARE = [m for m in _MASKS if RARE in m]
_WITHOUT_RARE = [m for m in _MASKS if RARE not in m]

Reading = Literal["good", "bad", "none"]


class World(NamedTuple):
    """Everything an experiment needs; no prompt occurs twice.

    `pretrain`: (prompt, reply) pairs for the base model, each clause good or bad by a coin flip. `train`, `heldout`:
    records for preference training and for the certificate. `prompts`: fresh prompts to sample from trained models.
    """

    pretrain: tuple[tuple[str, str], ...]
    train: DataSet
    heldout: DataSet
    prompts: tuple[str, ...]


class Share(NamedTuple):
    """`good`: per dimension the share of texts that the oracle reads as good; `mean`: its mean over dimensions;
    `fluency`: share of texts in which the oracle can read every clause."""

    good: dict[str, float]
    mean: float
    fluency: float


def generate(n: int, seed: int) -> DataSet:
    """n records with distinct prompts, a function of (n, seed) only. Raises DataError when n exceeds the prompts."""
    rng = random.Random(seed)
    return _records(rng, _situations(rng, n))


def write_world(
    folder: str | Path,
    seed: int,
    n_train: int = 600,
    n_heldout: int = 200,
    n_prompts: int = 200,
    n_pretrain: int = 2400,
    rare_masks: float = RARE_MASKS,
) -> World:
    """Make a world and write it into `folder`, one JSON object per line.

    train.jsonl and test.jsonl hold records in the general form {"prompt", "mask", "responses": [{"text", "fails"}]},
    prompts.jsonl {"prompt"} and pretrain.jsonl {"prompt", "response"}. `rare_masks`: share of records in which T is
    active. Raises DataError when n in total exceeds the prompts.
    """
    rng = random.Random(seed)
    situations = iter(_situations(rng, n_train + n_heldout + n_prompts + n_pretrain))
    train, heldout = (_records(rng, list(itertools.islice(situations, n)), rare_masks) for n in (n_train, n_heldout))
    prompts = tuple(_fill(s["prompt"], s) for s in itertools.islice(situations, n_prompts))
    pretrain = tuple((_fill(s["prompt"], s), _text(_coin_flips(rng, s))) for s in situations)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "train.jsonl", [_as_json(r) for r in train.records])
    _write_lines(folder / "test.jsonl", [_as_json(r) for r in heldout.records])
    _write_lines(folder / "prompts.jsonl", [{"prompt": p} for p in prompts])
    _write_lines(folder / "pretrain.jsonl", [{"prompt": p, "response": r} for p, r in pretrain])
    return World(pretrain, train, heldout, prompts)


def write_contested(folder: str | Path, seed: int, n_train: int = 300, n_heldout: int = 100) -> None:
    """Write train.jsonl and test.jsonl of a world in which two dimensions cannot both be had.

    Each prompt has two replies: one good in T and bad in E, the other the reverse, equal elsewhere. It makes two
    records, one that asks for T alone and one that asks for E alone, so that an edge of T is an edge of E turned round:
    whatever one margin gains the other loses, however long training goes on.
    """
    rng = random.Random(seed)
    situations = iter(_situations(rng, n_train + n_heldout))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, n in (("train", n_train), ("test", n_heldout)):
        pairs = [_contested_pair(rng, slots, f"contested:{i}") for i, slots in zip(range(n), situations, strict=False)]
        _write_lines(folder / f"{name}.jsonl", [_as_json(record) for pair in pairs for record in pair])


def oracle(text: str) -> dict[str, Reading]:
    """Per dimension what the text's clauses are; "none" when there is no such clause, or a good and a bad one."""
    matches = {d: [q for q in CLAUSES[d] if _pattern(d, q).search(text)] for d in DIMENSIONS}
    return {d: qualities[0] if len(qualities) == 1 else "none" for d, qualities in matches.items()}


def share(texts: Sequence[str]) -> Share:
    """What share of the texts is good, per dimension and on average, and fluent. Raises DataError without texts."""
    if not texts:
        raise DataError("toy world: no texts to judge; give at least one")
    readings = [oracle(text) for text in texts]
    good = {d: sum(r[d] == "good" for r in readings) / len(texts) for d in DIMENSIONS}
    fluent = sum("none" not in r.values() for r in readings)
    return Share(good, sum(good.values()) / len(good), fluent / len(texts))


def _situations(rng: random.Random, n: int) -> list[dict[str, str]]:
    """n distinct prompts, as the slot values that make them."""
    names = ("topic", "expert", "belief", "request", "feeling", "prompt")
    situations = [
        dict(zip(names, (scene.topic, scene.expert, *choice), strict=True))
        for scene in SCENES
        for choice in itertools.product(scene.beliefs, scene.requests, FEELINGS, PROMPTS)
    ]
    if not 0 < n <= len(situations):
        raise DataError(f"toy world: {n} prompts asked for, but only {len(situations)} differ; ask for 1 to that many")
    return rng.sample(situations, n)


def _records(rng: random.Random, situations: Sequence[dict[str, str]], rare_masks: float = RARE_MASKS) -> DataSet:
    rows = enumerate(situations, start=1)
    records = tuple(_record(rng, slots, f"toyworld:{row}", rare_masks) for row, slots in rows)
    return DataSet(tuple(sorted({d for r in records for d in r.mask})), records)


def _record(rng: random.Random, slots: dict[str, str], source: str, rare_masks: float) -> Record:
    mask = rng.choice(_WITH_RARE if rng.random() < rare_masks else _WITHOUT_RARE)
    golden = _coin_flips(rng, slots) | {d: _clause(rng, d, "good", slots) for d in mask}
    shared = golden
    if RARE not in mask and rng.random() < TENSION:
        golden = golden | {RARE: _clause(rng, RARE, "bad", slots)}
        shared = golden | {RARE: _clause(rng, RARE, "good", slots)}
    rejects = [Response(_text(shared | {d: _clause(rng, d, "bad", slots)}), frozenset({d})) for d in mask]
    prompt = Message("user", _fill(slots["prompt"], slots))
    return Record((prompt,), mask, (Response(_text(golden), frozenset()), *rejects), source)


def _contested_pair(rng: random.Random, slots: dict[str, str], source: str) -> tuple[Record, Record]:
    shared = _coin_flips(rng, slots)
    bad = {d: shared | {e: _clause(rng, e, "bad" if e == d else "good", slots) for e in CONTESTED} for d in CONTESTED}
    prompt = (Message("user", _fill(slots["prompt"], slots)),)
    first, second = CONTESTED

    def record(asked: str, other: str) -> Record:
        better, worse = Response(_text(bad[other]), frozenset()), Response(_text(bad[asked]), frozenset({asked}))
        return Record(prompt, (asked,), (better, worse), source)

    return record(first, second), record(second, first)


def _coin_flips(rng: random.Random, slots: dict[str, str]) -> dict[str, str]:
    """A clause per dimension, each good or bad with even odds."""
    return {d: _clause(rng, d, rng.choice(("good", "bad")), slots) for d in DIMENSIONS}


def _clause(rng: random.Random, dimension: str, quality: Quality, slots: dict[str, str]) -> str:
    return _fill(rng.choice(CLAUSES[dimension][quality]), slots)


def _fill(template: str, slots: dict[str, str]) -> str:
    sentence = template.format(**slots)
    return sentence[0].upper() + sentence[1:]


def _text(clauses: dict[str, str]) -> str:
    return " ".join(clauses[d] for d in DIMENSIONS)


@cache
def _pattern(dimension: str, quality: Quality) -> re.Pattern[str]:
    values = {
        "topic": [s.topic for s in SCENES],
        "expert": [s.expert for s in SCENES],
        "belief": [b for s in SCENES for b in s.beliefs],
        "request": [r for s in SCENES for r in s.requests],
        "feeling": FEELINGS,
    }
    slots = {name: f"(?:{'|'.join(map(re.escape, options))})" for name, options in values.items()}
    escaped = re.escape("|".join(CLAUSES[dimension][quality])).replace(r"\|", "|")
    clauses = escaped.replace(r"\{", "{").replace(r"\}", "}").format(**slots)
    return re.compile(rf"(?<!\S)(?:{clauses})(?!\S)")


def _as_json(record: Record) -> dict[str, object]:
    return {
        "prompt": record.prompt[0].content,
        "mask": record.mask,
        "responses": [{"text": r.text, "fails": sorted(r.fails)} for r in record.responses],
    }


def _write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
