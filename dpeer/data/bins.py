"""Which record goes to which rank and pack: items of a known cost into bins, evenly. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapreplace
from itertools import zip_longest

Bins = list[list[int]]
FULL = 0.98
"""Share of the time of a step that ranks compute, from which no other plan is looked for."""
MICRO_STEP = 1 / 16
"""What a micro-step costs beside its tokens, gathering of weights above all, as a share of a full pack: assumed."""


def plan_packs(costs: Sequence[int], ranks: int, budget: int) -> list[Bins]:
    """Assign items to [rank][pack], each pack within the token budget, so that ranks wait little for each other.

    All ranks run a pack in each micro-step, so that a step lasts as long as its `length`, and `MICRO_STEP` for each.
    The plan is the first that fills its time to `FULL` in no more micro-steps than full packs need, else the shortest,
    of: bins of one load, as few as fit the budget; full packs, sorted; and full packs of equally loaded ranks.
    Deterministic in its arguments. An item over the budget gets a pack of its own. Ranks may end with different numbers
    of packs, also none: the step pads with dummies.
    """
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    packs = first_fit(order, costs, budget)
    most = max(1, -(-len(packs) // ranks))
    plans: list[tuple[float, int, list[Bins]]] = []
    for plan in _plans(order, packs, most, costs, ranks, budget):
        lasts, steps = length(plan, costs), max(map(len, plan))
        if FULL * lasts * ranks <= sum(costs) and steps <= most:
            return plan
        plans.append((lasts + steps * MICRO_STEP * budget, len(plans), plan))
    return min(plans)[2]


def length(plan: Sequence[Bins], costs: Sequence[int]) -> int:
    """Tokens of the largest pack of each micro-step, summed."""
    loads = ([sum(costs[i] for i in items) for items in mine] for mine in plan)
    return sum(map(max, zip_longest(*loads, fillvalue=0)))


def _plans(
    order: Sequence[int], packs: Bins, most: int, costs: Sequence[int], ranks: int, budget: int
) -> Iterator[list[Bins]]:
    for steps in range(max(1, -(-sum(costs) // (ranks * max(1, budget)))), most + most // 2 + 1):
        bins = evenly(order, costs, ranks * steps)
        if all(len(items) < 2 or sum(costs[i] for i in items) <= budget for items in bins):
            yield _dealt(bins, costs, ranks)
            break
    yield _dealt(packs, costs, ranks)
    yield [first_fit(items, costs, budget) for items in evenly(order, costs, ranks)]


def evenly(order: Sequence[int], costs: Sequence[int], count: int) -> Bins:
    """Into `count` bins: the largest item first, each to the least loaded bin (Graham, 1969)."""
    bins: Bins = [[] for _ in range(count)]
    loads = [(0, k) for k in range(count)]  # a heap
    for i in order:
        load, k = loads[0]
        bins[k].append(i)
        heapreplace(loads, (load + costs[i], k))
    return bins


def _dealt(bins: Bins, costs: Sequence[int], ranks: int) -> list[Bins]:
    """Bins by [rank][micro-step]: the largest in the first, to and fro, so that ranks end with equal sums."""
    loads = [sum(costs[i] for i in items) for items in bins]
    ordered = sorted((k for k in range(len(bins)) if bins[k]), key=lambda k: (-loads[k], k))
    dealt: list[Bins] = [[] for _ in range(ranks)]
    for place, k in enumerate(ordered):
        step, rank = divmod(place, ranks)
        dealt[ranks - 1 - rank if step % 2 else rank].append(bins[k])
    return dealt


def first_fit(items: Sequence[int], costs: Sequence[int], budget: int) -> list[list[int]]:
    """Every item into the first pack that has room, found by halves: `most[k]` is the most room of any pack below the
    node k of a binary tree, whose leaves are the packs; leaves without a pack yet have the whole budget."""
    leaves = 1 << max(0, len(items) - 1).bit_length()
    most = [budget] * (2 * leaves)
    packs: list[list[int]] = []
    for i in items:
        node = 1
        while node < leaves:
            node *= 2
            node += most[node] < costs[i]
        if costs[i] > budget or node - leaves >= len(packs):
            node = leaves + len(packs)
            packs.append([])
        packs[node - leaves].append(i)
        most[node] -= costs[i]
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
    return packs
