"""What endpoints say: every reply becomes an answer or a fault, and none an exception."""

from __future__ import annotations

import json
import math
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from dpeer.eval.backends.openai.faults import Fault, fault
from dpeer.eval.backends.openai.replies import Reply, parse, pause_s
from dpeer.eval.questions.thoughts import opened, thoughts_apart

TOP = [("3", -0.2), ("4", -1.9), ("I", -8.0)]


def whole(**choice: Any) -> dict[str, Any]:
    listed = [{"token": t, "logprob": p, "bytes": None} for t, p in TOP]
    given = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "Yes."},
        "logprobs": {"content": [{"token": "3", "logprob": -0.2, "bytes": None, "top_logprobs": listed}]},
    }
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
    return {"id": "x", "object": "chat.completion", "model": "m", "usage": usage, "choices": [given | choice]}


def read(value: Any, status: int = 200) -> Reply | Fault:
    return parse(status, {}, value if isinstance(value, bytes) else json.dumps(value).encode())


def test_a_plain_answer() -> None:
    assert read(whole()) == Reply("Yes.", "stop", None, None, tuple(TOP), "m", 9, 8, 4, None)


@pytest.mark.parametrize(
    ("message", "text", "thoughts"),
    [
        ({"content": [{"type": "text", "text": "Yes"}, {"type": "text", "text": "."}]}, "Yes.", None),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"text": "Yes."}]},
            "Yes.",
            "Hm.",
        ),
        ({"content": "Yes.", "reasoning_content": "Hm."}, "Yes.", "Hm."),
        ({"content": "Yes.", "reasoning": "Hm.", "reasoning_details": [{"text": "Hm."}]}, "Yes.", "Hm."),
        ({"content": "Yes.", "refusal": None, "tool_calls": None}, "Yes.", None),
        ({"content": ""}, "", None),
    ],
)
def test_texts_and_thoughts(message: Any, text: str, thoughts: str | None) -> None:
    reply = read(whole(message=message))
    assert isinstance(reply, Reply) and (reply.text, reply.thoughts, reply.finish) == (text, thoughts, "stop")


