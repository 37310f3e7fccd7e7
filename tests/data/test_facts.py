"""Facts that must hold before a step: on small splits whose answer is known, at the seam of the one function."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeer.data.check import check
from dpeer.data.duplicates import near_duplicates
from dpeer.data.facts import Findings, ModelFacts, Tokens, facts, tokens
from dpeer.data.schema import DataSet, Message, Record, Response
from dpeer.data.tokenize import TokenTree, audit
from dpeer.errors import DataError


def records(*prompts: str, name: str = "train") -> DataSet:
    responses = (Response("Look at the hull first.", frozenset()), Response("Sure!", frozenset("A")))
    made = (Record((Message("user", p),), ("A",), responses, f"{name}:{i}") for i, p in enumerate(prompts, 1))
    return DataSet(("A",), tuple(made))


def said(found: Findings) -> tuple[str, str]:
    return "\n".join(map(str, found.errors)), "\n".join(map(str, found.warnings))


class Words:
    """As much of a tokenizer as the facts ask for."""

    unk_token, unk_token_id, bos_token_id, eos_token_id, pad_token_id = "<unk>", 0, 1, 2, 2

    def convert_ids_to_tokens(self, at: int) -> str:
        return f"word{at}"


# Prompts


@pytest.mark.parametrize(
    ("train", "other"),
    [
        ("Is my plan good?", "Is my plan good?"),
        ("Is my plan good?", " Is  my plan\ngood? "),
        ("Is café crème healthy?", unicodedata.normalize("NFD", "Is café crème healthy?")),
    ],
    ids=["same", "blanks", "Unicode form"],
)
@pytest.mark.parametrize("pair", [("train", "heldout"), ("train", "dual"), ("dual", "heldout")])
def test_a_prompt_in_two_splits_is_refused(train: str, other: str, pair: tuple[str, str]) -> None:
    first, second = pair
    found = facts({first: records(train, "Something else"), second: records("New", other, name=second)}, {})
    (error,) = found.errors
    assert error.where == f"{second}:2" and ":1)" in error.message
    assert facts({first: records(train), second: records("New one")}, {}).errors == ()


LONG = "My neighbour has borrowed the long ladder again and I want it back before the rain comes, how do I ask for it?"


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        (LONG, LONG.upper() + "!!", 1),
        (LONG, LONG.replace("neighbour", "brother"), 1),
        (LONG, "My neighbour has sold his boat; what may I say to him when we meet at the harbour next week?", 0),
        ("Should I paint boat 3 this year?", "Should I paint boat 4 this year?", 0),
        ("!!!", "???", 0),
        ("我的计划好吗请你直接告诉我哪里不好", "我的计划好吗请你直接告诉我哪里不好。", 1),
    ],
    ids=["case and marks", "one word", "another text", "short template", "no words", "no blanks"],
)
def test_near_repeats_are_counted_and_told(first: str, second: str, count: int) -> None:
    found = facts({"train": records(first, "Else"), "heldout": records(second, "New", name="test")}, {})
    assert found.errors == ()
    assert said(found)[1].count(f"{count} of 2 nearly repeat") == bool(count)


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=6, max_size=40), min_size=1, max_size=6), st.data())
def test_near_repeats_are_alike_and_exact_ones_are_always_found(texts: list[list[str]], data: st.DataObject) -> None:
    """Against the definition: what is found has the same words, or a Jaccard similarity of 0.7; loud text is found."""
    plain = [" ".join(t) for t in texts]
    loud = data.draw(st.sampled_from(plain))
    first, second = records(*plain), records(loud.upper() + " !", *(t + " x y z w v u" for t in plain))
    (pairs,) = near_duplicates(first, second)

    def runs(record: Record) -> set[tuple[str, ...]]:
        words = ["user", *record.prompt[-1].content.lower().replace("!", "").split()]
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    for a, b in pairs:
        assert len(runs(a) & runs(b)) / len(runs(a) | runs(b)) >= 0.7
    assert any(b.prompt[-1].content == loud.upper() + " !" for _, b in pairs)


# Tokens and models


def tree(*responses: tuple[int, ...], prompt: tuple[int, ...] = (5, 6), edge: bool = True) -> TokenTree:
    return TokenTree(0, prompt, responses, ((0, 0, 1),) if edge else (), 0, ("A",))


def test_tokens_are_those_of_the_trees() -> None:
    found = tokens(("A", "B"), [tree((7, 9, 2), (0, 3)), tree((8, 0, 0, 4), (1, 2), prompt=(11,))], 0, dropped=3)
    assert (found.largest, found.longest, found.total, found.unknown) == (11, 5, 14, 3)
    assert (found.ends, found.edges, found.dropped) == ({2, 3, 4}, {"A": 2, "B": 0}, 3)


@pytest.mark.parametrize("which", ["policy", "reference"])
def test_tokens_beyond_the_embedding(which: str) -> None:
    models = [ModelFacts("policy", rows=40), ModelFacts("reference", rows=40)]
    counted = {"train": Tokens(largest=39, total=9), "heldout": Tokens(largest=30, total=9)}
    assert facts({}, counted, Words(), models).errors == ()
    small = [ModelFacts(m.path, rows=39) if m.path == which else m for m in models]
    (error,) = facts({}, counted, Words(), small).errors
    assert f"model {which}" in str(error) and "id 39 ('word39'), the model has 39 embeddings" in str(error)


def test_records_longer_than_the_positions() -> None:
    counted = {"train": Tokens(longest=2049)}
    (error,) = facts({}, counted, None, [ModelFacts("m", positions=2048)], max_tokens=4096).errors
    assert "2048 positions" in str(error) and "2049 tokens (data.max_tokens is 4096)" in str(error)
    loose = facts({}, counted, None, [ModelFacts("m", positions=2048)])
    assert loose.errors == () and "2048 positions" in said(loose)[1]
    assert facts({}, counted, None, [ModelFacts("m", positions=2049), ModelFacts("n")], max_tokens=4096).errors == ()


def test_a_tolerance_needs_pairs_and_drops_are_told() -> None:
    counted = {"train": Tokens(edges={"A": 3, "B": 0}, dropped=4, cut=1)}
    errors, warnings = said(facts({}, counted, None, [], ("A", "B"), 512))
    assert "no pair of 'B' is left (4 records dropped as overlong)" in errors and "'A'" not in errors
    assert "data.max_tokens (512): 4 dropped, 1 with a prompt cut" in warnings
    assert facts({}, counted, None, [], ("A",), 512).errors == ()


def test_unknown_tokens_are_counted_and_many_are_refused() -> None:
    few, many = (facts({}, {"train": Tokens(total=1000, unknown=n)}, Words()) for n in (7, 70))
    assert few.errors == () and "7 of 1000 tokens (0.70%) are the unknown token '<unk>'" in said(few)[1]
    assert "70 of 1000 tokens (7.00%)" in said(many)[0] and many.warnings == ()
    words = Words()
    words.unk_token_id = 2  # names the end of a text, as byte-level tokenizers do
    assert facts({}, {"train": Tokens(total=1000, unknown=70)}, words) == Findings((), ())


def test_an_end_that_the_model_does_not_stop_at_is_told() -> None:
    counted = {"train": Tokens(total=9, ends=frozenset({4, 7}))}
    assert "token 7 ('word7')" in said(facts({}, counted, Words(), [ModelFacts("m", ends=frozenset({4, 5}))]))[1]
    assert facts({}, counted, Words(), [ModelFacts("m", ends=frozenset({4, 7}))]).warnings == ()


def test_a_quantised_model_is_refused_by_its_method() -> None:
    (error,) = facts({}, {}, None, [ModelFacts("m"), ModelFacts("r", quantised="awq")]).errors
    assert "model r: is quantised (awq)" in str(error) and "unquantised base" in str(error)


# A tokenizer that loses text


def pre_tokenizer(kind: str) -> Any:
    from tokenizers import pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(False)
    return {
        "metaspace": pre_tokenizers.Metaspace(),
        "words": pre_tokenizers.Whitespace(),
        "punctuation": pre_tokenizers.Sequence([pre_tokenizers.Punctuation("removed"), byte_level]),
    }[kind]


@pytest.mark.parametrize("kind", ["metaspace", "words", "punctuation"])
def test_a_tokenizer_that_loses_text_is_one_line(make_tokenizer: Any, templates: Any, kind: str) -> None:
    tokenizer = make_tokenizer(templates["chatml"])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer(kind)
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, chat_template=tokenizer.chat_template)
    with pytest.raises(DataError, match=r"class \w+ does not fit its tokenizer.json.*is read back as") as error:
        audit(records("Is my plan good? It has  two\nlines."), tokenizer)
    assert "\n" not in str(error.value)


def test_text_that_a_tokenizer_composes_is_not_lost(make_tokenizer: Any, templates: Any) -> None:
    from tokenizers import normalizers

    tokenizer = make_tokenizer(templates["llama3"])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    decomposed = records(unicodedata.normalize("NFD", "Ist das Café schön?"))
    # The template's text must hold the prompt verbatim, so it is the tokens that are composed.
    trees, faults = audit(decomposed, tokenizer)
    assert len(trees) == 1 and faults == ()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(DataError, match="loses text"):
        audit(decomposed, tokenizer)


def test_only_the_record_that_loses_text_is_refused(make_tokenizer: Any, templates: Any) -> None:
    from tokenizers import normalizers

    tokenizer = make_tokenizer(templates["chatml"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("ß", "ss")
    trees, faults = audit(records("Ist das groß?", "Is it large?"), tokenizer)
    assert [t.index for t in trees] == [1]
    assert "loses or alters text" in faults[0].message and "groß" in faults[0].message


# The door


def test_data_check_asks_the_same_function(tmp_path: Path, make_tokenizer: Any, templates: Any) -> None:
    rows = [
        {"prompt": f"Is plan {i} good?", "mask": ["A"], "responses": [{"text": "Yes.", "fails": []},
         {"text": "No.", "fails": ["A"]}]}
        for i in range(3)
    ]  # fmt: skip
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[1]))
    model = ModelFacts("m", rows=20, positions=4, quantised="gptq")
    report = check(str(tmp_path), make_tokenizer(templates["chatml"]), model=model)
    shown = "\n".join(map(str, report.errors))
    for words in ("quantised (gptq)", "20 embeddings", "also trained on (train.jsonl:2)"):
        assert words in shown
    assert "4 positions" in "\n".join(map(str, report.warnings))
