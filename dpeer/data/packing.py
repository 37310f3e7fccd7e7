"""Packs: micro-batches of token trees, balanced over ranks; the one representation from loader to kernel.

A record is a tree: its prompt once, each response once. A response's last token is only ever a target, so it is left
out of the input: a record costs P + sum(R - 1) forward tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from dpeer.data.slices import Slice, slice_of
from dpeer.data.states import Segment, States, Tails, states_of, tails_of
from dpeer.data.token_store import StoredTrees
from dpeer.data.tokenize import TokenTree

Varlen = tuple[Tensor, Tensor, Tensor, int, int]
Counts = npt.NDArray[np.int64]
Weights = Sequence[float] | npt.NDArray[np.float64] | None


class Lengths(NamedTuple):
    """Sequences of a variable-length kernel: where they begin [S+1] in queries and keys (int32), the longest ones."""

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int


class Parts(NamedTuple):
    """A pack as two calls of a kernel: every segment to itself, and a record's responses to their prompt.

    `responses` [R'] are the input positions of all responses, `prompts` [P'] those of the prompts of records whose
    responses have any; `crossing` is None where no record has.
    """

    own: Lengths
    responses: Tensor
    prompts: Tensor
    crossing: Lengths | None


@dataclass(frozen=True)
class Pack:
    """One micro-batch. T input tokens, N prediction rows, R responses, E edges, all records whole.

    `rows[n]` is the position whose hidden state predicts `targets[n]`, a token of response `row_response[n]`.
    Edge e prefers response `better[e]` to `worse[e]`; it belongs to dimension `dims[e]` and to sample `edge_sample[e]`.
    `samples` are positions in the global batch; responses are numbered sample by sample.
    """

    input_ids: Tensor  # [1, T] int64
    position_ids: Tensor  # [1, T] int64, restarting at each prompt
    segments: tuple[Segment, ...]
    rows: Tensor  # [N] int64
    targets: Tensor  # [N] int64
    row_response: Tensor  # [N] int64
    response_tokens: Tensor  # [R] int64
    golden_at: Tensor  # [records] int64: the one golden response of each sample; by a mask a GPU's host would wait
    rejected_at: Tensor  # [R - records] int64
    rejected_record: Tensor  # [R - records] int64: number of its record in this pack
    dims: Tensor  # [E] int64
    better: Tensor  # [E] int64
    worse: Tensor  # [E] int64
    edge_sample: Tensor  # [E] int64
    samples: tuple[int, ...]
    response_counts: tuple[int, ...]
    golden_tokens: int
    part: Slice | None = None
    """What this rank computes of it, where several work together on a pack."""
    _masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict, repr=False)
    _varlen: list[Varlen] = field(default_factory=list, repr=False)  # filled once, read by every layer
    _parts: list[Parts] = field(default_factory=list, repr=False)
    _states: list[States] = field(default_factory=list, repr=False)
    _tails: dict[int, Tails] = field(default_factory=dict, repr=False)

    @property
    def tokens(self) -> int:
        return int(self.input_ids.shape[1])

    @property
    def longest(self) -> int:
        """Input tokens of the longest prompt + response."""
        return max(s.prompt_length + s.length for s in self.segments)

    def cut(self, rank: int, size: int) -> Pack:
        """As rank `rank` of `size` computes it."""
        if size == 1:
            return self
        fields = self.input_ids, self.position_ids, self.rows, self.targets, self.row_response, self.response_tokens
        return replace(self, part=slice_of(*fields, rank, size))

    def to(self, device: torch.device | str) -> Pack:
        """On another device, with the indices of its kernels: one transfer, from pinned memory to a GPU."""
        if torch.device(device).type == "cpu":
            return self
        fields = {k: v for k, v in self.__dict__.items() if not k.startswith("_")}
        moved, varlen, parts, states = _transfer((fields, self.varlen(), self.parts(), self.states()), device)
        return Pack(**moved, _varlen=[varlen], _parts=[parts], _states=[states])

    def mask(self, queries: int, keys: int, window: int | None) -> Tensor:
        """Bottom-right aligned causal mask [queries, keys], True where attention is allowed."""
        key = (queries, keys, window)
        if key not in self._masks:
            device = self.input_ids.device
            distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
            allowed = distance >= 0
            self._masks[key] = allowed if window is None else allowed & (distance < window)
        return self._masks[key]

    def varlen(self) -> Varlen:
        """(kv_index [sum K], cu_q [S+1], cu_k [S+1], longest query, longest key) for a variable-length kernel."""
        if not self._varlen:
            self._varlen.append(self._build_varlen())
        return self._varlen[0]

    def _build_varlen(self) -> Varlen:
        device = self.input_ids.device
        pieces, queries, keys = [], [0], [0]
        for s in self.segments:
            pieces += [
                torch.arange(s.prompt_start, s.prompt_start + s.prompt_length),
                torch.arange(s.start, s.start + s.length),
            ]
            queries.append(s.length)
            keys.append(s.prompt_length + s.length)
        cu_q, cu_k = (torch.tensor(x).cumsum(0).to(device, torch.int32) for x in (queries, keys))
        return torch.cat(pieces).to(device), cu_q, cu_k, max(queries), max(keys)

    def parts(self) -> Parts:
        if not self._parts:
            self._parts.append(self._build_parts())
        return self._parts[0]

    def _build_parts(self) -> Parts:
        device = self.input_ids.device
        of_prompt: dict[tuple[int, int], list[Segment]] = {}  # responses of a record lie side by side
        for s in self.segments:
            if s.prompt_length:
                of_prompt.setdefault((s.prompt_start, s.prompt_length), []).append(s)
        own = _lengths([s.length for s in self.segments], None, device)
        after = [torch.arange(s.start, s.start + s.length) for mine in of_prompt.values() for s in mine]
        before = [torch.arange(start, start + length) for start, length in of_prompt]
        responses, prompts = (torch.cat([torch.arange(0), *x]).to(device) for x in (after, before))
        queries, keys = [sum(s.length for s in mine) for mine in of_prompt.values()], [n for _, n in of_prompt]
        return Parts(own, responses, prompts, _lengths(queries, keys, device) if keys else None)

    def states(self) -> States:
        if not self._states:
            self._states.append(states_of(self.segments, self.input_ids.device))
        return self._states[0]

    def tails(self, width: int) -> Tails:
        """For a causal convolution over `width` inputs. Its indices are found on the pack's device."""
        if width not in self._tails:
            self._tails[width] = tails_of(self.states(), width - 1)
        return self._tails[width]


