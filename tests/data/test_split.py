"""Carving: prompts stay whole, masks keep their share, and neither seed nor order matters."""

import hashlib
import json
import random
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeer.data.schema import DataSet, Message, Record, Response
from dpeer.data.split import carve, prompt_key, share, united
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


def called(question="Shall I?", thought="Hm.", call="a1", name="look", argument=1, tools=""):
    """A prompt with a call of a tool and its answer."""
    calls = [{"type": "function", "id": call, "function": {"name": name, "arguments": {"at": argument}}}]
    turns = (
        Message("user", question),
        Message("assistant", "", json.dumps({"reasoning": thought, "tool_calls": calls})),
        Message("tool", "42", json.dumps({"tool_call_id": call})),
    )
    return Record(turns, ("A",), (Response("x", frozenset()),), f"{thought} {call} {tools}", tools=tools)


def test_what_templates_leave_out_makes_no_other_prompt():
    """Thoughts of earlier turns and ids of calls; names, arguments and tools make one."""
    keys = [prompt_key(called(thought=t, call=c)) for t, c in (("Hm.", "a1"), ("Oh.", "a1"), ("Hm.", "b2"))]
    others = [prompt_key(r) for r in (called(name="see"), called(argument=2), called(tools="[1]"), called("May I?"))]
    assert len(set(keys)) == 1 and len({keys[0], *others}) == 5
    bare = Record((Message("user", "a  b"), Message("assistant", "c")), (), (), "")
    thought = Record((Message("user", "a b"), Message("assistant", "c", '{"reasoning": "r"}')), (), (), "")
    assert prompt_key(bare) == prompt_key(thought) == "user\1a b\0assistant\1c"


def test_prompts_that_differ_beside_the_text_are_carved_whatever_their_order():
    """Their texts sort them alike, so that something else must say which comes first."""
    made = [called(tools=f"[{i}]") for i in range(40)]
    one, other = (carve(DataSet(("A",), tuple(r)), 0.5, "dual")[1].records for r in (made, made[::-1]))
    assert len(one) == 20 and {r.source for r in one} == {r.source for r in other}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=12))
def test_links_are_followed_over_others(pairs):
    """Against a search through the graph."""
    keys, asked = (np.array([p[i] for p in pairs], dtype=np.uint64) for i in (0, 1))
    found = united(keys, asked)
    for start in range(len(pairs)):
        reached, new = set(), {start}
        while new:
            reached |= new
            linked = {j for j, (k, t) in enumerate(pairs) for i in new if k == pairs[i][0] or 0 < t == pairs[i][1]}
            new = linked - reached
        assert {j for j in range(len(pairs)) if found[j] == found[start]} == reached


def test_white_space_and_unicode_form_do_not_make_another_prompt():
    def asked(text):
        return Record((Message("user", text),), ("A", "T"), (Response("x", frozenset()),), text)

    twins = ("caf\u00e9  now", "cafe\u0301 now")
    data = DataSet(("A", "T"), tuple(asked(t) for t in (*twins, *(f"q{i}" for i in range(30)))))
    for purpose in map(str, range(12)):
        _, carved = carve(data, 0.4, purpose)
        assert sum(r.source in twins for r in carved.records) in (0, 2)


def carved_before(data: DataSet, part: float, purpose: str) -> set[str]:
    """Sources of what the first release carved; runs that were begun with it go on with the same records."""

    def key(record: Record) -> str:
        text = "\0".join(f"{m.role}\1{m.content}" for m in record.prompt)
        return " ".join(unicodedata.normalize("NFC", text).split())

    strata: dict[tuple[str, ...], dict[str, list[Record]]] = {}
    masks: dict[str, tuple[str, ...]] = {}
    for r in data.records:
        masks[key(r)] = max(masks.get(key(r), r.mask), r.mask)
    for r in data.records:
        strata.setdefault(masks[key(r)], {}).setdefault(key(r), []).append(r)
    taken: set[str] = set()
    for groups in strata.values():
        wanted, got = part * sum(map(len, groups.values())), 0
        for _, members in sorted(groups.items(), key=lambda g: hashlib.sha256(f"{purpose}\0{g[0]}".encode()).digest()):
            if got + len(members) / 2 > wanted:
                break
            taken |= {r.source for r in members}
            got += len(members)
    return taken


