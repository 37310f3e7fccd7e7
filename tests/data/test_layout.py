"""Packs as separate sequences: what they hold, and packs that keep to their budget with the padding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dpeer.data.bins import plan_packs
from dpeer.data.layout import computed, cost, padded, plan, sequences
from dpeer.data.packing import build_pack, dummy_pack
from dpeer.data.tokenize import TokenTree


def tree(index: int, prompt: int, responses: list[int]) -> TokenTree:
    """Tokens that tell where they come from: 1000 per record, 100 per response."""
    first = 1000 * (index + 1)
    own = tuple(tuple(first + 100 * (k + 1) + i for i in range(n)) for k, n in enumerate(responses))
    return TokenTree(index, tuple(range(first, first + prompt)), own, (), 0, ())


def size(tree: TokenTree) -> tuple[int, int]:
    return len(tree.responses), tree.longest - 1


SIZES = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4)), min_size=1, max_size=6
)


@given(SIZES)
def test_sequences_are_prompt_and_response(sizes: list[tuple[int, list[int]]]) -> None:
    trees = [tree(i, prompt, responses) for i, (prompt, responses) in enumerate(sizes)]
    pack = build_pack(trees, range(len(trees)))
    table, places = sequences(pack)
    whole = [list(t.prompt + r) for t in trees for r in t.responses]
    longest = max(map(len, whole)) - 1
    assert table.tolist() == [ids[:-1] + [0] * (longest - len(ids) + 1) for ids in whole]
    assert computed(pack, "sequences") == table.numel() == padded([size(t) for t in trees])
    followed = [whole[place // longest][place % longest + 1] for place in places.tolist()]
    assert followed == pack.targets.tolist()


def test_the_dummy_is_a_sequence() -> None:
    table, places = sequences(dummy_pack())
    assert table.shape == (1, 2) and places.tolist() == [0, 1]


@given(SIZES, st.integers(1, 3), st.integers(5, 80))
def test_packs_of_sequences_keep_to_the_budget(sizes: list[tuple[int, list[int]]], ranks: int, budget: int) -> None:
    trees = [tree(i, prompt, responses) for i, (prompt, responses) in enumerate(sizes)]
    packs = plan(trees, ranks, budget, "sequences")
    assert sorted(i for mine in packs for pack in mine for i in pack) == list(range(len(trees)))
    assert all(len(pack) == 1 or padded([size(trees[i]) for i in pack]) <= budget for mine in packs for pack in mine)
    assert all(cost(t, "sequences") == padded([size(t)]) for t in trees)
    assert plan(trees, ranks, budget, "tree") == plan_packs([cost(t, "tree") for t in trees], ranks, budget)