def _transfer(tree: Any, device: torch.device | str) -> Any:
    """A nested structure with its tensors of integers and truth values on the device, as pieces of one buffer."""
    leaves, structure = tree_flatten(tree)
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    ends = accumulate(x.numel() for x in tensors)
    flat = torch.cat([x.reshape(-1).long() for x in tensors])
    flat = flat.pin_memory() if torch.device(device).type == "cuda" else flat
    buffer = flat.to(device, non_blocking=True)
    pieces = (buffer[end - x.numel() : end] for x, end in zip(tensors, ends, strict=True))
    moved = [next(pieces).view(x.shape).to(x.dtype) if isinstance(x, Tensor) else x for x in leaves]
    return tree_unflatten(moved, structure)


def _lengths(queries: Sequence[int], keys: Sequence[int] | None, device: torch.device) -> Lengths:
    """`keys` None: the same as the queries. A longest query of 1 would make FlashAttention 2 swap heads and tokens."""
    cu_q, cu_k = (torch.tensor([0, *x]).cumsum(0).to(device, torch.int32) for x in (queries, keys or queries))
    return Lengths(cu_q, cu_k, max(2, *queries), max(keys or queries))


def forward_tokens(tree: TokenTree) -> int:
    """Input tokens of one record: P + sum(R - 1)."""
    return len(tree.prompt) + sum(len(r) - 1 for r in tree.responses)


def all_forward_tokens(trees: Sequence[TokenTree]) -> Counts:
    """[records]; of stored records from arrays, without reading their tokens."""
    if isinstance(trees, StoredTrees):
        return trees.column("prompt") + trees.column("response_tokens") - all_responses(trees)
    return np.array([forward_tokens(tree) for tree in trees], dtype=np.int64)


def all_responses(trees: Sequence[TokenTree]) -> Counts:
    """[records]: how many responses each has."""
    if isinstance(trees, StoredTrees):
        return trees.column("responses")
    return np.array([len(tree.responses) for tree in trees], dtype=np.int64)


def all_longest(trees: Sequence[TokenTree]) -> Counts:
    """[records]: tokens of prompt + longest response."""
    if isinstance(trees, StoredTrees):
        return trees.column("longest")
    return np.array([tree.longest for tree in trees], dtype=np.int64)