turns = st.lists(st.text(" \nab\u00e9e\u0301", min_size=1, max_size=4), min_size=1, max_size=3)


def plain(prompt: list[str]) -> tuple[str, ...]:
    return tuple(" ".join(unicodedata.normalize("NFC", text).split()) for text in prompt)


@given(
    st.lists(turns, min_size=4, max_size=40, unique_by=plain),
    st.lists(st.integers(0, 3), min_size=60, max_size=60),
    st.sampled_from([0.1, 0.3, 0.5]),
)
def test_what_was_carved_before_is_carved_again(prompts: list[list[str]], masks: list[int], part: float) -> None:
    made = [
        Record(
            tuple(Message("ua"[k % 2], t) for k, t in enumerate(p)), MASKS[m], (Response("g", frozenset()),), f"x:{i}"
        )
        for i, (p, m) in enumerate(zip(prompts + prompts[:4], masks, strict=False))
    ]
    data = DataSet(("A", "C", "E", "T"), tuple(made))
    before = carved_before(data, part, "dual")
    now = {r.source for r in carve(data, part, "dual")[1].records}
    assert now == before or not before


def test_masks_too_small_for_a_share_give_it_together() -> None:
    def one(i: int) -> Record:
        return Record((Message("user", f"q {i}"),), MASKS[i % 4], (Response("g", frozenset()),), f"x:{i}")

    data = DataSet(("A", "C", "E", "T"), tuple(map(one, range(16))))
    assert carved_before(data, 0.1, "dual") == set()
    assert len(carve(data, 0.1, "dual")[1].records) == 2
    assert len(carve(DataSet(data.dimensions, data.records[:4]), 0.1, "dual")[1].records) == 0


@pytest.mark.parametrize(("text", "expected"), [("10%", 0.1), (" 2.5 % ", 0.025), ("none", None), ("data/x.csv", None)])
def test_shares(text, expected):
    assert share(text) == expected


@pytest.mark.parametrize("text", ["0%", "51%", "100%"])
def test_a_share_that_leaves_too_little_is_refused(text):
    with pytest.raises(ConfigError, match="above 0% and at most 50%"):
        share(text)


def taken_in_turn(groups: dict[str, list[Record]], keys: list[str], part: float) -> set[str]:
    wanted, got, taken = part * sum(len(groups[k]) for k in keys), 0, set()
    for key in sorted(keys, key=lambda k: hashlib.sha256(f"dual\0{k}".encode()).digest()):
        if got + len(groups[key]) / 2 > wanted:
            break
        taken.add(key)
        got += len(groups[key])
    return taken


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(MASKS)), max_size=40), st.floats(0.01, 0.5))
@settings(max_examples=100, deadline=None)
def test_which_prompts_are_carved_never_changes(drawn: list[tuple[int, tuple[str, ...]]], part: float) -> None:
    """Runs resume on the split that they began with: prompt by prompt, in the order of a hash, until one more would be
    more than half too much; all masks together where none of them gives a prompt."""
    answer = (Response("x", frozenset()),)
    made = [Record((Message("user", f"q{q}"),), m, answer, f"{i}") for i, (q, m) in enumerate(drawn)]
    groups: dict[str, list[Record]] = {}
    for record in made:
        groups.setdefault(f"user\1{record.prompt[0].content}", []).append(record)
    strata: dict[tuple[str, ...], list[str]] = {}
    for key, group in groups.items():
        strata.setdefault(max(r.mask for r in group), []).append(key)
    taken = set[str]().union(*(taken_in_turn(groups, keys, part) for keys in strata.values()))
    taken = taken or taken_in_turn(groups, list(groups), part)
    left, carved = carve(DataSet(("A", "C", "E", "T"), tuple(made)), part, "dual")
    assert [r for r in made if f"user\1{r.prompt[0].content}" in taken] == list(carved.records)
    assert [r for r in made if f"user\1{r.prompt[0].content}" not in taken] == list(left.records)
