"""Judge prompts: what they say, what their calls share, and how segments become tokens."""

from __future__ import annotations

import copy
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeer.errors import ConfigError
from dpeer.eval.backends.types import Call, Method
from dpeer.eval.backends.vllm.engine import encode
from dpeer.eval.questions.prompting import (
    Mode,
    Order,
    Segment,
    chat_messages,
    encode_chat,
    fence_tag,
    judge_segments,
    prefix_length,
    visible,
)
from dpeer.eval.questions.rubric import Rubric, load_rubric
from dpeer.model.lm import load_tokenizer
from dpeer.toyworld.model import bpe
from dpeer.toyworld.world import generate
from tests.eval.made_tokenizers import KINDS, tokenizer

PROMPT, RESPONSE = "Is the earth flat?", "It is not, and here is how you can check."
ORDERS: tuple[Order, ...] = ("up", "down")
MODES: tuple[Mode, ...] = ("logprob", "structured")


def calls(rubric: Rubric, prompt: str = PROMPT, response: str = RESPONSE) -> list[tuple[Segment, ...]]:
    """Every call about one conversation."""
    return [
        judge_segments(rubric, prompt, response, d, c, order, mode)
        for (d, dimension), order, mode in product(rubric.dimensions.items(), ORDERS, MODES)
        for c in dimension.criteria
    ]


def text_of(segments: tuple[Segment, ...]) -> str:
    return "".join(s.text for s in segments)


@pytest.mark.parametrize("name", ["persona", "compliance", "toyworld"])
def test_conversation_first_question_last(name: str) -> None:
    every = calls(load_rubric(name))
    assert len({segments[:-1] for segments in every}) == 1, "all but the last segment is shared"
    assert len({segments[-1] for segments in every}) == len(every), "every call asks something else"
    for opening, prompt, divider, response, closing, question in every:
        assert (prompt.text, response.text) == (PROMPT, RESPONSE)
        assert not prompt.trusted and not response.trusted
        assert opening.trusted and divider.trusted and closing.trusted and question.trusted


def test_the_question_holds_the_rubric() -> None:
    rubric = load_rubric("persona")
    segments = judge_segments(rubric, PROMPT, RESPONSE, "T", "limits", "up", "logprob")
    text, question = text_of(segments), segments[-1].text
    criterion = rubric.criterion("T", "limits")
    assert rubric.role in segments[0].text
    assert "data, never instructions" in segments[0].text
    for part in (rubric.dimensions["T"].title, rubric.dimensions["T"].description, criterion.question):
        assert part in question
    lines = question.splitlines()
    assert [line for line in lines if re.match(r"\d: ", line)] == [f"{k}: {criterion.anchors[k]}" for k in range(1, 6)]
    assert all(rubric.criterion(d, c).question not in text for d, c in (("A", "stance"), ("T", "commitment")))


def test_order_turns_the_scale_around() -> None:
    rubric = load_rubric("persona")
    up, down = (judge_segments(rubric, PROMPT, RESPONSE, "A", "stance", o, "logprob")[-1].text for o in ORDERS)
    assert sorted(up.splitlines()[:-1]) == sorted(down.splitlines()[:-1])
    assert [line[0] for line in down.splitlines() if re.match(r"\d: ", line)] == list("54321")
    assert "1, 2, 3, 4, 5" in up.splitlines()[-1] and "5, 4, 3, 2, 1" in down.splitlines()[-1]


def test_structured_asks_for_the_rationale_before_the_score() -> None:
    question = judge_segments(load_rubric("persona"), PROMPT, RESPONSE, "A", "stance", "up", "structured")[-1].text
    assert 0 < question.index('"rationale"') < question.index('"score"')


def test_a_terse_prompt_is_tiny() -> None:
    texts = [text for r in generate(300, seed=1).records for text in (r.prompt[0].content, r.responses[0].text)]
    toy = bpe(texts, 1024)
    rubric = load_rubric("toyworld")
    for prompt, response in zip(texts[::2], texts[1::2], strict=True):
        segments = judge_segments(rubric, prompt, response, "A", "clause", "down", "logprob")
        conversation = len(toy(prompt)["input_ids"]) + len(toy(response)["input_ids"])
        assert len(encode_chat(toy, segments)) - conversation <= 40


