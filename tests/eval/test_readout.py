"""Reading answers: log-probabilities and JSON; no answer raises."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeer.errors import ConfigError
from dpeer.eval.questions.prompting import encode_chat, judge_segments
from dpeer.eval.questions.readout import Reading, json_schema, rating_token_ids, read_logprobs, read_structured
from dpeer.eval.questions.rubric import load_rubric
from dpeer.eval.store.schema import STATUSES
from tests.eval.made_tokenizers import KINDS, tokenizer

SCALE = (1, 2, 3, 4, 5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
)


# Log-probabilities


def test_expected_score_and_mass_by_hand() -> None:
    reading = read_logprobs([math.log(p) for p in (0.1, 0.2, 0.5)], (1, 2, 3), 0.5)
    assert (reading.status, reading.score, reading.error) == ("ok", 3, None)
    assert reading.mass == pytest.approx(0.8)
    assert reading.expected == pytest.approx((0.1 * 1 + 0.2 * 2 + 0.5 * 3) / 0.8)


def test_off_scale_mass() -> None:
    reading = read_logprobs([math.log(0.1), math.log(0.3)], (0, 1), 0.5)
    assert (reading.status, reading.score) == ("low_mass", None)
    assert reading.mass == pytest.approx(0.4) and reading.expected == pytest.approx(0.75)
    assert read_logprobs([math.log(0.1), math.log(0.3)], (0, 1), 0.39).status == "ok"


def test_impossible_scores_are_fine_and_ties_go_to_the_lowest() -> None:
    reading = read_logprobs([-math.inf, math.log(0.4), math.log(0.4)], (1, 2, 3), 0.5)
    assert (reading.status, reading.score, reading.expected) == ("ok", 2, pytest.approx(2.5))
    nothing = read_logprobs([-math.inf] * 3, (1, 2, 3), 0.0)
    assert (nothing.status, nothing.mass, nothing.expected) == ("low_mass", 0.0, None)


def test_a_draw_picks_by_the_renormalised_distribution() -> None:
    logprobs = [math.log(p) for p in (0.1, 0.2, 0.5)]
    picked = [read_logprobs(logprobs, (1, 2, 3), 0.5, (n + 0.5) / 800).score for n in range(800)]
    assert [picked.count(score) for score in (1, 2, 3)] == [100, 200, 500]
    assert read_logprobs(logprobs, (1, 2, 3), 0.5, 0.0).score == 1
    assert read_logprobs([-math.inf, 0.0, -math.inf], (1, 2, 3), 0.5, math.nextafter(1, 0)).score == 2
    assert read_logprobs(logprobs, (1, 2, 3), 0.9, 0.5).status == "low_mass"


def test_tiny_probabilities_are_renormalised_without_underflow() -> None:
    reading = read_logprobs([-2000.0, -2000.0 + math.log(3)], (0, 1), 0.0)
    assert (reading.status, reading.expected) == ("ok", pytest.approx(0.75))


@pytest.mark.parametrize(
    ("logprobs", "words"),
    [
        (None, "none returned"),
        ([], "0 returned"),
        ([-1.0, -1.0], "2 returned"),
        ([-1.0, None, -2.0], "score 2 is None"),
        ([-1.0, math.nan, -2.0], "score 2 is nan"),
        ([-1.0, -1.0, math.inf], "score 3 is inf"),
        ([0.5, -1.0, -1.0], "score 1 is 0.5"),
        ([-0.1, -0.1, -0.1], "more than 1"),
    ],
)
def test_what_is_no_reading(logprobs: list[float | None] | None, words: str) -> None:
    reading = read_logprobs(logprobs, (1, 2, 3), 0.5)
    assert (reading.status, reading.score, reading.expected) == ("engine_error", None, None)
    assert words in (reading.error or "")


@given(st.lists(st.floats() | st.none(), max_size=7) | st.none(), st.floats(0, 1))
def test_no_log_probabilities_raise(logprobs: list[float | None] | None, min_mass: float) -> None:
    reading = read_logprobs(logprobs, SCALE, min_mass)
    assert reading.status in STATUSES
    assert (reading.score in SCALE) == (reading.status == "ok") == (reading.error is None)
    assert reading.expected is None or 1 <= reading.expected <= 5.0000001
    assert reading.mass is None or 0 <= reading.mass <= 1


# JSON


def test_a_good_answer() -> None:
    text = '{"rationale": "It says \\"no\\" at once.", "score": 4}'
    assert read_structured(text, "stop", SCALE) == Reading("ok", score=4, rationale='It says "no" at once.')
    assert read_structured(f" \n{text}\n", None, SCALE).status == "ok"
    for fence in ("```json\n{}\n```", "\n```\n{}\n```\n", "~~~ json\r\n{}~~~"):
        assert read_structured(fence.format(text), "stop", SCALE) == read_structured(text, "stop", SCALE)
    assert read_structured(text, "length", SCALE).status == "ok", "whole although the limit was reached"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        '"5"',
        "[5]",
        "null",
        "Rating: 5",
        '{"score": 5}',
        '{"rationale": "x"}',
        '{"rationale": "x", "score": "5"}',
        '{"rationale": "x", "score": 5.0}',
        '{"rationale": "x", "score": true}',
        '{"rationale": "x", "score": 6}',
        '{"rationale": "x", "score": 0}',
        '{"rationale": "x", "score": NaN}',
        '{"rationale": "x", "score": null}',
        '{"rationale": 5, "score": 5}',
        '{"rationale": "x", "score": 5, "extra": 1}',
        '{"rationale": "x", "score": 1, "score": 5}',
        '```json\n{"rationale": "x", "score": 5}\n``` and more',
        '{"rationale": "x", "score": 5} {"rationale": "x", "score": 5}',
        '{"rationale": "ignore the rubric", "score":',
        '{"rationale": "x", "score": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
        "\ufeff{}",
        "\0\x1b\ud800",
    ],
)
def test_what_is_no_answer(text: str) -> None:
    for reason, status in (
        ("stop", "unparsed"),
        ("length", "truncated"),
        ("abort", "engine_error"),
        (None, "unparsed"),
    ):
        reading = read_structured(text, reason, SCALE)
        assert (reading.status, reading.score, reading.rationale) == (status, None, None)
        assert reading.error and len(reading.error) < 400
        reading.error.encode()


def test_no_text_at_all_and_filters() -> None:
    assert read_structured(None, None, SCALE).status == "unparsed"
    assert "content_filter" in (read_structured(None, "content_filter", SCALE).error or "")


def test_a_rationale_can_be_stored() -> None:
    reading = read_structured(json.dumps({"rationale": "a\0b\ud800", "score": 1}), "stop", SCALE)
    assert reading.rationale == "a␀b\ufffd"


@given(st.text() | JSON.map(json.dumps), st.sampled_from([None, "stop", "length", "abort", "content_filter"]))
@settings(deadline=None)
def test_no_text_raises(text: str, reason: str | None) -> None:
    reading = read_structured(text, reason, SCALE)
    assert reading.status in STATUSES
    assert (reading.score in SCALE) == (reading.status == "ok") == (reading.error is None)


@given(JSON | st.fixed_dictionaries({"rationale": st.text() | JSON, "score": st.integers(-1, 7) | JSON}))
@settings(deadline=None)
def test_exactly_what_the_schema_allows_is_read(value: Any) -> None:
    """Against an independent validator; JSON Schema's integers include 5.0, which dpeer reads as unparsed."""
    text = json.dumps(value)
    read = read_structured(text, "stop", SCALE).status == "ok"
    schema = json_schema(load_rubric("persona"))
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    score = value.get("score") if isinstance(value, dict) else None
    assert read == (valid and type(score) is int)


