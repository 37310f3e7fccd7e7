"""Ranks that compute a pack together (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv:2309.14509).

Each rank of a team of n has an n-th of the tokens, with all heads: embeddings, norms, MLPs and the output head know
nothing of other tokens. Around attention, which does, all-to-alls turn that into all tokens with an n-th of the heads,
and back. An all-to-all is its own adjoint. Sums per response are added over the team; every rank goes on to compute the
same loss of them, so that its gradient goes back to each rank as it is: what the ranks' gradients of the weights add up
to is then the gradient of one loss, not of n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier, BrokenBarrierError
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

T = TypeVar("T")
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
MEETING_S = 300.0


class Team(Protocol):
    """The ranks with which this one computes packs. Methods are collective."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def swap(self, parts: Tensor) -> Tensor:
        """All-to-all: part i of parts [n, ...] goes to rank i; what arrives, in the order of ranks."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """All-reduce: the sum over ranks."""
        ...


@dataclass(frozen=True)
class Alone:
    """A rank that computes its packs by itself."""

    rank: int = 0
    size: int = 1

    def swap(self, parts: Tensor) -> Tensor:
        return parts

    def total(self, values: Tensor) -> Tensor:
        return values


ALONE = Alone()


@dataclass(frozen=True)
class Paper:
    """A rank of a team that is only counted with: what arrives has a shape and no content."""

    rank: int
    size: int

    def swap(self, parts: Tensor) -> Tensor:
        return torch.empty_like(parts)

    def total(self, values: Tensor) -> Tensor:
        return torch.empty_like(values)


class Threads:
    """One of several threads of this process, for models that are tried."""

    def __init__(self, rank: int, size: int, meeting: Barrier, desk: list[Tensor]) -> None:
        self.rank, self.size, self._meeting, self._desk = rank, size, meeting, desk

    def swap(self, parts: Tensor) -> Tensor:
        return torch.stack([x[self.rank] for x in self._laid_open(parts)])

    def total(self, values: Tensor) -> Tensor:
        return torch.stack(self._laid_open(values)).sum(0)

    def _laid_open(self, mine: Tensor) -> list[Tensor]:
        self._desk[self.rank] = mine
        self._meeting.wait(MEETING_S)
        everyone = list(self._desk)
        self._meeting.wait(MEETING_S)
        return everyone


def side_by_side(size: int, compute: Callable[[Team], T]) -> list[T]:
    """What each of a team of threads computes."""
    meeting, desk = Barrier(size), [torch.empty(0)] * size

    def run(rank: int) -> T:
        try:
            return compute(Threads(rank, size, meeting, desk))
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        pending = [pool.submit(run, rank) for rank in range(size)]
    failures = [e for p in pending if (e := p.exception())]
    if failures:  # the others have only lost one another
        raise next((e for e in failures if not isinstance(e, BrokenBarrierError)), failures[0])
    return [p.result() for p in pending]


class _Swap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, team: Team) -> Tensor:
        ctx.team = team
        return team.swap(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.team.swap(grads[0]), None


class _Total(torch.autograd.Function):
    """The backward pass adds nothing up: all ranks compute the same of the sum, and one of them counts."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, team: Team) -> Tensor:
        return team.total(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


_swapped: Callable[[Tensor, Team], Tensor] = _Swap.apply
total: Callable[[Tensor, Team], Tensor] = _Total.apply


def to_heads(tokens: Tensor, team: Team) -> Tensor:
    """This rank's tokens with all heads [1, H, t, D] to all tokens with this rank's heads [1, H / n, n t, D]."""
    _, heads, length, size = tokens.shape
    n = team.size
    arrived = _swapped(tokens[0].reshape(n, -1, length, size).transpose(1, 2).contiguous(), team)  # [n, t, H / n, D]
    return arrived.view(1, n * length, heads // n, size).transpose(1, 2)


def to_tokens(heads: Tensor, team: Team) -> Tensor:
    """All tokens with this rank's heads [1, n t, H / n, D] to this rank's tokens with all heads [1, t, H, D]."""
    arrived = _swapped(heads[0].reshape(team.size, -1, *heads.shape[2:]), team)  # [n, t, H / n, D]
    return arrived.transpose(0, 1).flatten(1, 2)[None]


def copies(shared: int, size: int) -> int:
    """How often each of `shared` key heads must be there for a team of `size` to share them out."""
    return size // math.gcd(shared, size)


def attend_together(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, tokens: int, team: Team, attend: Attend
) -> Tensor:
    """Attention [1, t, H, D] of this rank's queries [1, H, t, D], keys and values [1, H_kv, t, D] and sinks [H], where
    `attend` computes that [1, T, H', D] of all T tokens of a pack with some of the heads [1, H', T, D].

    Key heads that are fewer than ranks are copied: query head h reads key head h // (H / H_kv), and copies lie side by
    side.
    """
    heads, n = query.shape[1], team.size
    if heads % n:
        raise ValueError(f"attention with {heads} heads cannot be shared by {n} ranks: {n} does not divide {heads}")
    if (times := copies(key.shape[1], n)) > 1:
        key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
    q, k, v = (to_heads(x, team)[:, :, :tokens] for x in (query, key, value))
    own = None if sinks is None else sinks.view(n, -1)[team.rank]
    out, missing = attend(q, k, v, own), n * query.shape[2] - tokens
    return to_tokens(pad(out, (0, 0, 0, 0, 0, missing)) if missing else out, team)
