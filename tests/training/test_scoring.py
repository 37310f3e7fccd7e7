"""Scoring by several ranks: the shares cover every record once, and all ranks run the same number of forwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpeer.data.packing import Pack
from dpeer.data.tokenize import TokenTree
from dpeer.model.team import Paper
from dpeer.training.samples import spread
from dpeer.training.scoring import local_packs, merge, score
from dpeer.training.world import World


def trees(counts: Sequence[int]) -> list[TokenTree]:
    """Record i with counts[i] responses, whose tokens say which record and response they are."""
    return [
        TokenTree(i, (1000 + i,) * (1 + i % 4), tuple((100 * i + k,) * (1 + k) for k in range(n)), (), 0, ())
        for i, n in enumerate(counts)
    ]


def by_target(pack: Pack) -> Tensor:
    """A model whose log-prob of a response is the sum of its tokens."""
    return torch.zeros(len(pack.response_tokens), dtype=torch.float64).index_add(
        0, pack.row_response, pack.targets.double()
    )


def worlds(size: int) -> list[World]:
    return [World(r, size, torch.device("cpu")) for r in range(size)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), max_size=12), st.integers(1, 5), st.integers(1, 60))
def test_shares_cover_every_record_once(counts: list[int], ranks: int, budget: int) -> None:
    records = trees(counts)
    shares = [score(by_target, records, here, budget) for here in worlds(ranks)]
    expected = [[float(sum(r)) for r in t.responses] for t in records]
    assert merge(shares, len(records)) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), max_size=12), st.integers(1, 5), st.integers(1, 60))
def test_every_rank_runs_as_many_forwards(counts: list[int], ranks: int, budget: int) -> None:
    packs = [list(local_packs(trees(counts), here, budget)) for here in worlds(ranks)]
    assert len({len(p) for p in packs}) == 1 and len(packs[0]) >= 1
    assert sum(len(p.samples) for mine in packs for p in mine) == len(counts)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), max_size=12), st.sampled_from([(2, 2), (4, 2), (4, 4), (6, 3)]), st.integers(1, 60))
def test_ranks_that_share_packs_count_them_once(counts: list[int], sizes: tuple[int, int], budget: int) -> None:
    """All ranks run as many forwards, those of a team the same packs; one of them says what came out, or all do."""
    (ranks, team), records = sizes, trees(counts)
    here = [replace(w, team=Paper(w.rank % team, team)) for w in worlds(ranks)]
    packs = [list(local_packs(records, w, budget)) for w in here]
    assert len({len(mine) for mine in packs}) == 1
    assert all([p.samples for p in packs[w.rank]] == [p.samples for p in packs[w.place * team]] for w in here)
    expected = [[float(sum(r)) for r in t.responses] for t in records]
    assert merge([score(by_target, records, w, budget) for w in here], len(records)) == expected
    told = [score(by_target, records, w, budget, everyone=True) for w in here]
    assert all(told[w.rank] == told[w.place * team] for w in here) and merge(told[::team], len(records)) == expected


def test_ranks_without_work_run_dummies() -> None:
    busy, idle = (local_packs(trees([2]), here, 100) for here in worlds(2))
    assert [p.samples for p in busy] == [(0,)] and [p.samples for p in idle] == [()]
    assert score(by_target, trees([2]), worlds(2)[1], 100) == {}


def test_budget_of_one_gives_every_record_its_own_pack() -> None:
    (here,) = worlds(1)
    packs = local_packs(trees([2, 3, 1]), here, 1)
    assert sorted(p.samples for p in packs) == [(0,), (1,), (2,)]


def test_no_gradients_are_kept() -> None:
    weight = torch.ones((), requires_grad=True)
    seen = []

    def forward(pack: Pack) -> Tensor:
        out = by_target(pack) * weight
        seen.append(out.requires_grad)
        return out

    score(forward, trees([1, 2]), worlds(1)[0], 10)
    assert seen and not any(seen)


def test_sampled_records_are_spread_over_the_split() -> None:
    records = trees([1] * 10)
    assert [t.index for t in spread(records, 3)] == [0, 3, 6]
    assert [t.index for t in spread(records[:2], 3)] == [0, 1]
