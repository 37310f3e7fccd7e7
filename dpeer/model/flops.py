"""Arithmetic of a model over response trees: counts of weights and lengths in, floating-point operations out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dpeer.config import Model
from dpeer.data.layout import Layout
from dpeer.data.tokenize import TokenTree


@dataclass(frozen=True)
class Lengths:
    """One record in tokens: prompt, responses, and its preference edges (better, worse)."""

    prompt: int
    responses: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    layout: Layout = "tree"

    @classmethod
    def of(cls, tree: TokenTree, layout: Layout = "tree") -> Lengths:
        edges = tuple((i, j) for _, i, j in tree.edges)
        return cls(len(tree.prompt), tuple(map(len, tree.responses)), edges, layout)

    @property
    def tokens(self) -> int:
        """Forward tokens. Of a tree: the prompt once, each response once less its last token."""
        if self.layout == "sequences":
            return len(self.responses) * (self.prompt + max(self.responses) - 1)
        return self.prompt + sum(r - 1 for r in self.responses)

    @property
    def pairwise(self) -> int:
        """Forward tokens of plain DPO: two sequences per edge, without padding."""
        return sum(2 * self.prompt + self.responses[i] + self.responses[j] for i, j in self.edges)

    @property
    def attended(self) -> float:
        """Pairs of query and key: causal within a segment, all of the prompt for a response."""
        if self.layout == "sequences":
            return len(self.responses) * (self.prompt + max(self.responses)) ** 2 / 2
        return self.prompt**2 / 2 + sum(r * self.prompt + r**2 / 2 for r in self.responses)


def typical(records: Sequence[Lengths]) -> tuple[int, tuple[int, ...]]:
    """(prompt, responses) of a record of mean lengths with the most responses that occur: most gathered keys."""
    most = max(len(r.responses) for r in records)
    responses = [n for r in records for n in r.responses]
    mean = max(2, round(sum(responses) / len(responses)))
    return max(1, round(sum(r.prompt for r in records) / len(records))), (mean,) * most


class Counts(Protocol):
    """Parameter counts of a model, as in `estimate.footprint.Weights`; `attention_width`: heads x head size."""

    @property
    def total(self) -> int: ...
    @property
    def idle(self) -> int:
        """Parameters of experts that a token does not meet."""
        ...

    @property
    def layers(self) -> int: ...
    @property
    def embedding(self) -> int: ...
    @property
    def head(self) -> int: ...
    @property
    def tied(self) -> bool: ...
    @property
    def attention_width(self) -> int: ...
    @property
    def attending(self) -> int:
        """Layers whose tokens attend to others."""
        ...

    @property
    def state(self) -> int:
        """Elements of the recurrent states of all layers."""
        ...


def forward_flops(weights: Counts, records: Sequence[Lengths]) -> tuple[float, float]:
    """FLOPs of one forward pass over records as trees: (decoder layers, head). Only response rows meet the head."""
    blocks = weights.total - weights.idle - weights.embedding - (0 if weights.tied else weights.head)
    tokens, attended = sum(r.tokens for r in records), sum(r.attended for r in records)
    rows = sum(sum(r.responses) for r in records)
    recurrent = 3 * 2 * weights.state * tokens  # what a key recalls, what is written for it, what a query reads
    attention = 4 * weights.attending * weights.attention_width * attended
    return 2 * blocks * tokens + attention + recurrent, 2 * weights.head * rows


def model_flops(model: Model, weights: Counts, records: Sequence[Lengths]) -> float:
    """FLOPs of forward and backward that no implementation can avoid: nothing is computed twice."""
    passes = 2 if model.lora else 3  # frozen weights need no gradient of their own
    return passes * sum(forward_flops(weights, records))


def training_flops(model: Model, weights: Counts, records: Sequence[Lengths]) -> float:
    """FLOPs of forward and backward as they are computed, recomputation included."""
    blocks, head = forward_flops(weights, records)
    recomputed_head = 0 if model.lora else head  # a frozen head's gradient is found in the forward pass
    return model_flops(model, weights, records) + model.gradient_checkpointing * blocks + recomputed_head
