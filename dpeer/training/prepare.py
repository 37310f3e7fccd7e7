"""A recipe's data, tokenised, and the facts about it that a run must not change when it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpeer.config import Config
from dpeer.config_sources import paths
from dpeer.data.facts import ModelFacts, facts, tokens
from dpeer.data.faults import data_error
from dpeer.data.load import load, splits
from dpeer.data.packing import batch_indices
from dpeer.data.schema import DataSet
from dpeer.data.split import carve, share
from dpeer.data.tokenize import TokenizedSet, TokenTree, tokenize
from dpeer.errors import ConfigError, DataError
from dpeer.model.identity import model_hash
from dpeer.model.lm import load_tokenizer
from dpeer.model.shape import model_facts
from dpeer.training.reference import reference_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METHOD = 2
"""Version of what a step computes: 1 had the anchor outside the normaliser and no dual split."""
SPLITS = ("train", "dual", "heldout")
CARVED = "10%"
SHARED = "\nRemove such records from one of the two, or have records carved from the training data: data.heldout=10%."


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
    warnings: tuple[str, ...] = ()

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
    models = model_facts_of(config)
    tokenizer = load_tokenizer(config.model.path, config.model.revision, config.data.date)
    spec, records = config.data, split_records(config)
    tokenised = {name: tokenize(part, tokenizer, spec.max_tokens, spec.overlong) for name, part in records.items()}
    for name, data in tokenised.items():
        if not data.trees:
            raise DataError(
                f"{', '.join(paths(spec.train))}: no {name} record fits data.max_tokens = {spec.max_tokens} "
                f"({data.dropped} dropped). Raise it."
            )
    told = refuse_unsound(config, records, tokenised, tokenizer, models)
    if config.follows_split:
        refuse_unseen(tokenised["train"], tokenised["dual"])
    kept: dict[str, Any] = {
        "method": METHOD,
        "data": {name: _facts(data) for name, data in tokenised.items()},
        "model": {"hash": model_hash(config.model.path, config.model.revision)},
        "reference": {"hash": reference_hash(config)},
        "chat_template": {"hash": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()},
    }
    weights = _weights(records["train"], tokenised["train"])
    if weights is not None:
        kept["data"]["train"]["weights"] = hashlib.sha256(repr(weights).encode()).hexdigest()
    reading = dict.fromkeys(line for part in records.values() for r in part.reading for line in r.lines())
    dual, heldout = tokenised.get("dual"), tokenised.get("heldout")
    return Prepared(tokenised["train"], dual, heldout, kept, weights, tuple(reading), told)


def model_facts_of(config: Config) -> list[ModelFacts]:
    """Of the policy and, where it is another model, of the reference. ConfigError for one that cannot be trained."""
    spec = config.model
    places = dict.fromkeys([(spec.path, spec.revision), spec.reference])
    models = [found for place in places if (found := model_facts(*place))]
    if errors := facts({}, {}, None, models).errors:
        raise ConfigError("\n".join(map(str, errors)))
    return models


def refuse_unsound(
    config: Config,
    records: Mapping[str, DataSet],
    tokenised: Mapping[str, TokenizedSet],
    tokenizer: PreTrainedTokenizerBase,
    models: Sequence[ModelFacts],
) -> tuple[str, ...]:
    """DataError for data on which no step may be taken (`dpeer.data.facts`); returns what is to be told of the rest."""
    if not config.model.reference_is_base:
        same_tokenizer(config, tokenizer)
    media = frozenset[int]().union(*(model.media for model in models))
    counted = {
        name: tokens(data.dimensions, data.trees, tokenizer.unk_token_id, data.dropped, data.cut, media)
        for name, data in tokenised.items()
    }
    constrained = config.objective.constrained(tokenised["train"].dimensions)
    found = facts(records, counted, tokenizer, models, constrained, config.data.max_tokens)
    if found.errors:
        shared = any(fault.column == "prompt" for fault in found.errors)
        raise DataError(f"{data_error(', '.join(paths(config.data.train)), found.errors)}{SHARED if shared else ''}")
    return tuple(map(str, found.warnings))


def same_tokenizer(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """ConfigError when the reference would read the policy's tokens as others."""
    path, revision = config.model.reference
    other = load_tokenizer(path, revision)
    if tokenizer.get_vocab() != other.get_vocab():
        raise ConfigError(
            f"model.reference_path {path} has another vocabulary than {config.model.path}: the reference would score "
            "other tokens. Choose a reference with the same tokenizer."
        )
    if tokenizer.chat_template != other.chat_template:
        raise ConfigError(
            f"model.reference_path {path} has another chat template than {config.model.path}: prompts are written in "
            "the policy's. Give both models the same template."
        )


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
            if not parts[name].records:
                raise DataError(
                    f"{', '.join(paths(spec.train))}: {source} of {len(train.records)} training records are no record "
                    f"for the {name} split. Raise data.{name}, give a file, or set it to none."
                )
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
