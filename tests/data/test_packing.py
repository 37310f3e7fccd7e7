"""Packs: what they hold, how records are dealt to ranks, and the order of the data."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeer.data.packing import (
    batch_indices,
    build_pack,
    dummy_pack,
    forward_tokens,
    split_by_sample,
)
from dpeer.data.states import Segment
from dpeer.data.tokenize import TokenTree

LEFT = TokenTree(
    index=4,
    prompt=(10, 11, 12),
    responses=((20, 21), (30,), (40, 41, 42)),
    edges=((1, 0, 1), (0, 0, 2)),
    golden=0,
    mask=(),
)
RIGHT = TokenTree(index=9, prompt=(50,), responses=((60, 61), (70, 71)), edges=((1, 1, 0),), golden=1, mask=())


def test_pack_by_hand() -> None:
    """Last tokens of responses are targets only; the first token of a response is predicted from the prompt's end."""
    pack = build_pack([LEFT, RIGHT], [7, 3])
    assert pack.input_ids.tolist() == [[10, 11, 12, 20, 40, 41, 50, 60, 70]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 3, 3, 4, 0, 1, 1]]
    assert pack.segments == (
        Segment(0, 3, 0, 0),
        Segment(3, 1, 0, 3),
        Segment(4, 2, 0, 3),
        Segment(6, 1, 6, 0),
        Segment(7, 1, 6, 1),
        Segment(8, 1, 6, 1),
    )
    assert pack.rows.tolist() == [2, 3, 2, 2, 4, 5, 6, 7, 6, 8]
    assert pack.targets.tolist() == [20, 21, 30, 40, 41, 42, 60, 61, 70, 71]
    assert pack.row_response.tolist() == [0, 0, 1, 2, 2, 2, 3, 3, 4, 4]
    assert pack.response_tokens.tolist() == [2, 1, 3, 2, 2]
    assert pack.golden_at.tolist() == [0, 4] and pack.rejected_at.tolist() == [1, 2, 3]
    assert pack.dims.tolist() == [1, 0, 1]
    assert pack.better.tolist() == [0, 0, 4] and pack.worse.tolist() == [1, 2, 3]
    assert pack.edge_sample.tolist() == [7, 7, 3]
    assert pack.samples == (7, 3) and pack.response_counts == (3, 2)
    assert pack.tokens == 9 == forward_tokens(LEFT) + forward_tokens(RIGHT)


def test_pack_without_edges_has_empty_columns() -> None:
    pack = build_pack([TokenTree(0, (1,), ((2,),), (), 0, ())], [0])
    assert all(
        x.dtype == torch.int64 and x.shape == (0,) for x in (pack.dims, pack.better, pack.worse, pack.edge_sample)
    )


def test_masks_are_bottom_right_aligned() -> None:
    pack = build_pack([LEFT], [0])
    assert pack.mask(2, 4, None).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert pack.mask(2, 4, 2).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert pack.mask(3, 3, 1).int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert pack.mask(2, 4, None) is pack.mask(2, 4, None)  # made once for all layers


def test_moving_keeps_everything() -> None:
    pack = build_pack([LEFT, RIGHT], [0, 1])
    pack.mask(2, 4, None)
    moved = pack.to("meta")
    assert all(v.device.type == "meta" for v in vars(moved).values() if isinstance(v, torch.Tensor))
    assert (moved.segments, moved.samples, moved.response_counts) == (pack.segments, pack.samples, pack.response_counts)
    assert moved.mask(2, 4, None).device.type == "meta"


def test_dummy_pack_runs_but_counts_for_nothing() -> None:
    dummy = dummy_pack()
    assert dummy.tokens == 2 and dummy.samples == () and dummy.response_counts == () and len(dummy.dims) == 0
    assert {s.prompt_length for s in dummy.segments} == {0, 1} and len(dummy.rows) == 2


