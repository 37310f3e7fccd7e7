"""An endpoint that is busy, silent, moody, wrong or gone, and a person who has waited long enough."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from dpeer.errors import ClusterError, ConfigError
from dpeer.eval import config
from dpeer.eval.backends.openai import endpoint as openai_backend
from dpeer.eval.backends.openai.endpoint import answers
from dpeer.eval.backends.openai.secrets import without_secrets
from dpeer.eval.backends.types import Answer, Call, Job, Method
from dpeer.eval.questions.prompting import judge_segments
from dpeer.eval.questions.rubric import load_rubric

ROOT = Path(__file__).parents[2]
RUBRIC = load_rubric("toyworld")


def job(url: str, mode: Any = "logprob", **served: Any) -> Job:
    named = config.Served.model_validate(
        {"name": "j", "path": "p", "backend": "openai", "base_url": url, "api_key_env": "JUDGE_KEY"} | served
    )
    return Job(named, config.Engine(max_num_seqs=4), Method(mode, rubric=RUBRIC), "cpu")


def calls(count: int) -> list[Call]:
    def segments(n: int) -> Any:
        return judge_segments(RUBRIC, f"Number {n}.", "Yes.", "A", "clause", "up", "logprob")

    return [Call(f"{n:032x}", str(n), segments(n), seed=n) for n in range(count)]


def asked_about(request: dict[str, Any]) -> int:
    return int(request["messages"][-1]["content"].partition("Number ")[2].partition(".")[0])


def collect(batches: Iterator[list[Answer]]) -> list[Answer]:
    return [answer for batch in batches for answer in batch]


def test_what_was_answered_before_a_fault_is_handed_out_first(endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    state.decide = lambda r: state.rate(r) if asked_about(r) < 30 else (401, {"error": {"message": "expired"}})
    found: list[Answer] = []
    with pytest.raises(ClusterError, match="answers 401"):
        for batch in answers(job(url), calls(200)):
            found += batch
    # Those under way beside the refused one may be lost, no other.
    assert 27 <= len(found) <= 30 and {a.finish for a in found} == {"stop"}


def test_one_request_that_is_never_answered_is_a_row(endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    rate, lock, state.lock = state.rate, state.lock, threading.RLock()

    def decide(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if asked_about(request) == 3:
            state.lock.release()
            time.sleep(2)
            state.lock.acquire()
        return rate(request)

    state.decide = decide
    found = {a.id: a for a in collect(answers(job(url), calls(8), timeout_s=0.4))}
    state.lock = lock
    assert len(found) == 8
    assert [a.id for a in found.values() if a.finish == "error"] == [f"{3:032x}"]
    assert "timed out" in str(found[f"{3:032x}"].error)


def test_a_busy_endpoint_is_waited_for_as_long_as_it_says(
    endpoint: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, url = endpoint
    pauses: list[float] = []
    monkeypatch.setattr(openai_backend.time, "sleep", pauses.append)
    busy = 429, {"error": {"message": "slow down"}}
    state.decide = lambda r: busy if len(state.requests) < 40 else state.rate(r)
    assert len(collect(answers(job(url), calls(3)))) == 3
    assert max(pauses) > 8, "longer than for a passing fault"
    state.decide = lambda r: (429, {"error": {"message": "no money", "code": "insufficient_quota"}})
    with pytest.raises(ClusterError, match=r"answers 429 \(.*no money"):
        collect(answers(job(url), calls(3)))
    monkeypatch.setattr(openai_backend, "PATIENCE_S", -1.0)
    state.decide = lambda r: busy
    with pytest.raises(ClusterError, match=r"answers 429 \(.*slow down"):
        collect(answers(job(url), calls(3)))


def test_an_endpoint_that_refuses_whatever_it_is_sent_stops_the_run(endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    state.decide = lambda r: (400, {"error": {"message": "Unsupported parameter: 'max_tokens'"}})
    found: list[Answer] = []
    with pytest.raises(ClusterError, match=r"refuses every request: .*'max_tokens'"):
        for batch in answers(job(url), calls(500)):
            found += batch
    assert len(found) <= openai_backend.GIVE_UP + 8 and len(state.requests) < 50
    state.decide = lambda r: state.rate(r) if asked_about(r) % 4 == 0 else (400, {"error": {"message": "no"}})
    assert len(collect(answers(job(url), calls(100)))) == 100, "many refusals between answers are rows"


@pytest.mark.parametrize("status", [413, 400])
def test_texts_that_are_too_long_for_the_endpoint_are_rows(endpoint: tuple[Any, str], status: int) -> None:
    state, url = endpoint
    state.decide = lambda r: (status, {"error": {"message": "too large: maximum context length is 9"}})
    found = collect(answers(job(url), calls(40)))
    assert [a.finish for a in found] == ["too_long"] * 40


def test_an_answer_that_a_filter_ended_is_a_row(endpoint: tuple[Any, str]) -> None:
    """It carries no log-probabilities, which is no reason to think that the endpoint never gives any."""
    state, url = endpoint

    def decide(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, reply = state.rate(request)
        if asked_about(request) == 0:
            reply["choices"][0] |= {"finish_reason": "content_filter", "logprobs": None}
        if asked_about(request) == 9:
            reply["choices"][0]["logprobs"] = None
        if asked_about(request) == 5:
            reply["choices"][0]["finish_reason"] = "eos"
        return status, reply

    state.decide = decide
    found = {int(a.id, 16): a for a in collect(answers(job(url), calls(10)))}
    assert found[0].finish == "filtered" and "content_filter" in str(found[0].error)
    assert found[9].finish == "error" and "no log-probabilities" in str(found[9].error)
    assert {found[n].finish for n in range(1, 9)} == {"stop"}


def test_seeds_fit_into_31_bits(endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    collect(answers(job(url), [Call("0" * 32, "0", calls(1)[0].segments, seed=2**32 - 1)]))
    assert state.requests[0]["seed"] == 2**31 - 1


def test_a_place_that_is_no_endpoint_is_said(endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    state.decide = lambda r: (200, "welcome")
    with pytest.raises(ClusterError, match=r"gives no chat completion; base_url usually ends with /v1"):
        collect(answers(job(url), calls(2)))


def test_a_closed_port_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_backend.time, "sleep", lambda seconds: None)
    with pytest.raises(ClusterError, match=r"http://127\.0\.0\.1:9/v1 cannot be reached \(.*refused"):
        collect(answers(job("http://127.0.0.1:9/v1"), calls(2)))


def test_keys(endpoint: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    state, url = endpoint
    monkeypatch.setenv("JUDGE_KEY", " sk-secret\n")  # as `export KEY=$(cat file)` of a file with Windows line ends
    collect(answers(job(url), calls(1)))
    assert state.keys == {"Bearer sk-secret"}
    for wrong in ("sk\nsecret", "sk-secr\u0435t"):
        monkeypatch.setenv("JUDGE_KEY", wrong)
        with pytest.raises(ConfigError, match="JUDGE_KEY holds characters that no key has") as caught:
            collect(answers(job(url), calls(1)))
        assert "sec" not in str(caught.value)
    monkeypatch.delenv("JUDGE_KEY")
    state.decide = lambda r: (401, {"error": {"message": "no key"}})
    with pytest.raises(ClusterError, match="the environment variable JUDGE_KEY holds no key"):
        collect(answers(job(url), calls(1)))


@pytest.mark.parametrize("key", ["sk-secret-0123456789", "sk/sec+ret=0123456"])
def test_a_key_that_the_endpoint_echoes_reaches_neither_rows_nor_messages(
    endpoint: tuple[Any, str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    state, url = endpoint
    monkeypatch.setenv("JUDGE_KEY", key)

    def decide(request: dict[str, Any]) -> tuple[int, Any]:
        (header,) = state.keys
        echoes = [header, json.dumps(header), quote(header), b64encode(header[7:].encode()).decode()]
        if asked_about(request) == 1:
            return 400, {"error": {"message": " ".join(echoes)}}
        if asked_about(request) == 9:
            return 401, {"error": {"message": " ".join(echoes)}}
        message = {"role": "assistant", "content": " ".join(["x" * 600, *echoes])}
        choice = {"index": 0, "message": message, "finish_reason": header if asked_about(request) == 2 else "stop"}
        ends = {"id": "0", "object": "chat.completion", "created": 0, "model": header, "choices": [choice]}
        return 200, ends

    state.decide = decide
    found = collect(answers(job(url, "sample"), calls(4)))
    assert [a.finish for a in sorted(found, key=lambda a: a.id)] == ["stop", "error", "error", "stop"]
    with pytest.raises(ClusterError, match="answers 401") as caught:
        collect(answers(job(url, "sample"), calls(10)[9:]))
    for said in (*map(repr, found), str(caught.value)):
        assert "<key>" in said
        assert not any(part in said for part in ("sec", "0123", *(b64encode(key.encode()).decode(),)))


def test_a_short_stand_in_for_a_key_is_no_secret() -> None:
    assert without_secrets("none of them, EMPTY", "none") == "none of them, EMPTY"
    assert without_secrets("Bearer abcdefgh.", "abcdefgh") == "Bearer <key>."


@pytest.mark.parametrize(
    "url", ["https://user:pa55@host/v1", "https://host/v1?key=pa55", "https://pa55@host/v1", "http://h/v1#pa55"]
)
def test_credentials_in_an_address_are_refused_without_repeating_them(url: str, tmp_path: Path) -> None:
    from dpeer.config_io import load_section

    (tmp_path / "r.yaml").write_text(f"{{name: j, path: p, backend: openai, base_url: '{url}'}}")
    with pytest.raises(ConfigError, match="base_url holds more than an address") as caught:
        load_section(config.Served, tmp_path / "r.yaml")
    assert "pa55" not in str(caught.value) and "api_key_env" in str(caught.value)


WAITING = """
import sys
from dpeer.errors import Interrupted
from dpeer.launcher.signals import Signals
from tests.eval.test_openai_backend import answers, calls, job
print("ready", flush=True)
try:
    with Signals():
        for batch in answers(job(sys.argv[1]), calls(20)):
            print("got", len(batch), flush=True)
except Interrupted as stopped:
    print("stopped", stopped.code, flush=True)
"""


def test_a_signal_hands_out_what_came_and_waits_for_nothing(endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    rate, held, answered = state.rate, threading.Event(), threading.Semaphore(0)

    def decide(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if asked_about(request) >= 5:
            answered.release()
            state.lock.release()
            held.wait(100)
            state.lock.acquire()
        return rate(request)

    state.decide = decide
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, url], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        for _ in range(4):  # every place is taken by a request that is never answered
            assert answered.acquire(timeout=100)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        held.set()
        process.kill()
    assert output.split() == ["ready", "got", "5", "stopped", "143"] and process.returncode == 0
