"""What a model costs, from its config alone: counted on the meta device, where tensors have shapes but no memory.

Weights are counted in the real module tree, activations by running the real forward and backward pass of a pack
through models of a few layers while every tensor's birth and death is followed: what a further layer of a kind adds is
exactly linear.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AttentionInterface,
    PretrainedConfig,
    PreTrainedModel,
    masking_utils,
)
from transformers.integrations import moe

from dpeer import config
from dpeer.data.layout import Layout, cost
from dpeer.data.packing import Lengths, Pack, build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.estimate.few_layers import FewLayers, without_adapters
from dpeer.model.cascade import cascade
from dpeer.model.families import (
    attending_layers,
    backbone,
    causal_lm,
    family_of,
    idle_parameters,
    own_attention,
    size_of,
    state_size,
)
from dpeer.model.lm import add_lora, load_parts
from dpeer.model.logprob import chunk_rows
from dpeer.model.miniature import beneath, by_kind
from dpeer.model.team import Paper, Team, attend_together
from dpeer.model.tiles import dense_mlps
from dpeer.model.tree_attention import IMPLEMENTATIONS
from dpeer.model.tree_lm import TreeLM

NAME = "tree_footprint"


@dataclass(frozen=True)
class Weights:
    """Parameter counts. `tensors` maps (elements of one tensor, is it trained) to how many there are."""

    tensors: dict[tuple[int, bool], int]
    layers: int
    layer: int
    """Parameters of the largest decoder layer."""
    largest_module: int
    """Most parameters that one module holds by itself: what ZeRO-3 gathers at once at least."""
    embedding: int
    head: int
    """Parameters of the output head; with `tied` it is the embedding."""
    tied: bool
    vocabulary: int
    attention_width: int
    """Heads x head size: width of the queries."""
    idle: int = 0
    """Parameters of experts that a token does not meet."""
    attending: int = 0
    """Layers whose tokens attend to others."""
    state: int = 0
    """Elements of the recurrent states of all layers."""
    heads: int = 1
    key_heads: int = 1
    """Heads of keys and values, shared by those of queries."""
    width: int = 0
    """Of the hidden states."""

    @property
    def total(self) -> int:
        return sum(size * count for (size, _), count in self.tensors.items())

    @property
    def trained(self) -> int:
        return sum(size * count for (size, trained), count in self.tensors.items() if trained)

    def shard(self, ranks: int, *, trained_only: bool = False) -> int:
        """Elements per rank; ZeRO-3 pads every tensor to a multiple of the ranks."""
        counts = self.tensors.items()
        return sum(n * math.ceil(size / ranks) for (size, trained), n in counts if trained or not trained_only)

    def persistent(self, threshold: int) -> int:
        """Elements of tensors that ZeRO-3 keeps gathered because they are small."""
        return sum(size * count for (size, _), count in self.tensors.items() if size <= threshold)


@dataclass(frozen=True)
class Activations:
    """Bytes of one rank beside weights and their gradients' shards while one pack is computed; affine in the pack's
    tokens, also where ranks share it.

    Each pair is (bytes per token, fixed bytes). `layer`: what the forward pass keeps per decoder layer, as a mean
    over layers of all kinds. The others are the most that is alive beyond layers x `layer`: until the head's backward
    pass is done, in the layers' backward pass, in the embedding's (where the layers' share is gone already), and, apart
    from the rest of a layer's, in that of an MLP in tiles, most of which is fixed.
    """

    layer: tuple[float, float]
    head: tuple[float, float]
    layers: tuple[float, float]
    embedding: tuple[float, float]
    mlp: tuple[float, float] = (0.0, 0.0)


def count_weights(spec: config.Model, shape: PretrainedConfig) -> Weights:
    """Count the parameters of a recipe's policy. `shape` is the model's config; no weights are read."""
    model = without_adapters(spec, shape, range(shape.num_hidden_layers), _attention_of(spec, shape, "tree"))
    if spec.lora:
        part = load_parts(spec.path, spec.revision) if spec.start else None
        with torch.device("meta"):
            model = add_lora(model, spec.lora, 0, part)
    causal, family = causal_lm(model), family_of(shape)
    embedding, head = causal.get_input_embeddings().weight, causal.get_output_embeddings().weight
    layers = family.decoder_layers(model)
    return Weights(
        tensors=dict(Counter((p.numel(), p.requires_grad) for p in model.parameters())),
        layers=len(layers),
        layer=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
        largest_module=max(sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()),
        embedding=embedding.numel(),
        head=head.numel(),
        tied=embedding is head,
        vocabulary=head.shape[0],
        idle=idle_parameters(shape, (p.shape for p in model.parameters())),
        attention_width=family.query_width(shape),
        attending=attending_layers(shape),
        state=state_size(shape),
        heads=shape.num_attention_heads,
        key_heads=size_of(shape, "num_key_value_heads") or shape.num_attention_heads,
        width=shape.hidden_size,
    )


def count_activations(
    spec: config.Model,
    shape: PretrainedConfig,
    prompt: int,
    responses: Sequence[int],
    layout: Layout = "tree",
    team: int = 1,
) -> Activations:
    """Follow packs of records with that many prompt and response tokens through models of a few layers.

    team: ranks that share a pack. Theirs are of one record, so many times longer, whose responses and predictions are
    at the end of it: the last rank needs most.
    """
    chunk = chunk_rows(spec.head_chunk, torch.device("meta"))
    # Several chunks of the head and tiles of the MLPs, whose sizes are then constants.
    tiles = 2 * (spec.mlp_tile or 0) * team / cost(_tree(prompt, responses, 1), layout)
    times = math.ceil(max(2 * chunk / sum(responses), tiles))
    counts = (times, 2 * times)
    trees = [[_tree(prompt, responses, 1)] * n if team == 1 else [_tree(prompt, responses, n)] for n in counts]
    packs = [build_pack(records, range(len(records))).cut(team - 1, team) for records in trees]
    few = FewLayers.of(spec, shape, _attention_of(spec, shape, layout))
    base = few.base()
    short, long = (_of_pack(few, base, layout, pack, team) for pack in packs)
    fewer, more = (sum(cost(tree, layout) for tree in records) for records in trees)
    slopes = {k: (long[k] - short[k]) / (more - fewer) for k in short}
    return Activations(**{k: (slope, short[k] - slope * fewer) for k, slope in slopes.items()})


def _tree(prompt: int, responses: Sequence[int], times: int) -> TokenTree:
    return TokenTree(0, (0,) * prompt * times, tuple((0,) * n * times for n in responses), (), 0, ())


def _attention_of(spec: config.Model, shape: PretrainedConfig, layout: Layout) -> str | None:
    return f"{NAME}_{spec.attention}" if layout == "tree" else own_attention(shape)


def _of_pack(few: FewLayers, base: int, layout: Layout, pack: Pack, team: int) -> dict[str, float]:
    """Bytes of `Activations` for one pack. A kind's share is what a second layer of it adds: the first may bring what
    all of them use, as a mask."""
    one = _follow(few.model([base]), few, layout, pack, team)
    models, kept, outside = [one], 0.0, float(one["saved"])
    for layers in by_kind(few.shape):
        below = [] if layers[0] == base else beneath(few.shape, layers[0], base)
        first = _follow(few.model([*below, layers[0]]), few, layout, pack, team) if below else one
        second = _follow(few.model([*below, layers[0], layers[0]]), few, layout, pack, team)
        added = second["saved"] - first["saved"]
        kept += len(layers) * added
        if not below:
            outside -= added
        elif below == [base]:
            outside += first["saved"] - one["saved"] - added
        models += [first, second]
    return {
        "layer": kept / few.shape.num_hidden_layers,
        "head": one["head"] - one["saved"] + outside,
        "layers": max(m["layers"] - m["saved"] for m in models) + outside,
        "embedding": one["embedding"],
        "mlp": max(m["mlp"] - m["saved"] + outside if "mlp" in m else 0.0 for m in models),
    }


def _follow(model: PreTrainedModel, few: FewLayers, layout: Layout, pack: Pack, team: int) -> dict[str, int]:
    """Bytes kept by the forward pass (`saved`) and the peaks of the three phases of the backward pass."""
    lm = TreeLM(model.train(), few.spec.head_chunk, layout)
    lm.team = Paper(team - 1, team)
    pack = pack.to("meta")
    indices = [x for x in tree_leaves((pack.varlen(), pack.parts(), pack.states())) if isinstance(x, Tensor)]
    parameter: Any
    for parameter in lm.parameters():  # as ZeRO-3 does: reduced and released as soon as it is there
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_release)
    follower: Any
    with _Follower([*lm.parameters(), *lm.buffers(), *indices]) as follower:
        backbone(model).register_forward_hook(lambda _, __, out: follower.mark(out.last_hidden_state, "head"))
        layers, tiled = family_of(few.shape).decoder_layers(model), dense_mlps(model) if few.spec.mlp_tile else []
        for layer in layers if tiled else layers[:1]:
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: follower.mark(args[0] if args else kwargs["hidden_states"], "layers"),
                with_kwargs=True,
            )
        for mlp in tiled:
            mlp.register_forward_pre_hook(lambda _, args: follower.begin(args[0], "layers", "mlp"))
        with _unasked():
            logps = lm(pack)
            saved: int = follower.live
            torch.autograd.backward(logps.sum())
        follower.close("embedding")
    peaks: dict[str, int] = follower.peaks
    if "layers" not in peaks:  # a frozen embedding has no backward pass
        peaks["layers"], peaks["embedding"] = peaks["embedding"], 0
    return {"saved": saved} | peaks


class _Grouped(torch.autograd.Function):
    """Only allocates, what a product of tokens [S, I] with their experts' weights [E, I, O] does."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        return tokens.new_empty(len(tokens), weight.shape[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        return tuple(torch.empty_like(x) if asked else None for x, asked in needed)


@contextmanager
def _unasked() -> Iterator[None]:
    """transformers asks whether positions restart, PEFT turns autocast off, torch's grouped product takes bf16 only:
    nothing of it can be on the meta device."""
    packed, autocast, grouped = masking_utils.find_packed_sequence_indices, torch.autocast, moe._grouped_mm
    product: Callable[..., Tensor] = _Grouped.apply
    moe._grouped_mm = lambda input, weight, offs: product(input.to(weight.dtype), weight)
    masking_utils.find_packed_sequence_indices = lambda *_: None
    torch.autocast = lambda device_type, *a, **k: (  # type: ignore[misc, assignment]
        nullcontext() if device_type == "meta" else autocast(device_type, *a, **k)
    )
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices, torch.autocast = packed, autocast  # type: ignore[misc]
        moe._grouped_mm = grouped


def _release(parameter: Tensor) -> None:
    parameter.grad = None


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the storages that are alive, given ones apart, and keeps the peak of each phase.

    Uses that meta tensors have storages with sizes. A question for a tensor's value is an error here: a GPU's host
    would wait for it.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self._peak = 0
        self.peaks: dict[str, int] = {}
        self._sizes = {t.untyped_storage()._cdata: 0 for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._sizes:
                    self._sizes[key] = storage.nbytes()
                    self.live += storage.nbytes()
                    self._peak = max(self._peak, self.live)
                    weakref.finalize(storage, self._freed, key)
        return out

    def _freed(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def mark(self, tensor: Any, phase: str) -> None:
        """The phase ends when the gradient of this tensor is there."""
        if tensor.requires_grad:
            tensor.register_hook(lambda _: self.close(phase))

    def begin(self, tensor: Any, before: str, phase: str) -> None:
        """A phase ends here, and another one when the gradient of this tensor is there."""
        self.close(before)
        self.mark(tensor, phase)

    def close(self, phase: str) -> None:
        self.peaks[phase] = max(self._peak, self.peaks.get(phase, 0))  # recomputing a layer may close a phase twice
        self._peak = self.live


class _Flash:
    """A `cascade.Kernel` that only allocates, what FlashAttention 2's variable-length kernel in torch does."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)

    def backward(
        self,
        d_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        lengths: Lengths,
        *_: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        alive = backward_buffers(query, key, len(lengths.cu_q) - 1)
        gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del alive
        return gradients


def backward_buffers(query: Tensor, key: Tensor, segments: int) -> list[Tensor]:
    """What the kernel's backward pass needs beside its inputs and gradients: queries [T, H, D], keys [K, H_kv, D].

    The gradient of the queries is summed in fp32, with room for a block of 128 rows per segment; with grouped heads the
    gradients of keys and values are there once per query head.
    """
    tokens, heads, size = query.shape
    rows, rounded = tokens + 128 * segments, math.ceil(size / 32) * 32 if size <= 192 else 256
    summed = query.new_empty(rows, heads, rounded, dtype=torch.float32)
    per_row = query.new_empty(heads, rows, dtype=torch.float32)
    grouped = heads != key.shape[1]
    return [summed, per_row, *(key.new_empty(len(key), heads, size) for _ in range(2 * grouped))]


class _Gathered(torch.autograd.Function):
    """Keeps queries, gathered keys and values, output, logsumexp."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: Lengths) -> Tensor:
        out, lse = _Flash().forward(query, key, value, lengths)
        ctx.lengths = lengths
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_Flash().backward(grads[0], *ctx.saved_tensors, ctx.lengths), None


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, tree: Pack, gather: bool,
    sliding_window: int | None = None, team: Team | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    def attend(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        if not gather and sliding_window is None:
            return cascade(q, k, v, tree, None, _Flash())[None]
        gathered, cu_q, cu_k, max_q, max_k = tree.varlen()
        apply: Callable[..., Tensor] = _Gathered.apply
        return apply(q.contiguous(), k[gathered], v[gathered], Lengths(cu_q, cu_k, max_q, max_k))[None]

    if team is None:
        return attend(query, key, value, None), None
    return attend_together(query, key, value, None, tree.tokens, team, attend), None


for kind in IMPLEMENTATIONS:
    AttentionInterface.register(f"{NAME}_{kind}", partial(_attention, gather=kind == "gather"))
