"""Encoding in pieces gives the ids of whole texts, and auditing in batches what auditing one by one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dpeer.data.encode import Encoder
from dpeer.data.faults import Fault
from dpeer.data.schema import DataSet, Message, Record, Response
from dpeer.data.tokenize import Auditor, TokenTree, audit
from tests.data.conftest import CHATML, FAMILIES

UNDECODED = 1001
"""Number of a record that is not decoded, nor are the next: some of these tokenizers lose text."""
Make = Callable[[str | None], PreTrainedTokenizerFast]


def characters(**special: bool) -> PreTrainedTokenizerFast:
    """Of single characters, with a prefix that depends on where a text stands, as SentencePiece has it."""
    words = {c: i for i, c in enumerate("▁abcdefghijklmnopqrstuvwxyz.\n<|>_?")}
    whole = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="?"))
    whole.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    whole.decoder = decoders.Metaspace()
    if special.pop("lowered", False):
        whole.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Lowercase()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole)
    marks = [AddedToken(t, special=True, **special) for t in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = CHATML
    return tokenizer


def tokenizers(make: Make) -> Iterator[PreTrainedTokenizerFast]:
    yield from (make(template) for template in FAMILIES.values())
    yield from (characters(normalized=False), characters(lowered=True, normalized=False))
    yield from (characters(rstrip=True, normalized=False), characters(lstrip=True, normalized=False))
    yield characters(normalized=True)


word = st.sampled_from(["a", " b", "\n", "  ", "Is it?", "perfect", "<|im_end|>", "<s>", "<think>", "▁", "é", "<|im_"])
text = st.lists(word, min_size=1, max_size=5).map("".join).filter(str.strip)
record = st.builds(
    lambda prompt, golden, worse: Record(
        (Message("user", prompt),), ("A",), (Response(golden, frozenset()), Response(worse, frozenset("A"))), "t:1"
    ),
    text,
    text,
    text,
)


@pytest.mark.parametrize("number", range(10))
@settings(max_examples=15, deadline=None)
@given(records=st.lists(record, max_size=6))
def test_batches_find_what_single_records_do(make_tokenizer: Make, number: int, records: list[Record]) -> None:
    tokenizer = list(tokenizers(make_tokenizer))[number]
    plain = Auditor(tokenizer)
    plain.encode.fast = False
    alone = [plain([r], ("A",), UNDECODED)[0] for r in records]
    together = Auditor(tokenizer)(records, ("A",), UNDECODED)

    def said(found: TokenTree | Fault) -> object:
        return found.message if isinstance(found, Fault) else (found.prompt, found.responses, found.edges)

    assert list(map(said, together)) == list(map(said, alone))


def test_which_tokens_are_cuts(make_tokenizer: Make) -> None:
    """Those beside which nothing is stripped, and that no other control token could overlap."""
    assert "<|im_start|>" in Encoder(make_tokenizer(CHATML)).cuts
    assert Encoder(characters(rstrip=True)).cuts == Encoder(characters(normalized=True)).cuts == ()
    clash = characters(normalized=False)
    clash.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "|>x", "aa"]})
    assert Encoder(clash).cuts == ()


def test_prompts_are_encoded_once(make_tokenizer: Make) -> None:
    encoder = Encoder(make_tokenizer(CHATML))
    groups = [["<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"]]
    groups[0] += [groups[0][0] + f"{answer}<|im_end|>\n" for answer in ("one", "two")]
    pieces = {piece for plan in map(encoder._pieces, groups) for pair in plan for piece in pair}
    assert sum("user\nq" in piece for piece in pieces) == 1 and len(pieces) == 4


def test_an_encoder_that_differs_is_not_believed(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(CHATML)
    found = Auditor(tokenizer)
    found.encode._pieces = lambda group: [(t[:-1], "") for t in group]  # type: ignore[method-assign]
    answers = (Response("a", frozenset()), Response("b", frozenset("A")))
    sound = Record((Message("user", "Is it?"),), ("A",), answers, "t:1")
    trees, _ = audit(DataSet(("A",), (sound,)), tokenizer)
    assert found([sound], ("A",)) == list(trees) and not found.encode.fast
