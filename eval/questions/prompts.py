"""Prompt sets: what the models under test are asked."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable

import pandas as pd

from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.data.parse import Invalid
from dpeer.data.places import rows_of, splits
from dpeer.data.read import Row
from dpeer.errors import ConfigError
from dpeer.eval.questions.briefs import brief_of
from dpeer.eval.questions.config import Prompts
from dpeer.eval.questions.conversations import prompt_text
from dpeer.eval.store.columns import column_value, identifier

KEY_DIGITS = 16
"""Hex digits of the sha256 of a prompt that serve as its id."""
ADVICE = "name the column in prompts.prompt or prompts.id"


def load_prompts(prompts: Prompts, seed: int) -> pd.DataFrame:
    """One row per prompt, in the order of the file: columns item, prompt, and the file's others as meta_<name>; and
    where a row brings something for judges only, `brief` (a Brief, or None).

    The test split of a hub id or folder is taken where there is one. Without an id column equal prompts are one item:
    the first is kept and a warning counts the others. `limit` picks by seed and id, so that a larger one only adds.

    Raises DataError that names file, row and column (a missing or empty prompt, an id that occurs twice), and
    ConfigError where no path is given.
    """
    if not prompts.path:
        raise ConfigError("prompts.path is empty; give a file (.csv, .jsonl, .parquet), a folder or a hub id")
    given, faults = _rows(prompts.path)
    items: dict[str, dict[str, object]] = {}
    origin: dict[str, str] = {}
    repeated = 0
    for row in given:
        try:
            item = _item(row, prompts)
            if prompts.id is not None and item["item"] in items:
                first = origin[str(item["item"])]
                raise Invalid(prompts.id, f"the id {excerpt(item['item'])} occurs twice, first in {first}")
        except Invalid as invalid:
            faults.append(Fault(row.where, invalid.column, invalid.message))
            continue
        repeated += item["item"] in items
        items.setdefault(str(item["item"]), item)
        origin.setdefault(str(item["item"]), row.where)
    if faults:
        raise data_error(prompts.path, faults)
    if repeated:
        warnings.warn(
            f"{prompts.path}: {repeated} rows repeat the prompt of an earlier row and are left out; to keep them apart "
            "give each an id and name its column in prompts.id",
            stacklevel=2,
        )
    frame = pd.DataFrame(_chosen(items.values(), prompts.limit, seed))
    return frame.assign(brief=frame["brief"].where(frame["brief"].notna(), None)) if "brief" in frame else frame


def _chosen(items: Iterable[dict[str, object]], limit: int | None, seed: int) -> list[dict[str, object]]:
    every = list(items)
    if limit is None or limit >= len(every):
        return every
    order = sorted(every, key=lambda i: hashlib.sha256(f"{seed}\0{i['item']}".encode()).digest())
    kept = {str(i["item"]) for i in order[:limit]}
    return [i for i in every if i["item"] in kept]


def _rows(source: str) -> tuple[list[Row], list[Fault]]:
    return rows_of(source, "test" if "test" in splits(source) else "train")


def _item(row: Row, prompts: Prompts) -> dict[str, object]:
    prompt = prompt_text(column_value(row, prompts.prompt, ADVICE), prompts.prompt)
    if prompts.id is None:
        item = hashlib.sha256(prompt.encode()).hexdigest()[:KEY_DIGITS]
    else:
        item = identifier(column_value(row, prompts.id, ADVICE), prompts.id)
    own = {prompts.prompt, prompts.id, prompts.reference, prompts.rubric, prompts.language}
    meta = {f"meta_{name}": value for name, value in row.fields.items() if name not in own}
    brief = brief_of(row, prompts)
    return {"item": item, "prompt": prompt, **meta} | ({"brief": brief} if brief else {})
