"""Responses: planned once, asked for once, and the same whatever was interrupted."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dpeer.errors import ConfigError
from dpeer.eval.backends.types import Answer, Call, Method
from dpeer.eval.config import EvalConfig, Served
from dpeer.eval.generate import generate
from dpeer.eval.prices import FREE, Price
from dpeer.eval.questions.prompting import Segment
from dpeer.eval.responses import load_responses, planned_responses
from dpeer.eval.spending import Affordable
from dpeer.eval.store.parts import parts, read_table
from dpeer.eval.store.schema import RESPONSES

SAMPLING = {"samples": 3, "temperature": 0.7, "max_tokens": 40, "system": "Be kind."}
QUIET = Console(file=StringIO())


def evaluation(folder: Path, url: str, **changes: Any) -> EvalConfig:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(6)))
    values = {
        "name": "test",
        "output_dir": str(folder),
        "prompts": {"path": str(prompts)},
        "models": [
            {"name": n, "path": f"gpt-{n}", "backend": "openai", "base_url": url, "api_key_env": "ABSENT"} for n in "xy"
        ],
        "generation": SAMPLING,
    }
    return EvalConfig.model_validate(values | changes)


def no_ray() -> Any:
    raise AssertionError("Ray was started for nothing")


def test_every_sample_of_every_model_is_asked_for_once(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    state.decide = lambda request: state.reply(f"seed {request['seed']}")
    cfg = evaluation(tmp_path, url)
    folder = generate(cfg, no_ray, console=QUIET)
    table = read_table(folder, RESPONSES)
    assert len(table) == 2 * 6 * 3 and set(table["response_id"]) == set(planned_responses(cfg)["response_id"])
    assert (table.groupby(["model", "item"])["sample"].agg(set).map(frozenset) == frozenset({0, 1, 2})).all()
    assert table["response"].nunique() == len(table), "every sample has a seed of its own"
    request = state.requests[0]
    assert request["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (request["temperature"], request["max_tokens"]) == (0.7, 40)
    asked = len(state.requests)
    generate(cfg, no_ray, console=QUIET)
    assert len(state.requests) == asked
    removed = next(p for p in parts(folder))
    before = table.set_index("response_id")["response"].to_dict()
    removed.unlink()
    generate(cfg, no_ray, console=QUIET)
    assert read_table(folder, RESPONSES).set_index("response_id")["response"].to_dict() == before
    assert {m["family"] for m in table[["family"]].to_dict("records")} == {"gpt"}


def test_more_samples_keep_the_old_ones_and_another_sampling_none(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    fewer = set(planned_responses(evaluation(tmp_path, url))["response_id"])
    assert fewer < set(
        planned_responses(evaluation(tmp_path, url, generation=SAMPLING | {"samples": 5}))["response_id"]
    )
    for change in (
        {"seed": 1},
        {"generation": SAMPLING | {"temperature": 0.5}},
        {"generation": SAMPLING | {"system": None}},
    ):
        assert fewer.isdisjoint(planned_responses(evaluation(tmp_path, url, **change))["response_id"])
    assert not state.requests


def test_cut_and_failed_responses_are_rows_and_only_failed_ones_are_not_judged(
    tmp_path: Path, endpoint: tuple[Any, str]
) -> None:
    state, url = endpoint

    def moody(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = request["messages"][-1]["content"]
        if "Question 1?" in text:
            return 400, {"error": {"message": "no"}}
        status, reply = state.reply("A long\x00 answer")
        reply["choices"][0]["finish_reason"] = "length" if "Question 2?" in text else "stop"
        return status, reply

    state.decide = moody
    cfg = evaluation(tmp_path, url)
    table = read_table(generate(cfg, no_ray, console=QUIET), RESPONSES)
    assert table["status"].value_counts().to_dict() == {"ok": 24, "truncated": 6, "engine_error": 6}
    assert table[table["status"] != "engine_error"]["response"].unique().tolist() == ["A long␀ answer"]
    kept, notes = load_responses(cfg)
    assert len(kept) == 30 and "6 responses failed" in notes[0]
    state.decide, asked = state.rate, len(state.requests)
    again = read_table(generate(cfg, no_ray, retry_errors=True, console=QUIET), RESPONSES)
    assert len(state.requests) - asked == 12 and "engine_error" not in set(again["status"])


def test_a_response_cut_within_hidden_thoughts_is_none(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    state, url = endpoint

    def decide(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, reply = state.reply("" if "Question 1?" in request["messages"][-1]["content"] else "Yes.")
        reply["choices"][0]["finish_reason"] = "length"
        return status, reply

    state.decide = decide
    table = read_table(generate(evaluation(tmp_path, url), no_ray, console=QUIET), RESPONSES)
    silent = table[table["response"].isna()]
    assert set(silent["prompt"]) == {"Question 1?"} and len(silent) == 6 and silent["error"].str.contains("cut").all()


def test_texts_that_a_proven_model_always_refuses_do_not_end_a_second_try(
    tmp_path: Path, endpoint: tuple[Any, str]
) -> None:
    """25 of 50, which then stand in a row."""
    state, url = endpoint
    cfg = evaluation(tmp_path, url, generation=SAMPLING | {"samples": 1})
    lines = "".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(50))
    (tmp_path / "prompts.jsonl").write_text(lines)
    cfg = cfg.model_copy(update={"models": cfg.models[:1]})

    def decide(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        odd = int(request["messages"][-1]["content"].split()[1][:-1]) % 2
        return (400, {"error": {"message": "no"}}) if odd else state.reply("Yes.")

    state.decide = decide
    before = read_table(generate(cfg, no_ray, console=QUIET), RESPONSES)
    text = StringIO()
    again = read_table(generate(cfg, no_ray, retry_errors=True, console=Console(file=text, width=300)), RESPONSES)
    assert set(again["response_id"]) == set(before["response_id"]) and (again["status"] == "engine_error").sum() == 25
    assert "so the run goes on" in text.getvalue()


def test_answers_without_their_tokens_cost_the_forecast_and_free_ones_never_wait() -> None:
    served = Served.model_validate({"name": "m", "path": "m", "backend": "openai", "base_url": "http://h.example/v1"})
    asked = [Call(str(n), str(n), (Segment("Hello.", True),)) for n in range(50)]
    price, method = Price(0.0, 1e6, 0.0), Method("sample", max_tokens=2)  # 1 per token of an answer
    calls = Affordable(asked, method, served, price, left=10.0)
    given = list(calls)
    assert len(given) == 5 and calls.short and not calls.guessed
    assert calls.paid([Answer(call.id, "stop", "Hi.") for call in given]) == 10.0 and calls.guessed
    assert list(calls) == [], "a budget is a limit for an endpoint that tells no tokens"
    free = Affordable(asked, method, served, FREE, left=-1.0)
    assert len(list(free)) == 50 and not free.short


def test_models_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="models is empty"):
        generate(evaluation(tmp_path, "http://127.0.0.1:1", models=[]), no_ray, console=QUIET)
