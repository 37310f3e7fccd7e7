"""A recipe's data, tokenised, and the facts about it that a run must not change when it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpeer.config import Config
from dpeer.config_sources import paths
from dpeer.data.facts import ModelFacts, Tokens, facts
from dpeer.data.faults import Fault, data_error
from dpeer.data.packing import batch_indices
from dpeer.data.schema import DataSet
from dpeer.data.split import carve
from dpeer.data.token_store import Store
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import ConfigError, DataError
from dpeer.model.adapters import other_base, start_of
from dpeer.model.four_bits import refuse_four_bits
from dpeer.model.lm import load_tokenizer
from dpeer.model.shape import model_facts
from dpeer.model.words import template_hash, tokenizer_of
from dpeer.objective.lagrangian import Lagrangian
from dpeer.training.reference import reference_hash, start_hash
from dpeer.training.tokens import parts, refuse_empty, tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    weights: Sequence[float] | npt.NDArray[np.float64] | None = None
    """Of the training records, where they differ: how often each is drawn. Evidence counts every record once."""
    reading: tuple[str, ...] = ()
    """Lines that say what the columns of the sources were taken for, and what became no edge."""
    warnings: tuple[str, ...] = ()
    thoughts: bool = False
    """Whether any response is trained with its thought; decided by the data, which are among the facts."""
    ends: frozenset[int] | None = None
    """Last tokens of all responses; None where the manifest of an earlier version does not say."""

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
        return batch_indices(step * size, size, len(self.train.trees), config.seed, self.weights)

    def dual_places(self, config: Config, step: int) -> list[int]:
        size = config.dual_records if self.dual else 0
        return batch_indices(step * size, size, len(self.dual.trees), config.seed) if self.dual else []

    def lagrangian(self, config: Config) -> Lagrangian:
        """Before the first step. ConfigError where the recipe's objective does not fit the data's dimensions."""
        steps = config.training.total_steps(len(self.train.trees))
        return Lagrangian(config.objective, self.train.dimensions, None, steps, self.proof)

    @property
    def proof(self) -> Tensor | None:
        """[D]: certificate prompts that have edges of each dimension; None where there is no certificate."""
        return torch.tensor(self.heldout.prompts_with_edges) if self.heldout else None

    @property
    def splits(self) -> dict[str, TokenizedSet]:
        """Those that there are, by name."""
        return {name: data for name in SPLITS if (data := getattr(self, name)) is not None}


def prepare(config: Config, *, whole: bool = False) -> Prepared:
    """Open the tokenised records, after making them where that was not done yet (`tokens`). `whole`: compare all of
    them with their checksums; for the one process that comes before the ranks."""
    models = model_facts_of(config)
    tokenizer = tokenizer_of(config)
    media = frozenset[int]().union(*(model.media for model in models))
    store = tokens(config, tokenizer, media, whole=whole)
    found = {name: store.split(name) for name in store.state["splits"]}
    told = refuse_unsound(config, store, tokenizer, models)
    if config.follows_split:
        refuse_unseen(found["train"], found["dual"])
    kept: dict[str, Any] = {
        "method": METHOD,
        "data": {name: _facts(data) for name, data in found.items()},
        "model": {"hash": start_hash(config)},
        "reference": {"hash": reference_hash(config)},
        "chat_template": {"hash": template_hash(tokenizer)},
    }
    if weights := store.state["splits"]["train"]["weights"]:
        kept["data"]["train"]["weights"] = weights
    ends = frozenset(store.state["ends"])
    dual, heldout, reading = found.get("dual"), found.get("heldout"), tuple(store.state["reading"])
    return Prepared(found["train"], dual, heldout, kept, store.weights, reading, told, store.state["thoughts"], ends)


def model_facts_of(config: Config) -> list[ModelFacts]:
    """Of the policy and, where it is another model, of the reference. ConfigError for one that cannot be trained."""
    spec = config.model
    refuse_four_bits(spec)
    if spec.start:
        start_of(spec.start)
    places = dict.fromkeys([(spec.path, spec.revision), spec.reference])
    models = [found for place in places if (found := model_facts(*place))]
    if errors := facts({}, {}, None, models).errors:
        raise ConfigError("\n".join(map(str, errors)))
    return models


def refuse_unsound(
    config: Config, store: Store, tokenizer: PreTrainedTokenizerBase, models: Sequence[ModelFacts]
) -> tuple[str, ...]:
    """DataError for tokens on which no step may be taken (`dpeer.data.facts`; prompts were compared when the store was
    written); returns what is to be told of the rest."""
    if not config.model.reference_is_base:
        same_tokenizer(config, tokenizer)
    counted = {name: _counted(about, store.state["ends"]) for name, about in store.state["splits"].items()}
    constrained = config.objective.constrained(store.state["dimensions"])
    alike = [Fault(*fault) for fault in store.state["alike"]]
    found = facts({}, counted, tokenizer, models, constrained, config.data.max_tokens, alike)
    if found.errors:
        raise data_error(", ".join(paths(config.data.train)), found.errors)
    return (*map(str, found.warnings), *other_base(config.model))


def _counted(about: Mapping[str, Any], ends: Sequence[int]) -> Tokens:
    """ends: of all splits."""
    names = ("largest", "longest", "total", "unknown", "edges", "dropped", "cut")
    return Tokens(ends=frozenset(ends), **{name: about[name] for name in names})


def same_tokenizer(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """ConfigError when the reference would read the policy's tokens as others."""
    path, revision = config.model.reference
    other = load_tokenizer(path, revision)
    if tokenizer.get_vocab() != other.get_vocab():
        raise ConfigError(
            f"model.reference_path {path} has another vocabulary than {config.model.path}: the reference would score "
            "other tokens. Choose a reference with the same tokenizer."
        )
    if not config.model.chat_template and tokenizer.chat_template != other.chat_template:
        raise ConfigError(
            f"model.reference_path {path} has another chat template than {config.model.path}: prompts are written in "
            "the policy's. Give both models the same template, by model.chat_template."
        )


def split_records(config: Config) -> dict[str, DataSet]:
    """The records of each split by name, all of them in memory; `heldout` and `dual` are carved from the training
    records where the recipe gives a share or nothing."""
    train, *others = parts(config)
    records = {"train": train.load(None)}
    for part in others:
        if part.share:
            before = len(records["train"].records)
            records["train"], records[part.name] = carve(records["train"], part.share, part.name)
            refuse_empty(config, part, len(records[part.name].records), before)
        else:
            records[part.name] = part.load(records["train"].dimensions)
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