@pytest.mark.parametrize(
    ("choice", "finish", "text"),
    [
        ({"message": {"content": None, "refusal": "I cannot."}}, "refusal", "I cannot."),
        ({"message": {"content": [{"type": "refusal", "refusal": "I cannot."}]}}, "refusal", "I cannot."),
        ({"message": {"content": "I will not."}, "finish_reason": "refusal"}, "refusal", "I will not."),
        ({"message": None, "finish_reason": "content_filter: OTHER"}, "filtered", ""),
        ({"finish_reason": "SAFETY"}, "filtered", "Yes."),
        ({"finish_reason": "MAX_TOKENS"}, "length", "Yes."),
        ({"finish_reason": None}, "stop", "Yes."),
        ({"finish_reason": "end_turn"}, "stop", "Yes."),
        ({"finish_reason": "tool_calls", "message": {"content": None, "tool_calls": [{}]}}, "error", ""),
        ({"finish_reason": "a new word"}, "error", "Yes."),
    ],
)
def test_ends(choice: Any, finish: str, text: str) -> None:
    reply = read(whole(**choice))
    assert isinstance(reply, Reply) and (reply.finish, reply.text) == (finish, text)
    assert (reply.error is None) == (finish not in ("error", "filtered"))


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"code": "context_length_exceeded", "message": "no"}, "too_long"),
        (400, {"message": "prompt is too long: 210000 tokens > 200000 maximum"}, "too_long"),
        (
            400,
            {"message": "it exceeds the available context size", "type": "exceed_context_size_error"},
            "too_long",
        ),
        (400, {"message": "This model's maximum context length is 2048 tokens. Please reduce the length"}, "too_long"),
        (400, {"message": "The input (9000 tokens) is longer than the model's context length (8192)."}, "too_long"),
        (400, {"message": "The input token count (9) exceeds the maximum number of tokens allowed (8)."}, "too_long"),
        (400, {"message": "Range of input length should be [1, 30720]"}, "too_long"),
        (400, {"message": "Input is too long for requested model."}, "too_long"),
        (413, "<html>Payload</html>", "too_long"),
        (400, {"message": "max_tokens is too large: 9. This model supports at most 8 completion tokens"}, "refused"),
        (429, {"message": "slow down"}, "busy"),
        (429, {"message": "You exceeded your current quota, per minute", "status": "RESOURCE_EXHAUSTED"}, "busy"),
        (529, {"message": "Overloaded", "type": "overloaded_error"}, "busy"),
        (503, {"message": "Loading model", "type": "unavailable_error"}, "busy"),
        (429, {"message": "no money", "code": "insufficient_quota"}, "credit"),
        (402, {"message": "Insufficient Balance"}, "credit"),
        (403, {"message": "Key limit exceeded (daily limit)", "code": 403}, "credit"),
        (400, {"message": "Your credit balance is too low to access the API."}, "credit"),
        (400, {"message": "filtered due to the content management policy", "code": "content_filter"}, "filtered"),
        (400, {"message": "Content Exists Risk"}, "filtered"),
        (403, {"message": "your input was flagged"}, "filtered"),
        (401, {"message": "wrong key"}, "key"),
        (403, {"message": "no access"}, "key"),
        (404, {"message": "no such model"}, "absent"),
        (502, "<html><h1>502 Bad Gateway</h1></html>", "passing"),
        (500, {}, "passing"),
        (400, {"message": "This response_format type is unavailable now"}, "refused"),
        (422, {"detail": [{"loc": ["body", "top_logprobs"], "msg": "Extra inputs are not permitted"}]}, "refused"),
    ],
)
def test_vendors_words(status: int, error: Any, kind: str) -> None:
    """By HTTP status, and as an error object inside a 200 that names it."""
    found = read({"error": error} if isinstance(error, dict) and "detail" not in error else error, status)
    assert isinstance(found, Fault) and found.kind == kind and found.message
    if isinstance(error, dict) and "detail" not in error:
        inside = read({"error": {"code": status} | error} if error else {"error": {"code": status}})
        expected = fault(None, error).kind if isinstance(error.get("code"), str) else kind
        assert isinstance(inside, Fault) and inside.kind in (kind, expected)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "passing"),
        (b'{"choices": [', "passing"),
        (b"<html>Please sign in</html>", "stranger"),
        (b'"3"', "stranger"),
        (b"null", "stranger"),
        (b'{"choices": {"0": {}}}', "stranger"),
        (b'{"choices": []}', "empty"),
        (b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}', "empty"),
        (b'{"choices": [{"error": {"message": "upstream timed out"}, "finish_reason": "error"}]}', "passing"),
        (b'{"error": {"message": "Provider returned error: credits are used up", "code": 402}}', "credit"),
        (b'{"error": "something"}', "passing"),
        (b'{"object": "error", "message": "maximum context length is 9", "code": 400}', "too_long"),
        (b"[" * 100_000, "stranger"),
    ],
)
def test_no_answer_inside_a_200(body: bytes, kind: str) -> None:
    found = read(body)
    assert isinstance(found, Fault) and found.kind == kind


def test_a_stream_that_nobody_asked_for() -> None:
    chunks = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": end}], "model": "m"}
        for text, end in (("Ye", None), ("s.", None), (None, "stop"))
    ]
    stream = ": hello\n\n" + "".join(f"data: {json.dumps(c)}\n\n" for c in chunks) + "data: [DONE]\n\n"
    reply = read(stream.encode())
    assert isinstance(reply, Reply) and (reply.text, reply.finish, reply.model) == ("Yes.", "stop", "m")


def test_log_probabilities_that_are_none_are_left_out() -> None:
    pairs = [("3", -0.2), ("1", None), ("2", "x"), (None, -1.0), ("4", True), ("5", -math.inf), ("6", 10**400)]
    listed = [{"token": t, "logprob": p} for t, p in pairs]
    reply = read(whole(logprobs={"content": [{"top_logprobs": listed}]}))
    assert isinstance(reply, Reply) and reply.top == (("3", -0.2),)


