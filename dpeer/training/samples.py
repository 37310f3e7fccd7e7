"""What the policy says while it trains: greedy replies to a few fixed prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dpeer.data.layout import Layout, plan
from dpeer.data.packing import build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.training.pulse import Pulse
from dpeer.training.world import World

T = TypeVar("T")
LONGEST = 64
"""Tokens of a reply."""
NEXT = 0
"""Stands where the next token will: a response's last token is never an input."""


def spread(records: Sequence[T], count: int) -> list[T]:
    """At most `count` of them, evenly over the split, so that a file sorted by mask shows several."""
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]


@torch.no_grad()
def greedy(
    forward: Callable[..., Tensor],
    trees: Sequence[TokenTree],
    world: World,
    budget: int,
    pulse: Pulse | None = None,
    layout: Layout = "tree",
) -> list[list[int]]:
    """Collective. Tokens of a greedy reply to each record's prompt, up to its end-of-turn token.

    All ranks run the same forwards, without a KV cache, and take rank 0's tokens: with kernels that round differently
    they would part at a tie, and wait for each other for ever.
    """
    pulse = pulse or Pulse()
    ends = {response[-1] for tree in trees for response in tree.responses}
    replies: list[list[int]] = [[] for _ in trees]
    longest = [replace(t, responses=((NEXT,) * (LONGEST + 1),), edges=(), golden=0) for t in trees]
    for items in plan(longest, 1, budget, layout)[0]:
        for _ in range(LONGEST):
            live = [i for i in items if not ends.intersection(replies[i][-1:])]
            if not live:
                break
            begun = [replace(trees[i], responses=((*replies[i], NEXT),), edges=(), golden=0) for i in live]
            pack = build_pack(begun, live).cut(world.team.rank, world.team.size)
            tokens = forward(pack.to(world.device), greedy=True)
            dist.broadcast(tokens, 0)
            for i, token in zip(live, tokens.tolist(), strict=True):
                replies[i].append(token)
            pulse.beat()
    return replies
