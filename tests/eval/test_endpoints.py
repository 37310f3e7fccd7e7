"""Judging and generating through endpoints as they are: what is adapted, what stops a run, and what is never told."""

from __future__ import annotations

import json
import traceback
from base64 import b64encode
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from pydantic import ValidationError
from rich.console import Console
from typer.testing import CliRunner

from dpeer.errors import ClusterError
from dpeer.eval.backends.config import Served
from dpeer.eval.backends.openai import endpoint as openai_backend
from dpeer.eval.backends.openai.endpoint import score_logprobs
from dpeer.eval.backends.openai.faults import fault
from dpeer.eval.backends.openai.parameters import Dialect, adapted
from dpeer.eval.config import EvalConfig
from dpeer.eval.generate import generate
from dpeer.eval.judge import judge
from dpeer.eval.plan import plan
from dpeer.eval.prices import load_prices, price_of
from dpeer.eval.store.parts import read_table
from dpeer.eval.store.schema import RESPONSES
from dpeer.integrity import read_state
from dpeer.launcher.cli import app
from tests.eval.evaluations import no_ray, write_responses
from tests.eval.test_generate import evaluation as generation

QUIET = Console(file=StringIO())
SENT = {
    "model": "m",
    "messages": [],
    "max_tokens": 9,
    "temperature": 0.0,
    "top_p": 1.0,
    "seed": 1,
    "logprobs": True,
    "top_logprobs": 20,
    "response_format": {},
}


