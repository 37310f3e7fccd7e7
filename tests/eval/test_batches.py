"""The batch API: files of requests, killed at the worst moments, and what it may cost."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from dpeer.errors import ClusterError, ConfigError
from dpeer.eval import judge as judging
from dpeer.eval.backends.openai import batch
from dpeer.eval.backends.openai.states import ENDED, UNDER_WAY, end, status
from dpeer.eval.backends.types import Answer, Call, Job, Method, Useless
from dpeer.eval.config import Engine, EvalConfig, Served
from dpeer.eval.judge import judge
from dpeer.eval.plan import plan
from dpeer.eval.questions.prompting import Segment
from dpeer.eval.questions.rubric import load_rubric
from dpeer.eval.store.parts import read_table
from dpeer.integrity import read_state
from tests.eval.evaluations import no_ray, write_responses

QUIET = Console(file=StringIO())


class Killed(BaseException):
    """A process that is gone: nothing of dpeer's runs after it."""


class BatchServer:
    """Files and batches in memory. A batch has ended at its second look; answers stand in the reverse order."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.looks: Counter[str] = Counter()
        self.rated: Counter[str] = Counter()
        self.live = 0

    def post(self, path: str, content: bytes) -> dict[str, Any]:
        if path == "/v1/files":
            start = content.index(b'{"custom_id"')
            self.files[f"file-{len(self.files)}"] = content[start : content.index(b"\r\n--", start)].decode()
            return {"id": f"file-{len(self.files) - 1}"}
        if path == "/v1/batches":
            request = json.loads(content)
            name = f"batch-{len(self.batches)}"
            self.batches[name] = {"id": name, "status": "in_progress", **request}
            return self.batches[name]
        self.live += 1
        return self.answer(json.loads(content))

    def get(self, path: str) -> Any:
        path, _, query = path.partition("?")
        if path == "/v1/batches":  # pages of two
            names = list(self.batches)
            after = dict(pair.split("=") for pair in query.split("&")).get("after")
            rest = names[names.index(after) + 1 :] if after else names
            return {"data": [self.batches[n] for n in rest[:2]], "has_more": len(rest) > 2}
        if path.startswith("/v1/batches/"):
            name = path.rpartition("/")[2]
            self.looks[name] += 1
            if self.looks[name] == 2:
                self.run(name)
            return self.batches[name]
        return self.files[path.split("/")[3]]

    def run(self, name: str) -> None:
        good, bad = [], []
        for line in reversed(self.files[self.batches[name]["input_file_id"]].splitlines()):
            request = json.loads(line)
            key = request["custom_id"]
            self.rated[key] += 1
            if self.rated[key] == 1 and int(key, 16) % 7 == 0:
                error = {"error": {"message": "overloaded", "code": "server_error"}}
                bad.append({"custom_id": key, "response": {"status_code": 500, "body": error}})
            elif int(key, 16) % 7 == 1 and self.rated[key] == 1:
                continue  # expired before its turn
            else:
                body = self.answer(request["body"])
                good.append({"custom_id": key, "response": {"status_code": 200, "body": body}, "error": None})
        self.batches[name]["status"] = "completed"
        for key, lines in (("output_file_id", good), ("error_file_id", bad)):
            self.files[f"{name}-{key}"] = "".join(json.dumps(line) + "\n" for line in lines)
            self.batches[name][key] = f"{name}-{key}"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        assert request["response_format"]["type"] == "json_schema" and request["max_tokens"] == 64
        message = {"role": "assistant", "content": '{"rationale": "So.", "score": 4}'}
        usage = {"prompt_tokens": 100, "completion_tokens": 20}
        return {"model": "m", "usage": usage, "choices": [{"message": message, "finish_reason": "stop", "index": 0}]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[BatchServer, str]]:
    state, lock = BatchServer(), threading.Lock()
    monkeypatch.setattr(batch, "POLL_S", 0.0)
    monkeypatch.setattr(batch, "MOST_CALLS", 20)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                self.reply(state.post(self.path, content))

        def do_GET(self) -> None:
            with lock:
                self.reply(state.get(self.path))

        def reply(self, value: Any) -> None:
            body = (value if isinstance(value, str) else json.dumps(value)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    yield state, f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    http.server_close()


def evaluation(folder: Path, url: str, **changes: Any) -> EvalConfig:
    (folder / "prices.yaml").write_text("models: {m: {input: 10, output: 100}}\n")
    values = {
        "name": "test",
        "output_dir": str(folder),
        "responses": str(write_responses(folder / "responses.jsonl", 10)),
        "judges": [
            {"name": n, "path": "m", "backend": "openai-batch", "base_url": url, "family": "x", "revision": n}
            for n in ("j1", "j2")
        ],
        "judging": {"rubric": "toyworld", "mode": "structured", "max_tokens": 64},
        "prices": str(folder / "prices.yaml"),
    }
    return EvalConfig.model_validate(values | changes)


def test_killed_twice_every_planned_row_is_made_and_paid_once(
    tmp_path: Path, server: tuple[BatchServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once between the creation of a batch and the note of its id, once among its answers."""
    state, url = server
    cfg = evaluation(tmp_path, url)
    planned = set(plan(cfg).rows["rating_id"])
    assert len(planned) == 160
    remember = batch.Batches._remember

    def forgetful(self: batch.Batches) -> None:
        if len(state.batches) == 3:
            raise Killed
        remember(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(batch.Batches, "_remember", forgetful)
        judge(cfg, no_ray, console=QUIET)
    assert len(state.batches) == 3
    write = judging.write_part

    def interrupted(folder: Path, rows: Any) -> Any:
        if len(rows) > 1:
            write(folder, rows[:5])
            raise Killed
        return write(folder, rows)

    monkeypatch.setattr(batch, "BATCH", 8)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(judging, "write_part", interrupted)
        judge(cfg, no_ray, console=QUIET)
    assert len(state.batches) == 3, "the batch that nobody had noted was found"
    table = pd.read_parquet(judge(cfg, no_ray, console=QUIET))
    assert set(table["status"]) == {"ok"} and Counter(table["rating_id"]) == Counter(planned)
    assert Counter(read_table(cfg.folder / "ratings")["rating_id"]) == Counter(planned)
    left_out = {key for key in planned if int(key, 16) % 7 < 2}
    assert all(n == 1 for key, n in state.rated.items() if key not in left_out)
    once = [key for key in left_out if state.rated[key] < 2]
    assert len(once) <= state.live <= 5, "all but those that a run asked for first, alone"
    batches = len(state.batches)
    judge(cfg, no_ray, console=QUIET)
    assert len(state.batches) == batches
    books = read_state(cfg.folder / "ratings" / "manifest.json", "")
    assert books["currency"] == "USD" and books["models"]["j2"]["backend"] == "openai-batch"


def test_a_budget_is_never_exceeded_and_a_larger_one_goes_on(
    tmp_path: Path, server: tuple[BatchServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rating costs (100 x 10 + 20 x 100) / 1e6 x 0.5 = 0.0015 USD."""
    _, url = server
    cfg = evaluation(tmp_path, url, budget=0.1)
    with pytest.raises(ClusterError, match=r"the budget of 0\.1 USD does not bear more: .* USD is spent"):
        judge(cfg, no_ray, console=QUIET)
    spent = read_state(cfg.folder / "ratings" / "manifest.json", "")["spent"]
    made = len(read_table(cfg.folder / "ratings"))
    assert spent == pytest.approx(0.0015 * made, rel=0.05) and 0.1 - 20 * 0.0015 < spent <= 0.1
    text = StringIO()
    table = pd.read_parquet(judge(evaluation(tmp_path, url, budget=9), no_ray, console=Console(file=text, width=200)))
    assert len(table) == 160 and set(table["status"]) == {"ok"} and "USD spent" in text.getvalue()
    (tmp_path / "prices.yaml").write_text("models: {}\n")
    other = evaluation(tmp_path, "http://host.example/v1", budget=9, name="other")
    (tmp_path / "prices.yaml").write_text("models: {}\n")
    with pytest.raises(ConfigError, match="the price of m is not known"):
        judge(other, no_ray, console=QUIET)


def job(folder: Path, url: str, ids: list[str]) -> Job:
    served = Served.model_validate({"name": "j", "path": "m", "backend": "openai-batch", "base_url": url})
    method = Method("structured", max_tokens=64, rubric=load_rubric("toyworld"))
    return Job(served, Engine(), method, memory=folder / "batches.json", pending=frozenset(ids))


def answered(folder: Path, url: str, first: int, last: int) -> list[Answer]:
    ids = [f"{n:032x}" for n in range(first, last)]
    calls = [Call(i, i, (Segment("Rate.", True),)) for i in ids]
    return [answer for found in batch.answers(job(folder, url, ids), calls) for answer in found]


def noted(folder: Path) -> list[dict[str, Any]]:
    return read_state(folder / "batches.json", "")["batches"]


def refusing(state: BatchServer, wrong: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches in which some calls are refused, each by itself."""

    def run(name: str) -> None:
        good, bad = [], []
        for line in state.files[state.batches[name]["input_file_id"]].splitlines():
            request = json.loads(line)
            key = request["custom_id"]
            code, body = (400, {"error": {"message": "I do not like this one"}}) if key in wrong else (200, None)
            response = {"status_code": code, "body": body or state.answer(request["body"])}
            (bad if key in wrong else good).append({"custom_id": key, "response": response})
        state.batches[name]["status"] = "COMPLETED"
        for key, lines in (("output_file_id", good), ("error_file_id", bad)):
            state.files[f"{name}-{key}"] = "".join(json.dumps(line) + "\n" for line in lines)
            state.batches[name][key] = f"{name}-{key}"

    monkeypatch.setattr(state, "run", run)


def test_scattered_refusals_of_one_batch_are_rows(
    tmp_path: Path, server: tuple[BatchServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stand together in the file of errors, and not in the order of the calls."""
    state, url = server
    monkeypatch.setattr(batch, "MOST_CALLS", 100)
    wrong = {f"{n:032x}" for n in range(2, 80, 2)}
    refusing(state, wrong, monkeypatch)
    found = answered(tmp_path, url, 0, 80)
    assert {a.id for a in found if a.finish == "error"} == wrong and len(found) == 80
    assert [a.id for a in found] == sorted(a.id for a in found)


def test_an_expired_batch_is_followed_by_another_one(
    tmp_path: Path, server: tuple[BatchServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, url = server
    run = state.run

    def expires(name: str) -> None:
        if name != "batch-0":
            return run(name)
        state.batches[name] |= {"status": "expired", "output_file_id": "none"}
        state.files["none"] = ""

    monkeypatch.setattr(state, "run", expires)
    assert {a.finish for a in answered(tmp_path, url, 2, 7)} == {"stop"}
    assert len(state.batches) == 2 and not noted(tmp_path)


def test_a_batch_of_another_recipe_is_booked_and_not_waited_for(
    tmp_path: Path, server: tuple[BatchServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, url = server
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(batch.Batches, "_ended", lambda *_: (_ for _ in ()).throw(Killed()))
        answered(tmp_path, url, 2, 6)
    run = state.run
    monkeypatch.setattr(state, "run", lambda name: None if name == "batch-0" else run(name))
    assert len(answered(tmp_path, url, 9, 13)) == 4 and len(noted(tmp_path)) == 1
    run("batch-0")
    later = answered(tmp_path, url, 16, 20)
    assert {a.id for a in later} == {f"{n:032x}" for n in (3, 4, 5, 16, 17, 18, 19)} and not noted(tmp_path)
    assert all(a.output_tokens == 20 for a in later)


def test_useless_answers_are_asked_for_again(tmp_path: Path, server: tuple[BatchServer, str]) -> None:
    _, url = server
    ids = [f"{n:032x}" for n in range(2, 7)]
    stream = batch.answers(job(tmp_path, url, ids), [Call(i, i, ()) for i in ids])
    assert len(next(stream)) == 1 and len(next(stream)) == 4 and noted(tmp_path)
    with pytest.raises(Useless):
        stream.throw(Useless())  # type: ignore[attr-defined]
    assert not noted(tmp_path)


@pytest.mark.parametrize(
    ("odd", "words"),
    [({"status": "paused"}, "has the state 'paused'"), ({"expires_at": 1}, "'in_progress' after the time")],
)
def test_a_batch_that_never_ends_ends_the_run(
    tmp_path: Path,
    server: tuple[BatchServer, str],
    monkeypatch: pytest.MonkeyPatch,
    odd: dict[str, Any],
    words: str,
) -> None:
    state, url = server
    monkeypatch.setattr(state, "run", lambda name: None)
    get = state.get
    monkeypatch.setattr(state, "get", lambda path: get(path) | odd)
    with pytest.raises(ClusterError, match=words):
        answered(tmp_path, url, 2, 6)


def test_an_upload_without_an_id_is_said(
    tmp_path: Path, server: tuple[BatchServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, url = server
    post = state.post
    monkeypatch.setattr(state, "post", lambda path, body: post(path, body) if "chat" in path else {"ok": True})
    with pytest.raises(ClusterError, match="answers the upload of a file without an id"):
        answered(tmp_path, url, 2, 6)


def test_states_in_the_words_of_vendors() -> None:
    assert {status({"status": s}) for s in ("BATCH_STATE_SUCCEEDED", "Completed", "Canceled", "timed-out")} <= ENDED
    assert {status({"status": s}) for s in ("IN_PROGRESS", "In Progress", "JOB_STATE_RUNNING")} <= UNDER_WAY
    assert status({}) == "" and end({}, 5.0) == 5.0 + 86400
    assert end({"expires_at": 7, "created_at": 1}, 0.0) == 7 and end({"created_at": 1.7e12}, 0.0) == 1.7e9 + 86400


def test_lines_are_read_in_the_dialect_in_which_they_were_asked(
    tmp_path: Path, server: tuple[BatchServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are refused for one parameter: the first teaches it, and the others are no less worth asking again."""
    state, url = server
    run = state.run

    def refuses(name: str) -> None:
        if name != "batch-0":
            return run(name)
        keys = [json.loads(line)["custom_id"] for line in state.files["file-0"].splitlines()]
        body = {"error": {"message": "temperature: Extra inputs are not permitted"}}
        lines = [{"custom_id": key, "response": {"status_code": 400, "body": body}} for key in keys]
        state.files["bad"] = "".join(json.dumps(line) + "\n" for line in lines)
        state.batches[name] |= {"status": "completed", "error_file_id": "bad"}

    monkeypatch.setattr(state, "run", refuses)
    assert {a.finish for a in answered(tmp_path, url, 2, 7)} == {"stop"}
    assert (
        "temperature" not in json.loads(state.files[state.batches["batch-1"]["input_file_id"]].splitlines()[0])["body"]
    )
