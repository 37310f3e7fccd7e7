"""`training.sequence_parallel: auto`, made a number on the ranks themselves, which see data, hosts and memory."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch.distributed as dist
from transformers import PretrainedConfig

from dpeer.config import Config
from dpeer.data.layout import Layout, costs
from dpeer.data.tokenize import TokenTree
from dpeer.errors import ConfigError, DpeerError
from dpeer.estimate.footprint import count_activations, count_weights
from dpeer.estimate.memory import GIB, Zero, offloaded, per_gpu, scoring
from dpeer.model.cut import obstacle, sizes
from dpeer.model.lm import load_shape
from dpeer.model.probe import layout_of
from dpeer.training.choice import device_memory, plain_reference, policy_choice
from dpeer.training.engine import model_settings
from dpeer.training.prepare import Prepared, prepare
from dpeer.training.world import World

LOOKED_AT = 8192
"""Tokens of a record that is counted with in place of a longer one of the same proportions."""


def with_teams(config: Config, world: World, role: str, prepared: Prepared | None = None) -> Config:
    """Collective. The recipe with a number in place of `auto`: the fewest ranks of one host with which the longest
    record, and a pack of training.tokens_per_pack, fit, and what they keep in the host's memory too. ConfigError where
    none do."""
    if config.training.sequence_parallel != "auto":
        return config
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, (socket.gethostname(), device_memory(world), psutil.virtual_memory().total))
    reference = role != "policy"
    plain = plain_reference(config, world.size) if reference else policy_choice(config, world).name == "plain"
    answers: list[Any] = [None] * world.size
    answer: int | DpeerError | None = None
    if world.rank == 0:
        try:
            case = Case.of(config, world.size, plain, reference)
            both = set(case.possible()) & set(Case.of(config, world.size, plain, not reference).possible())
            hosts, devices, memories = zip(*everyone, strict=True)
            possible = [n for n in sorted(both) if _together(hosts, n)]
            trees = [longest(data.trees, case.layout) for data in (prepared or prepare(config)).splits.values()]
            answer = fewest(case, possible, longest(trees, case.layout), min(devices), share(hosts, memories))
        except DpeerError as error:
            answer = error
    dist.all_gather_object(answers, answer)
    if isinstance(answers[0], DpeerError):
        raise answers[0]
    return config.model_copy(update={"training": config.training.model_copy(update={"sequence_parallel": answers[0]})})


def _together(hosts: Sequence[str], size: int) -> bool:
    """Whether ranks in groups of this size are on one host each."""
    return len(hosts) % size == 0 and all(len(set(hosts[i : i + size])) == 1 for i in range(0, len(hosts), size))


def share(hosts: Sequence[str], memories: Sequence[float]) -> float:
    """Bytes of host memory that each rank may take: those of its host, by the ranks there, where that is least."""
    ranks = Counter(hosts)
    return min(memory / ranks[host] for host, memory in zip(hosts, memories, strict=True))


def longest(trees: Sequence[TokenTree], layout: Layout) -> TokenTree:
    return trees[int(costs(trees, layout).argmax())]


@dataclass(frozen=True)
class Case:
    """What memory depends on beside the records and the number of ranks that share a pack."""

    config: Config
    shape: PretrainedConfig
    layout: Layout
    ranks: int
    plain: bool
    reference: bool = False

    @classmethod
    def of(cls, config: Config, ranks: int, plain: bool, reference: bool) -> Case:
        spec = config.model
        path, revision = spec.reference if reference else (spec.path, spec.revision)
        shape = load_shape(path, revision)
        return cls(config, shape, layout_of(shape, path, spec.layout), ranks, plain, reference)

    def possible(self) -> list[int]:
        """Numbers of ranks that can share a pack."""
        found = sizes(int(self.shape.num_attention_heads), self.ranks)
        return [1] if len(found) > 1 and obstacle(self.shape, self.layout) else found

    def needed(self, tree: TokenTree, tokens: int, size: int) -> tuple[float, float]:
        """Bytes of a rank at its peak with packs of so many tokens of records like this one, shared by `size` ranks:
        on its device, and of activations in the host's memory."""
        spec, whole = self.config.model, int(costs([tree], self.layout)[0])
        smaller = max(1.0, whole / LOOKED_AT)
        responses = [max(2, int(len(r) / smaller)) for r in tree.responses]
        weights = count_weights(spec, self.shape)
        activations = count_activations(
            spec, self.shape, max(1, int(len(tree.prompt) / smaller)), responses, self.layout, size
        )
        settings = {} if self.plain else model_settings(self.config, self.shape, trained=not self.reference)
        zero, measure = Zero.of(settings) if settings else Zero.plain(), scoring if self.reference else per_gpu
        on_host = 0.0 if self.reference else offloaded(self.config, weights, tokens / size)
        return measure(self.config, weights, activations, zero, self.ranks, tokens).high, on_host


def fewest(case: Case, possible: Iterable[int], tree: TokenTree, memory: float, on_host: float) -> int:
    """The first of these numbers of ranks with which this record fits into `memory` bytes of a rank's device, and
    `on_host` of its host. ConfigError with what is missing where none does."""
    training = case.config.training
    tokens = max(training.tokens_per_pack, int(costs([tree], case.layout)[0]))
    peak, held, size = 0.0, 0.0, 1
    for size in possible:
        peak, held = case.needed(tree, tokens, size)
        if peak <= memory and held <= on_host:
            return size
    missing = f"{peak / GIB:.1f} of {memory / GIB:.1f} GiB on each"
    if held > on_host:
        missing = (
            f"{held / GIB:.1f} GiB of the host's memory for each (model.offload_activations), of which each has "
            f"{on_host / GIB:.1f} as its share"
        )
    raise ConfigError(
        f"training.sequence_parallel = auto: a pack of {tokens:,} tokens does not fit; shared by {size} ranks it needs "
        f"up to {missing}. Lower data.max_tokens "
        f"({case.config.data.max_tokens}) or training.tokens_per_pack ({training.tokens_per_pack}), set "
        "model.gradient_checkpointing or, beside it, model.offload_activations and model.mlp_tile, or take more ranks "
        "per node; a number in place of auto is taken as it is. "
        "`dpeer plan` says what fits."
    )
