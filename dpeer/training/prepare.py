"""A recipe's data, tokenised, and the facts about it that a run must not change when it goes on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpeer.config import Config
from dpeer.data.load import load
from dpeer.data.packing import batch_indices
from dpeer.data.schema import DataSet
from dpeer.data.split import carve
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import DataError
from dpeer.model.identity import model_hash
from dpeer.model.lm import load_tokenizer
from dpeer.training.reference import reference_hash
from dpeer.training.tokens import parts, tokens

METHOD = 2
"""Version of what a step computes: 1 had the anchor outside the normaliser and no dual split."""
SPLITS = ("train", "dual", "heldout")


@dataclass(frozen=True)
class Prepared:
    """train: moves the policy. dual: moves the multipliers. heldout: is looked at once, for the certificate."""

    train: TokenizedSet
    dual: TokenizedSet | None
    heldout: TokenizedSet | None
    facts: dict[str, Any]

    def records_of(self, config: Config, step: int) -> list[TokenTree]:
        """What is scored in optimizer step `step` (0-based): the global batch, then that of the dual split."""
        return self.train_batch(config, step) + self.dual_batch(config, step)

    def train_batch(self, config: Config, step: int) -> list[TokenTree]:
        """The global batch: a function of data, seed and step only, never of the ranks."""
        return [self.train.trees[i] for i in self.train_places(config, step)]

    def dual_batch(self, config: Config, step: int) -> list[TokenTree]:
        """The same of the dual split; empty where none is used."""
        return [self.dual.trees[i] for i in self.dual_places(config, step)] if self.dual else []

    def train_places(self, config: Config, step: int) -> list[int]:
        """Of the records of the global batch among the training records."""
        size = config.training.records_per_step
        return batch_indices(step * size, size, len(self.train.trees), config.seed)

    def dual_places(self, config: Config, step: int) -> list[int]:
        size = config.dual_records if self.dual else 0
        return batch_indices(step * size, size, len(self.dual.trees), config.seed) if self.dual else []

    @property
    def proof(self) -> Tensor | None:
        """[D]: certificate records that have edges of each dimension; None where there is no certificate."""
        return torch.tensor(self.heldout.records_with_edges) if self.heldout else None

    @property
    def splits(self) -> dict[str, TokenizedSet]:
        """Those that there are, by name."""
        return {name: data for name in SPLITS if (data := getattr(self, name)) is not None}


def prepare(config: Config, *, whole: bool = False) -> Prepared:
    """Open the tokenised records, after making them where that was not done yet (`tokens`). `whole`: compare all of
    them with their checksums; for the one process that comes before the ranks."""
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    store = tokens(config, tokenizer, whole=whole)
    found = {name: store.split(name) for name in store.state["splits"]}
    if config.follows_split:
        refuse_unseen(found["train"], found["dual"])
    facts = {
        "method": METHOD,
        "data": {name: _facts(data) for name, data in found.items()},
        "model": {"hash": model_hash(config.model.path, config.model.revision)},
        "reference": {"hash": reference_hash(config)},
        "chat_template": {"hash": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()},
    }
    return Prepared(found["train"], found.get("dual"), found.get("heldout"), facts)


def split_records(config: Config) -> dict[str, DataSet]:
    """The records of each split by name, all of them in memory."""
    train, *others = parts(config)
    records = {"train": load(train.source, train.split)}
    for part in others:
        if part.part is not None:
            records["train"], records[part.name] = carve(records["train"], part.part, part.name)
        else:
            records[part.name] = load(part.source, part.split, dimensions=records["train"].dimensions)
    return records


def refuse_unseen(train: TokenizedSet, dual: TokenizedSet) -> None:
    """DataError for a dimension with training edges whose multiplier would never see any."""
    (mine, theirs) = (train.edges, dual.edges)
    if unseen := [d for d in train.dimensions if mine[d] and not theirs[d]]:
        raise DataError(
            f"the dual split ({len(dual.trees)} records) has no pairs of {', '.join(unseen)}, so the multiplier of "
            "that dimension would never move. Raise data.dual (a share such as 20%, or a file), or let the training "
            "batches move the multipliers: objective.dual.evidence=batch"
        )


def _facts(data: TokenizedSet) -> dict[str, Any]:
    records = len(data.trees)
    return {
        "sha256": data.sha256,
        "records": records,
        "edges": data.edges,
        "dropped": data.dropped,
        "cut": data.cut,
    }