def evaluation(folder: Path, url: str, items: int = 5, mode: str = "structured", **judging: Any) -> EvalConfig:
    served = {"path": "m", "backend": "openai", "base_url": url, "family": "x", "api_key_env": "JUDGE_KEY"}
    values = {
        "name": "test",
        "output_dir": str(folder),
        "responses": str(write_responses(folder / "responses.jsonl", items)),
        "judges": [{"name": n, **served, "revision": n} for n in ("j1", "j2")],
        "judging": {"rubric": "toyworld", "mode": mode, **judging},
    }
    return EvalConfig.model_validate(values)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
            {"limit": "max_completion_tokens"},
        ),
        (
            "Unsupported value: 'temperature' does not support 0. Only the default (1) value is supported.",
            {"dropped": frozenset({"temperature", "top_p"})},
        ),
        ("`temperature` and `top_p` cannot both be specified for this model.", {"dropped": frozenset({"top_p"})}),
        ("Range of top_p should be (0.0, 1.0)", {"dropped": frozenset({"top_p"})}),
        ("seed: Extra inputs are not permitted", {"dropped": frozenset({"seed"})}),
        ("Requested sample logprobs of 20, which is greater than max allowed: 5", {"top": 5}),
        ("Invalid value for 'top_logprobs': must be between 0 and 8", {"top": 8}),
        ("top_logprobs is too large", {"top": 5}),
        ("This response_format type is unavailable now", {"form": "json_object"}),
        ("'response_format.type' json_schema is not supported", {"form": "json_object"}),
        ("max_tokens is too large: 9", None),
        ("logprobs are not supported with this model", None),
        ("I do not like this one", None),
    ],
)
def test_a_refused_parameter_changes_the_dialect(message: str, change: dict[str, Any] | None) -> None:
    refusal = fault(400, {"message": message})
    assert adapted(Dialect(), refusal, SENT, {}) == (Dialect(**change) if change else None)
    if change:
        own = {"max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "top_logprobs", "response_format"}
        assert adapted(Dialect(), refusal, SENT, dict.fromkeys(own | {"logprobs"})) is None, (
            "what the recipe says stays"
        )


def test_where_the_recipe_gives_one_of_two_that_exclude_each_other_the_other_goes() -> None:
    refusal = fault(400, {"message": "`temperature` and `top_p` cannot both be specified for this model."})
    learnt = adapted(Dialect(), refusal, SENT, {"top_p": 0.9})
    assert learnt == Dialect(dropped=frozenset({"temperature"}))
    assert adapted(learnt, refusal, SENT, {"top_p": 0.9}) is None, "nothing is left to change"


def test_an_endpoint_of_a_reasoning_model_is_used_and_its_wishes_said_once(
    tmp_path: Path, endpoint: tuple[Any, str]
) -> None:
    """Every wish is learnt by one refusal per request under way, said once, and kept in the manifest."""
    state, url = endpoint

    def picky(request: dict[str, Any]) -> tuple[int, Any]:
        if "max_tokens" in request:
            return 400, {"error": {"message": "Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead."}}
        if request.get("temperature", 1) != 1:
            return 400, {
                "error": {"message": "'temperature' does not support 0 with this model", "param": "temperature"}
            }
        form = request.get("response_format", {}).get("type")
        if form in ("json_schema", "json_object"):
            return 400, {"error": {"message": f"response_format {form} is not supported"}}
        status, reply = state.reply('```json\n{"rationale": "So.", "score": 4}\n```')
        reply["choices"][0]["message"]["reasoning_content"] = "Hm."
        return status, reply

    state.decide = picky
    cfg = evaluation(tmp_path, url)
    extra = {"reasoning_budget": 1000, "request": {"reasoning_effort": "low", "seed_": None}}
    cfg = cfg.model_copy(update={"judges": (cfg.judges[0].model_copy(update=extra), cfg.judges[1])})
    text = StringIO()
    table = pd.read_parquet(judge(cfg, no_ray, console=Console(file=text, width=400)))
    assert set(table["status"]) == {"ok"} and set(table["score"]) == {4} and set(table["thoughts"]) == {"Hm."}
    taken = [r for r in state.requests if "max_completion_tokens" in r and "response_format" not in r]
    limits = {(r["max_completion_tokens"], r.get("reasoning_effort")) for r in taken}
    assert limits == {(1512, "low"), (512, None)}
    said = [line for line in text.getvalue().splitlines() if "From now on" in line]
    assert len(said) == 2 * 4 and "max_completion_tokens in place of max_tokens" in said[0]
    kept = read_state(cfg.folder / "ratings" / "manifest.json", "")["models"]["j1"]["said"]
    assert sorted(kept) == sorted(line for line in said if line.startswith("j1:"))
    plain = evaluation(tmp_path, url)
    assert set(plan(plain).rows["rating_id"]) != set(plan(cfg).rows["rating_id"]), "another request, other ratings"


def test_what_a_request_may_not_say() -> None:
    for wrong in ({"model": "x"}, {"messages": []}, {"stream": True}, {"api_key": "sk-0123456789"}):
        with pytest.raises(ValidationError, match="request") as caught:
            Served.model_validate({"name": "j", "path": "p", "request": wrong})
        assert "dpeer's own" in str(caught.value) or "looks like a key" in str(caught.value)


def refuses(state: Any) -> tuple[int, Any]:
    status, reply = state.reply("")
    reply["choices"][0]["message"] = {"role": "assistant", "content": None, "refusal": "I cannot rate this."}
    return status, reply


@pytest.mark.parametrize(
    ("mode", "reply", "status", "words"),
    [
        ("structured", lambda s: s.reply("I would say four."), "unparsed", "does not give the JSON"),
        ("structured", refuses, "refused", "I cannot rate this.*it declines"),
        ("structured", lambda s: (400, {"error": {"message": "no"}}), "engine_error", "no"),
        ("logprob", lambda s: s.reply("x", [("x", -0.1)]), "low_mass", "judging.mode=structured"),
        ("logprob", lambda s: (400, {"error": {"code": "content_filter"}}), "engine_error", "content_filter"),
    ],
)
def test_a_judge_without_a_usable_rating_is_no_success(
    tmp_path: Path,
    endpoint: tuple[Any, str],
    mode: str,
    reply: Callable[[Any], tuple[int, Any]],
    status: str,
    words: str,
) -> None:
    state, url = endpoint
    state.decide = lambda request: reply(state)
    cfg = evaluation(tmp_path, url, mode=mode)
    with pytest.raises(ClusterError, match=rf"j1: none of 40 rows is usable \(40 {status}: .*{words}"):
        judge(cfg, no_ray, console=QUIET)
    assert set(read_table(cfg.folder / "ratings")["status"]) == {status}
    if status == "engine_error" and words == "content_filter":
        return
    long = evaluation(tmp_path, url, 40, mode).model_copy(update={"name": "long"})
    with pytest.raises(ClusterError, match="more than 20 conversations in a row"):
        judge(long, no_ray, console=QUIET)
    assert read_table(long.folder / "ratings").empty, "the same command asks for these again"
    state.decide, asked = state.rate, len(state.requests)
    assert set(pd.read_parquet(judge(long, no_ray, console=QUIET))["status"]) == {"ok"}
    assert 0 <= len(state.requests) - asked - 2 * 2 * 40 * 4 <= openai_backend.AT_ONCE, "and those then under way"


def test_refusals_and_thoughts_of_models_under_test(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    state, url = endpoint

    def decide(request: dict[str, Any]) -> tuple[int, Any]:
        text = request["messages"][-1]["content"]
        if "Question 1?" in text:
            return refuses(state)
        if "Question 2?" in text:
            return state.reply("<think>never ends")
        return state.reply("<think>\nHm.\n</think>\n\nA plain answer.")

    state.decide = decide
    text = StringIO()
    cfg = generation(tmp_path, url, generation={})
    table = read_table(generate(cfg, no_ray, console=Console(file=text, width=200)), RESPONSES).set_index("prompt")
    assert table["status"].value_counts().to_dict() == {"ok": 10, "truncated": 2}
    assert set(table.loc["Question 1?", "response"]) == {"I cannot rate this."}
    assert table["refused"].sum() == 2 and table.loc["Question 1?", "refused"].all()
    assert table.loc["Question 2?", "response"].isna().all() and set(table.loc["Question 2?", "thoughts"]) == {
        "never ends"
    }
    assert set(table.loc["Question 3?", "response"]) == {"A plain answer."}
    assert set(table.loc["Question 3?", "thoughts"]) == {"Hm."} and "10 responses came with thoughts" in text.getvalue()


def test_vocabulary_marks_are_blanks() -> None:
    assert score_logprobs([("\u2581" + "3", -0.5), ("\u0120" + "4", -1.5), ("\u010a" + "2", -2.5)], (2, 3, 4)) == (
        -2.5,
        -0.5,
        -1.5,
    )


def test_prices(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "models: {gpt-4o: {input: 9, output: 1}, mine: {input: 1, output: 2, cached: 0}}\n"
    )
    table = load_prices(tmp_path / "p.yaml")

    def price(path: str, backend: str = "openai", url: str | None = "https://host/v1") -> Any:
        return price_of(table, Served(name="j", path=path, backend=backend, base_url=url))

    assert price("gpt-4o").of(2e6, 0, 1e6) == 19 and price("openai/gpt-4o-2024-08-06") == price("gpt-4o")
    assert price("gpt-4o-mini").of(1e6, 1e6, 0) == 0.075 and price("mine").of(2e6, 1e6, 1e6) == 3
    assert price("gpt-4o", "openai-batch").of(2e6, 0, 1e6) == 9.5
    assert price("gpt-4o-audio") is None and price("nobody") is None
    assert price("nobody", url="http://127.0.0.1:8000/v1").of(1e6, 0, 1e6) == 0


def test_a_plan_says_its_price(tmp_path: Path) -> None:
    cfg = evaluation(tmp_path, "https://host/v1")
    (tmp_path / "p.yaml").write_text("models: {m: {input: 1, output: 100}}\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(cfg.model_dump(mode="json", exclude_unset=True)))
    asked = ["judge", str(recipe), "--plan-only"]
    said = " ".join(CliRunner().invoke(app, asked).output.split())
    assert "The price of j1 is not known" in said
    said = " ".join(
        CliRunner().invoke(app, [*asked, "--set", f"prices={tmp_path / 'p.yaml'}", "--set", "budget=7"]).output.split()
    )
    least = 2 * 40 * 512 * 100 / 1e6
    assert f"Price: at most about {least:.1f}"[:-1] in said and "the budget is 7.00 USD" in said, said


def test_a_plan_of_responses_says_its_price(tmp_path: Path) -> None:
    """6 prompts of two models, 3 samples of at most 40 tokens each at 100 a million."""
    cfg = generation(tmp_path, "https://host/v1")
    (tmp_path / "p.yaml").write_text("models: {gpt-x: {input: 0, output: 100}}\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(cfg.model_dump(mode="json", exclude_unset=True)))
    asked = ["generate", str(recipe), "--plan-only", "--set", f"prices={tmp_path / 'p.yaml'}"]
    said = " ".join(CliRunner().invoke(app, asked).output.split())
    assert "x: 18 responses to make" in said and "at most 720 of answers" in said
    assert "at most about 0.072 USD" in said and "The price of y is not known" in said, said


SECRETS = ("sk-planted-0123456789abcdef", "planted-pass-word")


def test_planted_secrets_are_in_nothing_that_is_written_or_said(
    tmp_path: Path, endpoint: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key and credentials come back in answers, errors, thoughts, names and from the HTTP library itself."""
    state, url = endpoint
    key, password = SECRETS
    monkeypatch.setenv("JUDGE_KEY", key)
    monkeypatch.setattr(openai_backend.time, "sleep", lambda seconds: None)
    echo = f"Bearer {key} via http://user:{password}@proxy.example:8080/ {b64encode(f':{key}'.encode()).decode()}"

    def decide(request: dict[str, Any]) -> tuple[int, Any]:
        number = len(state.requests) % 7
        if number == 0:
            return 400, {"error": {"message": echo}}
        if number == 1:
            return 400, {"error": {"message": f"'top_p' is not supported {echo}"}}
        if number == 2:
            return 500, echo
        status, reply = state.reply(json.dumps({"rationale": echo, "score": 4}))
        reply["model"] = echo
        reply["choices"][0]["message"]["reasoning_content"] = echo
        if number == 3:
            reply["choices"][0]["message"] = {"content": None, "refusal": echo}
        if number == 4:
            reply["choices"][0]["finish_reason"] = echo
        return status, reply

    state.decide = decide
    text = StringIO()
    cfg = evaluation(tmp_path, url)
    table = pd.read_parquet(judge(cfg, no_ray, console=Console(file=text, width=400)))
    assert {"ok", "refused", "engine_error"} <= set(table["status"])
    assert "<key>" in str(table["error"].tolist()) and "<credentials>" in str(table["rationale"].tolist())

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            raise OSError(echo)
        except OSError as error:
            raise httpx.ConnectError(f"proxy said: {echo}") from error

    monkeypatch.setattr(httpx.Client, "request", broken)
    said = text.getvalue()
    with pytest.raises(ClusterError, match="cannot be reached") as caught:
        judge(cfg.model_copy(update={"name": "gone"}), no_ray, console=QUIET)
    said += "".join(traceback.format_exception(caught.value))
    with pytest.raises(ValidationError) as wrong:
        Served.model_validate({"name": "j", "path": "p", "api_key_env": key})
    said += str(wrong.value).replace(f"input_value='{key}'", "")
    kept = [p for p in tmp_path.rglob("*") if p.is_file()]
    frames = [pd.read_parquet(p).to_csv() for p in kept if p.suffix == ".parquet"]
    everything = [said, *frames, *(p.read_bytes().decode("latin-1") for p in kept)]
    assert len(kept) > 4 and "manifest.json" in {p.name for p in kept}
    forms = (*SECRETS, b64encode(key.encode()).decode().rstrip("="), b64encode(f":{key}".encode()).decode().rstrip("="))
    assert not [form for form in forms for written in everything if form in written]
