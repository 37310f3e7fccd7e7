"""A recipe's data, tokenised, and the facts about it that a run must not change when it goes on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from dpeer.config import Config
from dpeer.data.load import load, splits
from dpeer.data.tokenize import TokenizedSet, tokenize
from dpeer.errors import DataError
from dpeer.model.identity import model_hash
from dpeer.model.lm import load_tokenizer
from dpeer.training.reference import reference_hash


@dataclass(frozen=True)
class Prepared:
    train: TokenizedSet
    heldout: TokenizedSet | None
    facts: dict[str, Any]


def prepare(config: Config) -> Prepared:
    """Load, check and tokenise training and held-out records. Deterministic: every rank does it by itself."""
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    spec = config.data
    records = load(spec.train, "train")
    train = tokenize(records, tokenizer, spec.max_tokens, spec.overlong)
    if not train.trees:
        raise DataError(
            f"{spec.train}: no record fits data.max_tokens = {spec.max_tokens} ({train.dropped} dropped). Raise it."
        )
    heldout = None
    source = spec.heldout or (spec.train if "test" in splits(spec.train) else None)
    if source:
        held = load(source, "test", dimensions=records.dimensions)
        heldout = tokenize(held, tokenizer, spec.max_tokens, spec.overlong)
    facts = {
        "data": {"train": _facts(train)} | ({"heldout": _facts(heldout)} if heldout else {}),
        "model": {"hash": model_hash(config.model.path, config.model.revision)},
        "reference": {"hash": reference_hash(config)},
        "chat_template": {"hash": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()},
    }
    return Prepared(train, heldout, facts)


def _facts(data: TokenizedSet) -> dict[str, Any]:
    edges = dict.fromkeys(data.dimensions, 0)
    for tree in data.trees:
        for d, _, _ in tree.edges:
            edges[data.dimensions[d]] += 1
    return {"sha256": data.sha256, "records": len(data.trees), "edges": edges, "dropped": data.dropped, "cut": data.cut}