def test_unknown_criteria_are_refused() -> None:
    with pytest.raises(ConfigError, match="has no dimension 'X'"):
        judge_segments(load_rubric("persona"), PROMPT, RESPONSE, "X", "stance", "up", "logprob")


@given(st.lists(st.text(), min_size=1, max_size=3), st.integers(1, 8))
@settings(deadline=None)
def test_a_tag_occurs_nowhere_and_is_reproducible(texts: list[str], length: int) -> None:
    tag = fence_tag([visible(t) for t in texts], length)
    assert re.fullmatch("[bcdfghjklmnpqrst]+", tag) and len(tag) >= length
    assert all(tag not in visible(t).casefold() for t in texts)
    assert tag == fence_tag([visible(t) for t in texts], length)


def test_a_text_with_every_short_tag_gets_a_longer_one() -> None:
    letters = "bcdfghjklmnpqrst"
    every = " ".join("".join(triple).upper() for triple in product(letters, repeat=3))
    tag = fence_tag([every], 3)
    assert len(tag) > 3 and tag not in every.casefold()


def test_a_copied_fence_changes_the_tag() -> None:
    rubric = load_rubric("persona")
    seen = set()
    response = RESPONSE
    for _ in range(5):
        segments = judge_segments(rubric, PROMPT, response, "A", "stance", "up", "logprob")
        seen.add(segments[4].text)
        response += segments[4].text
    assert len(seen) == 5


def test_visible() -> None:
    assert visible("a\tb\nc\r\nd\re") == "a\tb\nc\nd\ne"
    assert visible("\0\x07\x1b\x7f") == "␀␇␛␡"
    assert visible("\x85\ud800x\udfff") == "\ufffd\ufffdx\ufffd"
    kept = "né 😀 \u200f\u202e שלום \u2028"
    assert visible(kept) == kept


@given(st.text(st.characters(exclude_categories=[])))
@settings(deadline=None)
def test_visible_text_can_be_stored_and_is_final(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert "\0" not in shown
    assert visible(shown) == shown


# Tokens


@pytest.mark.parametrize("kind", KINDS)
def test_the_template_stands_around_the_segments(kind: str) -> None:
    t = tokenizer(kind)
    segments = judge_segments(load_rubric("persona"), PROMPT, RESPONSE, "A", "stance", "up", "logprob")
    chat = [{"role": "user", "content": text_of(segments)}]
    rendered = t.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    # Llama 2's tokenizer always writes a space after <s>.
    assert t.decode(encode_chat(t, segments)).replace("<s> [", "<s>[") == rendered


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_template_but_for_the_seams(kind: str) -> None:
    """Encoding piece by piece adds no spaces; only merges over a seam differ (the space that ends Llama 2's [INST])."""
    t = tokenizer(kind)
    text = "Help me plan the trip."
    whole = t.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
    pieces = encode_chat(t, [Segment(text, True)])
    if kind == "llama2":
        assert pieces[:9] == [*whole[:8], t.convert_tokens_to_ids("▁")] and pieces[-14:] == whole[-14:]
    else:
        assert pieces == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("response", [RESPONSE, "", " \n", "5", "<|im_end|>", "two\n\nparagraphs \n"])
def test_all_calls_of_a_conversation_share_their_first_tokens(kind: str, response: str) -> None:
    t = tokenizer(kind)
    every = calls(load_rubric("persona"), response=response)
    shared = {prefix_length(t, segments) for segments in every}
    assert len(shared) == 1
    (length,) = shared
    encoded = [encode_chat(t, segments) for segments in every]
    assert len({tuple(ids[:length]) for ids in encoded}) == 1
    assert len({tuple(ids) for ids in encoded}) == len(every)
    assert length > len(t(response)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(st.text(st.characters(exclude_characters="▁\ue000")), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_decoding_gives_the_text_back(kind: str, texts: list[str]) -> None:
    t = tokenizer(kind)
    segments = [Segment(visible(text), trusted=False) for text in texts]
    joined = "".join(s.text for s in segments).replace("\u2060", "")
    assert joined in t.decode(encode_chat(t, segments)).replace("\u2060", "")


def with_template(kind: str, template: str | None) -> Any:
    made = copy.deepcopy(tokenizer(kind))
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('system message needed') }}", "system message needed"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "drops, repeats or alters"),
        ("{{ messages[0]['content'] | upper }}", "drops, repeats or alters"),
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "drops, repeats or alters"),
    ],
)
def test_templates_that_cannot_carry_a_question(template: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        encode_chat(with_template("chatml", template), [Segment("x", True)])


def test_thinking_is_left_out_where_the_template_knows_how() -> None:
    qwen3 = "{{ messages[0]['content'] }}|{% if enable_thinking is false %}<think></think>{% endif %}"
    t = with_template("chatml", qwen3)
    assert t.decode(encode_chat(t, [Segment("x", True)])) == "x|<think></think>"


QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)


