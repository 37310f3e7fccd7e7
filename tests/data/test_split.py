"""Carving: prompts stay whole, masks keep their share, and neither seed nor order matters."""

import hashlib
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeer.data.schema import DataSet, Message, Record, Response
from dpeer.data.split import carve, share
from dpeer.errors import ConfigError

MASKS = [("A", "T"), ("A", "E"), ("A", "E", "T"), ("C", "E")]


def records(count, per_prompt=1):
    def one(i):
        mask = MASKS[(i // per_prompt) % 4 if i % 13 else 0]
        responses = (Response("good", frozenset()), *(Response(f"bad {d}", frozenset(d)) for d in mask))
        return Record((Message("user", f"question {i // per_prompt}"),), mask, responses, f"x:{i}")

    return DataSet(("A", "C", "E", "T"), tuple(one(i) for i in range(count)))


@pytest.mark.parametrize("per_prompt", [1, 3])
@pytest.mark.parametrize("part", [0.1, 0.25, 0.5])
def test_prompts_stay_whole_and_masks_keep_their_share(per_prompt, part):
    data = records(600, per_prompt)
    rest, carved = carve(data, part, "dual")
    assert sorted(r.source for r in (*rest.records, *carved.records)) == sorted(r.source for r in data.records)
    assert not {r.prompt for r in rest.records} & {r.prompt for r in carved.records}
    whole, taken = (Counter(r.mask for r in d.records) for d in (data, carved))
    if per_prompt == 1:
        assert all(abs(taken[m] - part * whole[m]) <= 1 for m in whole)
    assert abs(len(carved.records) - part * 600) <= 2 * 4 * per_prompt


def test_the_same_prompts_whatever_the_order_and_others_for_another_purpose():
    data = records(400)
    shuffled = list(data.records)
    random.Random(1).shuffle(shuffled)
    one, other = (carve(d, 0.2, "dual")[1] for d in (data, DataSet(data.dimensions, tuple(shuffled))))
    assert {r.source for r in one.records} == {r.source for r in other.records}
    assert {r.source for r in carve(data, 0.2, "heldout")[1].records} != {r.source for r in one.records}


def test_white_space_and_unicode_form_do_not_make_another_prompt():
    def asked(text):
        return Record((Message("user", text),), ("A", "T"), (Response("x", frozenset()),), text)

    twins = ("caf\u00e9  now", "cafe\u0301 now")
    data = DataSet(("A", "T"), tuple(asked(t) for t in (*twins, *(f"q{i}" for i in range(30)))))
    for purpose in map(str, range(12)):
        _, carved = carve(data, 0.4, purpose)
        assert sum(r.source in twins for r in carved.records) in (0, 2)


@pytest.mark.parametrize(("text", "expected"), [("10%", 0.1), (" 2.5 % ", 0.025), ("none", None), ("data/x.csv", None)])
def test_shares(text, expected):
    assert share(text) == expected


@pytest.mark.parametrize("text", ["0%", "51%", "100%"])
def test_a_share_that_leaves_too_little_is_refused(text):
    with pytest.raises(ConfigError, match="above 0% and at most 50%"):
        share(text)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(MASKS)), max_size=40), st.floats(0.01, 0.5))
@settings(max_examples=100, deadline=None)
def test_which_prompts_are_carved_never_changes(drawn, part):
    """Runs resume on the split that they began with: prompt by prompt, in the order of a hash, until one more would be
    more than half too much."""
    answer = (Response("x", frozenset()),)
    made = [Record((Message("user", f"q{q}"),), m, answer, f"{i}") for i, (q, m) in enumerate(drawn)]
    groups = {}
    for record in made:
        groups.setdefault(f"user\1{record.prompt[0].content}", []).append(record)
    taken = set()
    for stratum in {max(r.mask for r in group) for group in groups.values()}:
        mine = [k for k, group in groups.items() if max(r.mask for r in group) == stratum]
        wanted, got = part * sum(len(groups[k]) for k in mine), 0
        for key in sorted(mine, key=lambda k: hashlib.sha256(f"dual\0{k}".encode()).digest()):
            if got + len(groups[key]) / 2 > wanted:
                break
            taken.add(key)
            got += len(groups[key])
    left, carved = carve(DataSet(("A", "C", "E", "T"), tuple(made)), part, "dual")
    assert [r for r in made if f"user\1{r.prompt[0].content}" in taken] == list(carved.records)
    assert [r for r in made if f"user\1{r.prompt[0].content}" not in taken] == list(left.records)