token = st.integers(0, 99)
trees = st.builds(
    lambda prompt, responses, golden: TokenTree(
        0, tuple(prompt), tuple(map(tuple, responses)), (), golden % len(responses), ()
    ),
    st.lists(token, min_size=1, max_size=8),
    st.lists(st.lists(token, min_size=1, max_size=6), min_size=1, max_size=5),
    st.integers(0, 99),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(trees, min_size=1, max_size=5))
def test_every_pack_can_be_read_back(batch: list[TokenTree]) -> None:
    """From a pack's own fields: walking prompt and rows gives the sequences again, positions count from 0."""
    pack = build_pack(batch, range(len(batch)))
    ids, positions = pack.input_ids[0], pack.position_ids[0]
    number = 0
    for tree in batch:
        for k, response in enumerate(tree.responses):
            mine = pack.row_response == number
            rows, targets = pack.rows[mine], pack.targets[mine]
            assert tuple(targets.tolist()) == response
            assert positions[rows].tolist() == list(range(len(tree.prompt) - 1, len(tree.prompt) + len(response) - 1))
            assert ids[rows].tolist() == [tree.prompt[-1], *response[:-1]]
            own = [s for s in pack.segments if s.prompt_length and len(rows) > 1 and s.start == int(rows[1])]
            for s in own:
                assert ids[s.prompt_start : s.prompt_start + s.prompt_length].tolist() == list(tree.prompt)
            assert len(own) == (len(response) > 1)
            assert (number in pack.golden_at) == (k == tree.golden) != (number in pack.rejected_at)
            number += 1
    assert number == len(pack.response_tokens)
    covered = [i for s in pack.segments for i in range(s.start, s.start + s.length)]
    assert covered == list(range(pack.tokens))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 70), st.integers(0, 2**40), st.integers(0, 5))
def test_each_epoch_is_a_permutation(records: int, size: int, seed: int, first: int) -> None:
    stream = batch_indices(0, (first + 2) * records, records, seed)
    for epoch in range(first + 2):
        assert sorted(stream[epoch * records : (epoch + 1) * records]) == list(range(records))
    cursor = first * records + seed % records
    piece = batch_indices(cursor, min(size, records), records, seed)
    assert piece == stream[cursor : cursor + min(size, records)]  # any slice, from any start


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {tuple(batch_indices(e * 100, 100, 100, seed)) for seed in range(4) for e in range(4)}
    assert len(orders) == 16
    assert [tuple(batch_indices(e * 100, 100, 100, s)) for s in range(3) for e in range(3)] == [
        tuple(batch_indices(e * 100, 100, 100, s)) for s in range(3) for e in range(3)
    ]


def test_order_leaves_torch_random_state_alone() -> None:
    before = torch.get_rng_state()
    batch_indices(0, 10, 977, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_may_be_larger_than_the_data() -> None:
    assert sorted(batch_indices(0, 7, 2, 0)[:6]) == [0, 0, 0, 1, 1, 1]
    assert batch_indices(3, 0, 2, 0) == []


def test_split_by_sample() -> None:
    assert list(split_by_sample([1.0, 2.0, 3.0, 4.0], [1, 0, 3])) == [[1.0], [], [2.0, 3.0, 4.0]]
    assert list(split_by_sample([], [])) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), st.integers(0, 2**40))
def test_an_epoch_draws_each_record_in_proportion_to_its_weight(weights: list[float], seed: int) -> None:
    records, given_weights = len(weights), tuple(weights)
    drawn = batch_indices(0, 2 * records, records, seed, given_weights)
    for epoch in range(2):
        counts = Counter(drawn[epoch * records : (epoch + 1) * records])
        expected = [records * w / sum(weights) for w in weights]
        assert all(math.floor(e - 1e-6) <= counts[i] <= math.ceil(e + 1e-6) for i, e in enumerate(expected))
    assert batch_indices(records, records, records, seed, given_weights) == drawn[records:]


def test_weights_average_out_over_epochs() -> None:
    weights = (1.0, 2.0, 0.5, 0.5)
    counts = Counter(batch_indices(0, 4 * 4000, 4, 7, weights))
    assert [counts[i] / 4000 for i in range(4)] == pytest.approx([1, 2, 0.5, 0.5], abs=0.03)
