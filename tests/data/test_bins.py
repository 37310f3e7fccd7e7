"""Records over ranks and packs: whole, within the budget, and even; the oracle is plain first fit per rank."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeer.data.bins import FULL, MICRO_STEP, length, plan_packs

Plan = list[list[list[int]]]


def first_fit(costs: list[int], ranks: int, budget: int) -> Plan:
    """Longest first to the least loaded rank, then into its first pack with room."""
    plan: Plan = [[] for _ in range(ranks)]
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        loads = [sum(costs[j] for pack in mine for j in pack) for mine in plan]
        packs = plan[loads.index(min(loads))]
        fits = [pack for pack in packs if sum(costs[j] for j in pack) + costs[i] <= budget]
        if fits:
            fits[0].append(i)
        else:
            packs.append([i])
    return plan


def loads(plan: Plan, costs: list[int]) -> list[list[int]]:
    return [[sum(costs[i] for i in items) for items in mine] for mine in plan]


costs = st.lists(st.integers(1, 300), max_size=40)


@settings(max_examples=200, deadline=None)
@given(costs, st.integers(1, 9), st.integers(1, 400))
def test_plan(costs: list[int], ranks: int, budget: int) -> None:
    plan, naive = plan_packs(costs, ranks, budget), first_fit(costs, ranks, budget)
    assert plan == plan_packs(list(costs), ranks, budget)
    assert len(plan) == ranks
    assert sorted(i for packs in plan for items in packs for i in items) == list(range(len(costs)))
    for packs in plan:
        for items in packs:
            assert items and (sum(costs[i] for i in items) <= budget or len(items) == 1)
    lasts = [length(x, costs) + max(map(len, x)) * MICRO_STEP * budget for x in (plan, naive)]
    assert lasts[0] <= lasts[1] or length(plan, costs) <= sum(costs) / ranks / FULL


def test_length_counts_the_largest_pack_of_each_micro_step() -> None:
    assert length([[[0, 1], [2]], [[3]]], [5, 6, 7, 8]) == 11 + 7


def test_packs_are_of_one_size() -> None:
    """Two ranks with 12 records of 100 each and packs of at most 700: first fit gives 700 and 500, now 600 and 600."""
    costs = [100] * 24
    assert loads(plan_packs(costs, 2, 700), costs) == [[600, 600]] * 2
    assert loads(first_fit(costs, 2, 700), costs) == [[700, 500]] * 2


@pytest.mark.parametrize("seed", range(3))
def test_ranks_do_not_wait_where_few_records_fill_a_pack(seed: int) -> None:
    """Two or three to a pack: by first fit some ranks have three where others have two, and these wait."""
    draw = random.Random(seed)
    costs = [draw.randint(2000, 3600) for _ in range(72)]
    plan, naive = plan_packs(costs, 8, 8192), first_fit(costs, 8, 8192)
    assert 8 * length(plan, costs) <= 1.02 * sum(costs) < 1.07 * sum(costs) < 8 * length(naive, costs)
    assert max(map(len, plan)) == max(map(len, naive))


@pytest.mark.parametrize(("ranks", "records"), [(1, 64), (8, 1024)])
def test_full_packs_are_not_split_for_evenness(ranks: int, records: int) -> None:
    """Each micro-step gathers all weights anew: no more of them than first fit has, where little is won by them."""
    draw = random.Random(0)
    costs = [sum(round(n * draw.lognormvariate(0, 0.3)) for n in (1000, *[400] * 5)) for _ in range(records)]
    steps = [max(map(len, plan(costs, ranks, 8192))) for plan in (plan_packs, first_fit)]
    assert steps[0] <= steps[1]


def test_what_is_over_the_budget_stands_alone() -> None:
    plan = plan_packs([900, 10, 10, 10], 1, 100)
    assert sorted(map(sorted, plan[0])) == [[0], [1, 2, 3]]


def test_no_records() -> None:
    assert plan_packs([], 3, 100) == [[], [], []]