def build_pack(trees: Sequence[TokenTree], samples: Sequence[int]) -> Pack:
    """Concatenate records into one pack; `samples[i]` is the place of `trees[i]` in the global batch."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    rows: list[int] = []
    targets: list[int] = []
    row_response: list[int] = []
    lengths: list[int] = []
    golden: list[bool] = []
    edges: list[tuple[int, int, int, int]] = []
    for tree, sample in zip(trees, samples, strict=True):
        prompt_start, first_response = len(ids), len(lengths)
        ids += tree.prompt
        positions += range(len(tree.prompt))
        segments.append(Segment(prompt_start, len(tree.prompt), prompt_start, 0))
        last_of_prompt = len(ids) - 1
        for k, response in enumerate(tree.responses):
            start, inputs = len(ids), response[:-1]
            ids += inputs
            positions += range(len(tree.prompt), len(tree.prompt) + len(inputs))
            if inputs:
                segments.append(Segment(start, len(inputs), prompt_start, len(tree.prompt)))
            rows += [last_of_prompt, *range(start, start + len(inputs))]
            targets += response
            row_response += [len(lengths)] * len(response)
            lengths.append(len(response))
            golden.append(k == tree.golden)
        edges += [(d, first_response + i, first_response + j, sample) for d, i, j in tree.edges]
    is_golden = torch.tensor(golden)
    record = torch.arange(len(trees)).repeat_interleave(torch.tensor([len(t.responses) for t in trees]))
    edge_columns = torch.tensor(edges, dtype=torch.int64).reshape(-1, 4).T.contiguous()
    return Pack(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        segments=tuple(segments),
        rows=torch.tensor(rows),
        targets=torch.tensor(targets),
        row_response=torch.tensor(row_response),
        response_tokens=torch.tensor(lengths),
        golden_at=is_golden.nonzero()[:, 0],
        rejected_at=(~is_golden).nonzero()[:, 0],
        rejected_record=record[~is_golden],
        dims=edge_columns[0],
        better=edge_columns[1],
        worse=edge_columns[2],
        edge_sample=edge_columns[3],
        samples=tuple(samples),
        response_counts=tuple(len(t.responses) for t in trees),
        golden_tokens=sum(len(t.responses[t.golden]) for t in trees),
    )


def batch_indices(cursor: int, size: int, records: int, seed: int, weights: Weights = None) -> list[int]:
    """Records of the global batch that starts at sample number `cursor`: a function of seed and cursor only.

    Every epoch is its own permutation; a batch may span two. With weights [records] an epoch has as many draws, and
    each record the share that its weight is of all: the whole part of it in every epoch, the rest by chance.
    """
    return [int(_epoch_order(records, seed, s // records, weights)[s % records]) for s in range(cursor, cursor + size)]


_ORDERS: dict[tuple[int, int, int, int], tuple[Counts, Weights]] = {}
"""With the weights, so that no other ones get their id."""


def _epoch_order(records: int, seed: int, epoch: int, weights: Weights) -> Counts:
    key = (records, seed, epoch, id(weights))
    if key not in _ORDERS:
        if len(_ORDERS) > 3:
            _ORDERS.clear()
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(records, generator=generator)
        if weights is not None:
            order = _drawn(order, torch.tensor(weights, dtype=torch.float64), generator)
        _ORDERS[key] = order.numpy(), weights
    return _ORDERS[key][0]


def _drawn(order: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """As many draws as records by systematic sampling along `order`, shuffled: each record the expected number of
    times, rounded up or down."""
    shares = (weights / weights.max())[order].cumsum(0)
    ends = shares * (len(order) / shares[-1])
    ticks = torch.arange(len(order), dtype=torch.float64) + torch.rand(1, dtype=torch.float64, generator=generator)
    drawn = order[torch.searchsorted(ends, ticks, right=True).clamp(max=len(order) - 1)]
    return drawn[torch.randperm(len(order), generator=generator)]


def dummy_pack() -> Pack:
    """The smallest pack that runs every submodule: prompt of one token, response of two, no edges, no samples."""
    tree = TokenTree(index=-1, prompt=(0,), responses=((0, 0),), edges=(), golden=0, mask=())
    pack = build_pack([tree], [0])
    return Pack(**{**pack.__dict__, "samples": (), "response_counts": ()})


def split_by_sample(values: Sequence[float], packs_counts: Sequence[int]) -> Iterator[list[float]]:
    """Cut a flat list of per-response values into one list per sample."""
    start = 0
    for count in packs_counts:
        yield list(values[start : start + count])
        start += count