def test_how_long_an_endpoint_wants_to_be_left_alone() -> None:
    now = datetime(2015, 10, 21, 7, 27, 30, tzinfo=UTC)
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    given = ["2", date, "nan", "-5", "inf", "soon", "9" * 400]
    assert [pause_s({"retry-after": text}, now) for text in given] == [2.0, 30.0, 0.0, 0.0, 60.0, 0.0, 60.0]
    assert pause_s({"retry-after-ms": "1500", "retry-after": "9"}, now) == 1.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\na\n</think>\n\nYes.", ("Yes.", "a", True)),
        ("a</think>Yes.", ("Yes.", "a", True)),
        ("<think>a</think>b</think>Yes.", ("Yes.", "a</think>b", True)),
        ("<think>\n\n</think>\n\nYes.", ("Yes.", None, True)),
        ("<think>never ends", ("", "never ends", False)),
        ("[THINK]a[/THINK]Yes.", ("Yes.", "a", True)),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Yes.", None),
        ("Use <thinking> tags.", ("Use <thinking> tags.", None, True)),
        ("", ("", None, True)),
    ],
)
def test_thoughts_apart(text: str, expected: tuple[str, str | None, bool] | None) -> None:
    found = thoughts_apart(text)
    assert found == expected if expected else found[0] == "Yes." and found[2]


def test_a_mark_that_an_answer_speaks_of_parts_nothing() -> None:
    """Without an opening mark a closing one counts where it stands alone, or where the model is known to think."""
    spoken, alone = "End it by </think> and go on.", "Hm.\n</think>\n\nYes."
    shown = "Write:\n<think>\nHm.\n</think>\nThen answer."
    assert thoughts_apart(spoken, "alone") == (spoken, None, True)
    assert thoughts_apart(alone, "alone") == ("Yes.", "Hm.", True)
    assert thoughts_apart(alone, "never") == (alone, None, True)
    assert thoughts_apart(shown, "anywhere") == (shown, None, True)
    assert (opened("<|assistant|><think>\n"), opened("<think></think>\n\n")) == ("<think>", "")
    assert thoughts_apart(opened("<think>\n") + "Cut within", "never") == ("", "Cut within", False)


JUNK = (None, True, 0, -1, 1.5, 10**400, "", "x", "\ud800\0", [], {}, [None], {"": None}, [[[]]], "length", "</think>")


def mutated(value: Any, random_: random.Random) -> Any:
    """With one node, chosen at random, replaced, left out, doubled or wrapped."""
    if isinstance(value, dict) and value and random_.random() < 0.85:
        key = random_.choice(list(value))
        if random_.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: mutated(value[key], random_)}
    if isinstance(value, list) and value and random_.random() < 0.85:
        at = random_.randrange(len(value))
        return [*value[:at], mutated(value[at], random_), *value[at + random_.randrange(2) :]]
    return random_.choice([*JUNK, [value], {"text": value}, {"error": value}, str(value)])


def test_no_reply_raises() -> None:
    """5,000 replies, mutated in their values and in their bytes, under all statuses."""
    random_ = random.Random(7)
    seeds = [
        whole(),
        whole(message={"content": [{"type": "text", "text": "a"}], "reasoning_details": [{"text": "b"}]}),
        whole(message={"content": None, "refusal": "no"}),
        {"error": {"message": "no", "type": "t", "param": "p", "code": 402}},
        {"object": "error", "message": {"detail": [{"msg": "m", "loc": ["body"]}]}, "code": 422},
        {"choices": [{"finish_reason": "error", "error": {"message": "m", "code": "502"}, "message": {}}]},
    ]
    kinds = set()
    for _ in range(5000):
        value = random_.choice(seeds)
        for _ in range(random_.randrange(1, 4)):
            value = mutated(value, random_)
        body = json.dumps(value).encode()
        if random_.random() < 0.3:
            at = random_.randrange(len(body) + 1)
            body = body[:at] + random_.randbytes(random_.randrange(3)) + body[at + random_.randrange(9) :]
        if random_.random() < 0.1:
            body = b"data: " + body + b"\n\ndata: [DONE]\n\n"
        status = random_.choice((200, 200, 200, 400, 401, 403, 404, 422, 429, 500, 503, 529))
        found = parse(status, {"retry-after": random_.choice(("1", "x", "nan"))}, body)
        kinds.add(found.kind if isinstance(found, Fault) else found.finish)
        if isinstance(found, Reply):
            assert all(isinstance(t, str) and -math.inf < p <= 1 for t, p in found.top)
            assert isinstance(found.text, str) and status == 200
        else:
            found.message.encode()
    assert len(kinds) > 8
