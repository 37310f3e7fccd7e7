"""Answers become rows; judges behind an endpoint; a run with real engines that is killed twice."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow as pa
import pytest
from rich.console import Console

from dpeer.errors import ClusterError, ConfigError
from dpeer.eval.backends.openai.endpoint import score_logprobs
from dpeer.eval.backends.types import Answer
from dpeer.eval.config import EvalConfig
from dpeer.eval.judge import cost, judge, rated
from dpeer.eval.plan import plan
from dpeer.eval.questions.rubric import load_rubric
from dpeer.eval.store.parts import read_table, write_part
from dpeer.eval.store.schema import RATINGS, RESPONSES
from tests.eval.evaluations import evaluation, no_ray

ROOT = Path(__file__).parents[2]
RUBRIC = load_rubric("toyworld")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer("00" * 16, "stop", logprobs=(-0.1, -4.0, -4.0, -4.0, -5.0)), "ok"),
        (Answer("00" * 16, "stop", logprobs=(-5.0, -6.0, -6.0, -6.0, -6.0)), "low_mass"),
        (Answer("00" * 16, "too_long", error="700 prompt tokens", prompt_tokens=700), "truncated"),
        (Answer("00" * 16, "error", error="boom"), "engine_error"),
        (Answer("00" * 16, "stop"), "engine_error"),
    ],
)
def test_every_answer_becomes_a_row(tmp_path: Path, models: Path, answer: Answer, status: str) -> None:
    cfg = evaluation(tmp_path, models, judging={"rubric": "toyworld"})
    row = rated(answer, cfg, plan(cfg))
    assert row["status"] == status
    assert (row["score"] is None) == (status != "ok")
    assert row["error"] is not None or status == "ok"
    assert row["eager"] is None and rated(replace(answer, eager=True), cfg, plan(cfg))["eager"] is True


def test_compiled_code_is_recorded_and_asks_nothing_anew(tmp_path: Path, models: Path) -> None:
    """A rating keeps its id whether or not its engine was compiled, and tables from before the column are read."""
    ids = [
        plan(evaluation(tmp_path, models, judging={"rubric": "toyworld"}, engine={"eager": eager})).rows["rating_id"]
        for eager in (None, True, False)
    ]
    assert len(ids[0]) and ids[0].equals(ids[1]) and ids[0].equals(ids[2])
    before = pa.schema([field for field in RATINGS if field.name != "eager"])
    write_part(tmp_path / "old", [dict.fromkeys(before.names) | {"rating_id": "1", "status": "ok"}], before)
    write_part(tmp_path / "old", [dict.fromkeys(RATINGS.names) | {"rating_id": "2", "status": "ok", "eager": True}])
    assert read_table(tmp_path / "old").set_index("rating_id")["eager"].to_dict() == {"1": None, "2": True}


# An endpoint


def remote(folder: Path, models: Path, url: str, **changes: Any) -> EvalConfig:
    judges = [
        {"name": n, "path": f"served-{n}", "backend": "openai", "base_url": url, "api_key_env": "JUDGE_KEY"}
        for n in ("j1", "j2")
    ]
    return evaluation(folder, models, judges=judges, **changes)


@contextmanager
def recorded() -> Iterator[tuple[Console, StringIO]]:
    text = StringIO()
    yield Console(file=text, width=300), text


def test_an_endpoint_rates_every_planned_row_and_a_second_run_asks_nothing(
    tmp_path: Path, models: Path, endpoint: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, url = endpoint
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    cfg = remote(tmp_path, models, url, items=20)
    with recorded() as (console, text):
        table = pd.read_parquet(judge(cfg, no_ray, console=console))
    assert list(table.columns) == RATINGS.names
    assert set(table["rating_id"]) == set(plan(cfg).rows["rating_id"]) and len(table) == 2 * 2 * 20 * 4
    assert len(state.requests) == len(table) and state.keys == {"Bearer sk-very-secret"}
    assert set(table["status"]) == {"ok"} and set(table["score"]) == {4}
    row = table.iloc[0]
    assert row["mass"] == pytest.approx(0.96) and row["expected"] == pytest.approx((0.95 * 4 + 0.01 * 2) / 0.96)
    assert row["logprobs"][0] == -math.inf and row["engine"] == "openai served" and pd.isna(row["dtype"])
    assert {r["model"] for r in state.requests} == {"served-j1", "served-j2"}
    kept = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert kept and not any(b"sk-very-secret" in p.read_bytes() for p in kept) and "secret" not in text.getvalue()
    asked = len(state.requests)
    before = {p: p.stat().st_mtime_ns for p in kept if p.suffix == ".parquet"}
    judge(cfg, no_ray, console=console)
    assert len(state.requests) == asked and before == {p: p.stat().st_mtime_ns for p in before}


def test_a_family_that_is_corrected_marks_the_rows_that_are_there(
    tmp_path: Path, models: Path, endpoint: tuple[Any, str]
) -> None:
    state, url = endpoint
    quiet = Console(file=StringIO())
    guessed = pd.read_parquet(judge(remote(tmp_path, models, url), no_ray, console=quiet))
    asked = len(state.requests)
    tested = [{"name": n, "path": n, "backend": "openai", "base_url": url, "family": f"house-{n}"} for n in "xy"]
    cfg = EvalConfig.model_validate(remote(tmp_path, models, url).model_dump(mode="json") | {"models": tested})
    table = pd.read_parquet(judge(cfg, no_ray, console=quiet))
    assert len(state.requests) == asked and set(table["rating_id"]) == set(guessed["rating_id"])
    assert guessed["model_family"].isna().all() and (table["model_family"] == "house-" + table["model"]).all()
    (tmp_path / "test" / "ratings.parquet").write_bytes(b"PAR1 half a file")
    assert pd.read_parquet(judge(cfg, no_ray, console=quiet)).equals(table)
    assert len(state.requests) == asked


def test_the_time_of_a_plan_follows_from_an_earlier_run(
    tmp_path: Path, models: Path, endpoint: tuple[Any, str]
) -> None:
    """This endpoint does not say which tokens it had cached, so the speed is known in calls only."""
    _, url = endpoint
    with recorded() as (console, text):
        judge(remote(tmp_path, models, url, items=4), no_ray, console=console)
    assert "j1: 32 ok" in text.getvalue().splitlines()
    rates = json.loads((tmp_path / "test" / "ratings" / "rates.json").read_text())
    assert rates["j1/logprob"]["tokens"] is None and rates["j1/logprob"]["calls"] == 32
    cfg = remote(tmp_path, models, url, items=8)
    found = cost(cfg, plan(cfg)).set_index("judge")
    assert found.loc["j1", "calls"] == 32
    assert found.loc["j1", "seconds"] == pytest.approx(rates["j1/logprob"]["seconds"])


def test_a_plan_that_grows_asks_for_what_is_new_and_one_that_shrinks_leaves_rows_out(
    tmp_path: Path, models: Path, endpoint: tuple[Any, str]
) -> None:
    state, url = endpoint
    quiet = Console(file=StringIO())
    judge(remote(tmp_path, models, url, items=4), no_ray, console=quiet)
    asked = len(state.requests)
    judge(remote(tmp_path, models, url, items=6), no_ray, console=quiet)
    assert len(state.requests) - asked == 2 * 2 * 2 * 4
    asked = len(state.requests)
    with recorded() as (console, text):
        table = pd.read_parquet(judge(remote(tmp_path, models, url, items=5), no_ray, console=console))
    assert len(state.requests) == asked and len(table) == 2 * 2 * 5 * 4
    assert "16 ratings in " in text.getvalue() and "not of this plan" in text.getvalue()


def test_what_the_endpoint_refuses_is_a_row_and_can_be_asked_again(
    tmp_path: Path, models: Path, endpoint: tuple[Any, str]
) -> None:
    state, url = endpoint
    cfg = remote(tmp_path, models, url, judging={"rubric": "toyworld", "min_mass": 0.0, "dimensions": ["A", "T"]})

    def moody(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = request["messages"][0]["content"]
        if "Question 1?" in text:
            return 400, {"error": {"message": "I do not like this one", "code": "content_filter"}}
        if "Question 2?" in text:
            return 400, {"error": {"message": "too long", "code": "context_length_exceeded"}}
        return state.rate(request)

    state.decide = moody
    quiet = Console(file=StringIO())
    table = pd.read_parquet(judge(cfg, no_ray, console=quiet)).set_index("item")
    assert set(table.loc["q1", "status"]) == {"engine_error"} and "do not like" in table.loc["q1", "error"].iloc[0]
    assert set(table.loc["q2", "status"]) == {"truncated"}
    assert set(table.drop(["q1", "q2"])["status"]) == {"ok"}
    state.decide, asked = state.rate, len(state.requests)
    judge(cfg, no_ray, console=quiet)
    assert len(state.requests) == asked, "failed rows are rows; they are asked for again only on demand"
    again = pd.read_parquet(judge(cfg, no_ray, retry_errors=True, console=quiet))
    assert len(state.requests) - asked == 2 * 2 * 2 * 2
    assert set(again["status"]) == {"ok"} and set(again["rating_id"]) == set(table["rating_id"])
    assert len(read_table(cfg.folder / "ratings")) == len(again)
    stale = table.reset_index()[again.columns]  # as left by a run that was killed before it wrote the table
    stale.to_parquet(cfg.folder / "ratings.parquet", index=False)
    os.utime(cfg.folder / "ratings.parquet", (0, 0))
    assert set(pd.read_parquet(judge(cfg, no_ray, console=quiet))["status"]) == {"ok"}


def test_structured_answers_of_an_endpoint(tmp_path: Path, models: Path, endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    cfg = remote(tmp_path, models, url, judging={"rubric": "toyworld", "mode": "structured", "max_tokens": 99})
    table = pd.read_parquet(judge(cfg, no_ray, console=Console(file=StringIO())))
    assert set(table["status"]) == {"ok"} and set(table["score"]) == {4} and set(table["rationale"]) == {"It says so."}
    assert all(r["max_tokens"] == 99 and r["temperature"] == 0 for r in state.requests)
    assert state.requests[0]["response_format"]["json_schema"]["schema"]["required"] == ["rationale", "score"]


def test_an_endpoint_that_is_busy_for_a_moment_is_asked_again(
    tmp_path: Path, models: Path, endpoint: tuple[Any, str]
) -> None:
    state, url = endpoint
    state.decide = lambda r: state.rate(r) if len(state.requests) > 3 else (429, {"error": {"message": "slow down"}})
    table = pd.read_parquet(judge(remote(tmp_path, models, url), no_ray, console=Console(file=StringIO())))
    assert set(table["status"]) == {"ok"}
    assert len(state.requests) == len(table) + 3


def test_an_endpoint_that_refuses_everything_stops_the_run(
    tmp_path: Path, models: Path, endpoint: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, url = endpoint
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    state.decide = lambda r: (401, {"error": {"message": "Incorrect API key provided: sk-very-secret"}})
    quiet = Console(file=StringIO())
    with pytest.raises(ClusterError, match=r"answers 401 \(.*<key>\); the key is read from JUDGE_KEY") as caught:
        judge(remote(tmp_path, models, url), no_ray, console=quiet)
    assert "secret" not in str(caught.value)
    state.decide = lambda r: state.reply("4")
    with pytest.raises(ConfigError, match=r"gives no log-probabilities.*judging\.mode=structured"):
        judge(remote(tmp_path, models, url), no_ray, console=quiet)


def test_scores_among_the_likeliest_tokens() -> None:
    top = [("3", math.log(0.5)), (" 3", math.log(0.25)), ("13", math.log(0.1)), ("1\n", math.log(0.05))]
    found = score_logprobs(top, (1, 2, 3))
    assert found[0] == pytest.approx(math.log(0.05)) and found[1] == -math.inf
    assert found[2] == pytest.approx(math.log(0.75))


# Real engines

ITEMS = 32
"""Prompts of the run that is killed: 2 models x 2 judges x 4 dimensions x 2 repeats make 1,024 ratings of them."""


class Run:
    """`dpeer COMMAND recipe.yaml` in its own process group."""

    def __init__(self, command: str, folder: Path) -> None:
        self.log = folder / f"{command}-{time.monotonic_ns()}.log"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dpeer.launcher.cli", command, "recipe.yaml"],
                cwd=folder,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.family: set[psutil.Process] = set()

    def until(self, condition: Callable[[], bool], limit_s: float = 200) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.005)
        self.family |= set(psutil.Process(self.process.pid).children(recursive=True))

    def engines(self) -> list[psutil.Process]:
        return [p for p in self.family if p.is_running() and p.cmdline() and p.cmdline()[0].startswith("ray::Worker")]

    def wait(self, limit_s: float = 250) -> int:
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.log.read_text()}") from None

    def end(self) -> None:
        for process in self.family:
            if process.is_running():
                process.kill()
        if self.process.poll() is None:
            self.process.kill()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[[str], Run]]:
    runs: list[Run] = []

    def start(command: str) -> Run:
        runs.append(Run(command, tmp_path))
        return runs[-1]

    yield start
    for run in runs:
        run.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_driver_and_a_killed_engine_lose_and_double_nothing(
    tmp_path: Path, models: Path, launch: Callable[[str], Run]
) -> None:
    """Generate, then judge with two engines' worth of kills: exactly the planned rows, each once."""
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "Tell me about {i}."}}\n' for i in range(ITEMS)))
    recipe = {
        "name": "test",
        "output_dir": str(tmp_path),
        "prompts": {"path": str(tmp_path / "prompts.jsonl")},
        "models": [{"name": f"m{n}", "path": str(models / n), "family": "tested"} for n in ("a", "b")],
        "generation": {"max_tokens": 24},
        "judges": [{"name": n, "path": str(models / n)} for n in ("c", "d")],
        "judging": {"rubric": "toyworld", "min_mass": 0.0, "repeats": 2},
        "engine": {"device": "cpu", "dtype": "float32", "max_model_len": 512, "max_num_seqs": 64},
        "farm": {"conversations_per_task": 2},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    cfg = EvalConfig.model_validate(recipe)
    generated = launch("generate")
    assert generated.wait() == 0, generated.log.read_text()
    responses = read_table(cfg.folder / "responses", RESPONSES)
    assert Counter(responses["model"]) == {"ma": ITEMS, "mb": ITEMS}

    def parts() -> int:
        return len(list((cfg.folder / "ratings").rglob("part-*.parquet")))

    first = launch("judge")
    first.until(lambda: parts() >= 5)
    first.process.kill()
    first.wait()
    assert 0 < len(read_table(cfg.folder / "ratings")) < 2 * 2 * ITEMS * 8
    written = parts()
    second = launch("judge")
    second.until(lambda: parts() >= written + 5)
    (engine,) = second.engines()
    engine.kill()
    assert second.wait() == 0, second.log.read_text()
    assert "nothing that was finished is lost" in second.log.read_text()
    rows = plan(cfg).rows
    table = read_table(cfg.folder / "ratings")
    assert len(rows) == 2 * 2 * ITEMS * 8 >= 1000
    assert Counter(table["rating_id"]) == Counter(rows["rating_id"])
    assert Counter(pd.read_parquet(cfg.folder / "ratings.parquet")["rating_id"]) == Counter(rows["rating_id"])
    assert set(table["status"]) == {"ok"}
    judge(cfg, no_ray, console=Console(file=StringIO()))