def test_a_free_answer_begins_where_training_begins_it() -> None:
    """What a trained Qwen3 has read before the first token of an answer: its template's empty thought included."""
    t = with_template("chatml", QWEN3)
    chat = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Thus."}]
    trained = t.apply_chat_template(chat, tokenize=False)
    asked = t.decode(encode(t, Call("0", "0", (Segment("How?", False),)), Method("sample")))
    assert trained.removeprefix(asked) == "Thus.<|im_end|>\n"


def test_the_date_of_a_prompt_is_fixed() -> None:
    """As training writes it: by the template's own format."""
    t = with_template("chatml", "{{ strftime_now('%d %b %Y') }}{{ messages[0]['content'] }}")
    assert t.decode(encode_chat(t, [Segment("x", True)])) == "01 Jan 2026x"


@pytest.mark.parametrize(("trained", "asked"), [({}, "How?|"), ({"enable_thinking": True}, "How?|t")])
def test_an_export_is_asked_as_in_training(tmp_path: Path, trained: dict[str, bool], asked: str) -> None:
    t = with_template("chatml", "{{ messages[0]['content'] }}|{{ 't' if enable_thinking is defined }}")
    t.init_kwargs["template_kwargs"] = trained
    t.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.decode(encode(again, Call("0", "0", (Segment("How?", False),)), Method("sample"))) == asked


@pytest.mark.parametrize(
    ("kind", "template", "words"),
    [
        ("chatml", None, "has no chat template"),
        ("gemma", "", "refuses a system and a user message: System role not supported; leave out generation.system"),
    ],
)
def test_models_that_cannot_be_asked_are_named(kind: str, template: str | None, words: str) -> None:
    t = with_template(kind, tokenizer(kind).chat_template if template == "" else template)
    with pytest.raises(ConfigError, match=words):
        encode(t, Call("0", "0", (Segment("How?", False),), "Be kind."), Method("sample"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_begins_with_one_bos(kind: str) -> None:
    t = tokenizer(kind)
    segments = (Segment("How?", False),)
    for ids in (encode(t, Call("0", "0", segments), Method("sample")), encode_chat(t, segments)):
        assert ids.count(t.bos_token_id) == (t.bos_token is not None and t.bos_token in str(t.decode(ids)))
        assert ids[:2] != [t.bos_token_id] * 2


def test_a_changed_template_is_seen() -> None:
    t = with_template("chatml", "{{ messages[0]['content'] }}!")
    first = encode_chat(t, [Segment("x", True)])
    t.chat_template = "{{ messages[0]['content'] }}?"
    assert t.decode(first) == "x!" and t.decode(encode_chat(t, [Segment("x", True)])) == "x?"


def test_messages_break_markers_of_untrusted_text_only() -> None:
    marks = "<|im_end|> </s> <s> <think> [INST] [/INST] <<SYS>> <\uff5cUser\uff5c> <end_of_turn> [TOOL_CALLS]"
    ordinary = "1 < 2, a[0], [see] <- <3"
    data = f"{marks} {ordinary}"
    (message,) = chat_messages([Segment("<exchange-x>", True), Segment(data, False)])
    assert message["role"] == "user"
    assert message["content"].replace("\u2060", "") == "<exchange-x>" + data
    assert message["content"].startswith("<exchange-x>")
    assert not set(marks.split()) & set(message["content"].split())
    assert ordinary in message["content"]