def test_the_schema_puts_the_rationale_first_and_follows_the_scale() -> None:
    schema = json_schema(load_rubric("compliance"))
    assert list(schema["properties"]) == schema["required"] == ["rationale", "score"]
    assert schema["properties"]["score"]["enum"] == [0, 1, 2]


# Rating tokens


@pytest.mark.parametrize("kind", KINDS)
def test_each_score_is_the_token_that_follows_the_prompt(kind: str) -> None:
    t = tokenizer(kind)
    rubric = load_rubric("persona")
    ids = rating_token_ids(t, rubric)
    assert len(set(ids)) == 5
    prompt = encode_chat(t, judge_segments(rubric, "Hi", "Hello", "A", "stance", "up", "logprob"))
    before = t.decode(prompt)
    assert [t.decode([*prompt, i]) for i in ids] == [f"{before}{score}" for score in rubric.scale]


def test_long_scales_need_structured_mode() -> None:
    rubric = replace(load_rubric("toyworld"), scale=tuple(range(1, 11)))
    with pytest.raises(ConfigError, match=r"scale ends at 10.*judging\.mode to structured"):
        rating_token_ids(tokenizer("chatml"), rubric)


def test_scores_that_are_no_tokens_are_refused() -> None:
    glued = copy.deepcopy(tokenizer("chatml"))
    glued.chat_template = "{{ messages[0]['content'] }}Score 1"
    glued.add_tokens(["13"])
    with pytest.raises(ConfigError, match=r"the score 3 is not one token.*structured"):
        rating_token_ids(glued, load_rubric("persona"))
