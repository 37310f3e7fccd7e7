"""A recipe's data, tokenised, and the facts about it that a run must not change when it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpeer.config import Config
from dpeer.config_sources import paths
from dpeer.data.load import load, splits
from dpeer.data.packing import batch_indices
from dpeer.data.schema import DataSet
from dpeer.data.split import carve, share
from dpeer.data.tokenize import TokenizedSet, TokenTree, tokenize
from dpeer.errors import DataError
from dpeer.model.identity import model_hash
from dpeer.model.lm import load_tokenizer
from dpeer.training.reference import reference_hash

METHOD = 2
"""Version of what a step computes: 1 had the anchor outside the normaliser and no dual split."""
SPLITS = ("train", "dual", "heldout")
CARVED = "10%"


@dataclass(frozen=True)
class Prepared:
    """train: moves the policy. dual: moves the multipliers. heldout: is looked at once, for the certificate."""

    train: TokenizedSet
    dual: TokenizedSet | None
    heldout: TokenizedSet | None
    facts: dict[str, Any]
    weights: tuple[float, ...] | None = None
    """Of the training records, where they differ: how often each is drawn. Evidence counts every record once."""
    reading: tuple[str, ...] = ()
    """Lines that say what the columns of the sources were taken for, and what became no edge."""

    def records_of(self, config: Config, step: int) -> list[TokenTree]:
        """What is scored in optimizer step `step` (0-based): the global batch, then that of the dual split."""
        return self.train_batch(config, step) + self.dual_batch(config, step)

    def train_batch(self, config: Config, step: int) -> list[TokenTree]:
        """The global batch: a function of data, seed and step only, never of the ranks."""
        return _batch(self.train, config.training.records_per_step, config.seed, step, self.weights)

    def dual_batch(self, config: Config, step: int) -> list[TokenTree]:
        """The same of the dual split; empty where none is used."""
        return _batch(self.dual, config.dual_records, config.seed, step) if self.dual else []

    @property
    def proof(self) -> Tensor | None:
        """[D]: certificate prompts that have edges of each dimension; None where there is no certificate."""
        if self.heldout is None:
            return None
        dims = [d for d, _ in {(edge[0], tree.prompt) for tree in self.heldout.trees for edge in tree.edges}]
        return torch.bincount(torch.tensor(dims, dtype=torch.long), minlength=len(self.heldout.dimensions))

    @property
    def splits(self) -> dict[str, TokenizedSet]:
        """Those that there are, by name."""
        return {name: data for name in SPLITS if (data := getattr(self, name)) is not None}


def prepare(config: Config) -> Prepared:
    """Load, check, split and tokenise the records. Deterministic: every rank does it by itself."""
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    spec = config.data
    records = split_records(config)
    tokenised = {name: tokenize(part, tokenizer, spec.max_tokens, spec.overlong) for name, part in records.items()}
    for name, data in tokenised.items():
        if not data.trees:
            raise DataError(
                f"{', '.join(paths(spec.train))}: no {name} record fits data.max_tokens = {spec.max_tokens} "
                f"({data.dropped} dropped). Raise it."
            )
    if config.follows_split:
        refuse_unseen(tokenised["train"], tokenised["dual"])
    facts: dict[str, Any] = {
        "method": METHOD,
        "data": {name: _facts(data) for name, data in tokenised.items()},
        "model": {"hash": model_hash(config.model.path, config.model.revision)},
        "reference": {"hash": reference_hash(config)},
        "chat_template": {"hash": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()},
    }
    weights = _weights(records["train"], tokenised["train"])
    if weights is not None:
        facts["data"]["train"]["weights"] = hashlib.sha256(repr(weights).encode()).hexdigest()
    reading = dict.fromkeys(line for part in records.values() for r in part.reading for line in r.lines())
    return Prepared(tokenised["train"], tokenised.get("dual"), tokenised.get("heldout"), facts, weights, tuple(reading))


def _weights(data: DataSet, tokenised: TokenizedSet) -> tuple[float, ...] | None:
    """Of the trees; None where all are equal."""
    weights = tuple(data.records[tree.index].weight for tree in tokenised.trees)
    return weights if len(set(weights)) > 1 else None


def _batch(
    data: TokenizedSet, size: int, seed: int, step: int, weights: Sequence[float] | None = None
) -> list[TokenTree]:
    return [data.trees[i] for i in batch_indices(step * size, size, len(data.trees), seed, weights)]


def split_records(config: Config) -> dict[str, DataSet]:
    """The records of each split by name; `heldout` and `dual` are carved from the training records where the recipe
    gives a share or nothing."""
    spec = config.data
    train = load(spec.train, "train", map=spec.map)
    parts: dict[str, DataSet] = {}
    tested = all("test" in splits(path) for path in paths(spec.train))
    heldout = spec.heldout or (spec.train if tested else CARVED)
    for name, source in (("heldout", heldout), ("dual", spec.dual)):
        if source == "none":
            continue
        if isinstance(source, str) and (part := share(source)):
            train, parts[name] = carve(train, part, name)
        else:
            parts[name] = load(source, "test" if name == "heldout" else name, train.dimensions, spec.map)
    return {"train": train, **parts}


def refuse_unseen(train: TokenizedSet, dual: TokenizedSet) -> None:
    """DataError for a dimension with training edges whose multiplier would never see any."""
    (mine, theirs) = (_edges(data) for data in (train, dual))
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
        "edges": _edges(data),
        "dropped": data.dropped,
        "cut": data.cut,
    }


def _edges(data: TokenizedSet) -> dict[str, int]:
    edges = dict.fromkeys(data.dimensions, 0)
    for tree in data.trees:
        for d, _, _ in tree.edges:
            edges[data.dimensions[d]] += 1
    return edges
