"""Segments of a pack, and where their tokens lie for layers that keep a state: as batches of rows, and as one row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 64
"""Tokens that kernels of recurrences take at once: shorter rows are padded to as many."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Queries [start, start + length) attend causally to themselves and fully to their prompt's tokens."""

    start: int
    length: int
    prompt_start: int
    prompt_length: int  # 0 for a prompt segment


class States(NamedTuple):
    """A pack as batches of prompts, then of responses with any input, each (rows, longest), padded at the right.

    Rows of a batch are of similar length: each is padded to at most twice its tokens, or to CHUNK. `place` [T] is where
    a token lies in the rows of all, one after the other; `record` [R'] the row of the prompt of a row of the responses.
    `segment` [T] is the segment of a token, `bounds` [S, 3] where a segment starts, where its prompt ends, and how long
    its prompt is (0 for that of a prompt itself).
    """

    prompts: tuple[tuple[int, int], ...]
    responses: tuple[tuple[int, int], ...]
    place: Tensor
    record: Tensor
    segment: Tensor
    bounds: Tensor


class Tails(NamedTuple):
    """A pack as one row of segments, each after the last inputs of its prompt, or after zeros where there are none.

    `place` [T + copies] is where tokens and the copies of `source` [copies] go in it; its last place is for copies that
    no prompt has.
    """

    rows: int
    place: Tensor
    source: Tensor


def states_of(segments: Sequence[Segment], device: torch.device) -> States:
    prompts, responses = (_alike(s for s in segments if bool(s.prompt_length) == x) for x in (False, True))
    number = {s.start: i for i, s in enumerate(chain(*prompts))}
    rows = [(s.start, batch[0].length) for batch in (*prompts, *responses) for s in batch]
    ends = accumulate(longest for _, longest in rows)
    first = {start: end - longest for (start, longest), end in zip(rows, ends, strict=True)}
    lengths = torch.tensor([s.length for s in segments])
    given = (
        torch.cat([torch.arange(first[s.start], first[s.start] + s.length) for s in segments]),
        torch.tensor([number[s.prompt_start] for s in chain(*responses)], dtype=torch.int64),
        torch.arange(len(lengths)).repeat_interleave(lengths),
        torch.tensor([(s.start, s.prompt_start + s.prompt_length, s.prompt_length) for s in segments]),
    )
    ours, theirs = (tuple((len(x), x[0].length) for x in batches) for batches in (prompts, responses))
    return States(ours, theirs, *(x.to(device) for x in given))


def _alike(segments: Iterable[Segment]) -> list[list[Segment]]:
    """In batches, the longest first: the shortest of one is at least half its longest, unless all fit in a chunk."""
    batches: list[list[Segment]] = []
    for s in sorted(segments, key=lambda s: -s.length):
        if not batches or batches[-1][0].length > max(2 * s.length, CHUNK):
            batches.append([])
        batches[-1].append(s)
    return batches


def tails_of(states: States, before: int) -> Tails:
    """For a causal convolution over that many inputs before each."""
    device, tokens, segments = states.place.device, len(states.segment), len(states.bounds)
    rows = tokens + segments * before + 1
    start, end, length = (x[:, None] for x in states.bounds.unbind(1))
    back = torch.arange(before, 0, -1, device=device)  # how far before the segment's first input
    own = torch.arange(tokens, device=device) + (states.segment + 1) * before
    own_start = start + (torch.arange(segments, device=device)[:, None] + 1) * before
    has = back <= length
    copies = torch.where(has, own_start - back, rows - 1).flatten()
    return Tails(rows, torch.cat([own, copies]), torch.where(has, end - back, 0).flatten())
