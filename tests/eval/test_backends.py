"""Backends by name: an unknown one is refused where it is written, and one that is registered rates without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dpeer.config_io import load_section
from dpeer.errors import ClusterError, ConfigError
from dpeer.eval.backends.config import Engine, Farm, Served
from dpeer.eval.backends.registry import BACKENDS, family, identity
from dpeer.eval.backends.types import Answer, Answers, Backend, Call, Job, Say
from dpeer.eval.backends.vllm import RAY_DATA_FROM, runner
from dpeer.eval.config import EvalConfig
from dpeer.eval.judge import cost, judge
from dpeer.eval.plan import plan
from dpeer.eval.store.parts import content_id
from dpeer.registry import Registry
from tests.eval.evaluations import no_ray, write_responses


class Remembered(Backend):
    """Scores that stand in a JSON file under the response; jobs are counted."""

    def __init__(self) -> None:
        self.sessions = self.jobs = 0

    def identity(self, served: Served) -> str:
        return content_id(scores=Path(served.path).read_text())

    def session(self, farm: Farm, say: Say) -> AbstractContextManager[Answers]:
        self.sessions += 1
        return nullcontext(self.answers)

    def answers(self, job: Job, calls: Iterable[Call]) -> Iterator[list[Answer]]:
        self.jobs += 1
        scores = json.loads(Path(job.served.path).read_text())
        for call in calls:
            _, response = (segment.text for segment in call.segments if not segment.trusted)
            if response in scores:
                yield [Answer(call.id, "stop", json.dumps({"rationale": "", "score": scores[response]}))]
            elif job.served.name == "gaps":
                yield [Answer(call.id, "error", error="not remembered")]


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> Remembered:
    backend = Remembered()
    BACKENDS.names()
    monkeypatch.setitem(BACKENDS._entries, "remembered", backend)
    return backend


def evaluation(folder: Path, *names: str) -> EvalConfig:
    responses = write_responses(folder / "responses.jsonl", items=5)
    texts = [json.loads(line)["response"] for line in responses.read_text().splitlines()]
    for k, name in enumerate(names):
        known = texts[1:] if name in ("gaps", "silent") else texts
        (folder / f"{name}.json").write_text(json.dumps({text: 1 + (k + i) % 5 for i, text in enumerate(known)}))
    judges = [{"name": n, "path": str(folder / f"{n}.json"), "backend": "remembered"} for n in names]
    values = {"name": "test", "output_dir": str(folder), "responses": str(responses), "judges": judges}
    return EvalConfig.model_validate(values | {"judging": {"rubric": "toyworld", "mode": "structured"}})


def test_a_registered_backend_rates_and_ray_is_not_started(tmp_path: Path, remembered: Remembered) -> None:
    cfg = evaluation(tmp_path, "one", "gaps")
    planned = plan(cfg)
    assert (len(planned.todo), set(cost(cfg, planned)["exact"])) == (80, {False}), "no tokenizer: an estimate"
    table = pd.read_parquet(judge(cfg, no_ray))
    assert (len(table), remembered.sessions, remembered.jobs) == (80, 1, 2), "one session for all models of a backend"
    ok = table[table["status"] == "ok"]
    assert len(ok) == 76 and set(table[table["status"] != "ok"]["error"]) == {"not remembered"}
    scores = json.loads((tmp_path / "one.json").read_text())
    first = ok[(ok["judge"] == "one") & (ok["dimension"] == "A")]
    assert sorted(first["score"]) == sorted(scores.values())
    assert table[["dtype", "batch_invariant", "eager"]].isna().all(axis=None)
    judge(cfg, no_ray)
    assert remembered.jobs == 2, "nothing is asked twice"


def test_calls_without_an_answer_are_no_rows(tmp_path: Path, remembered: Remembered) -> None:
    with pytest.raises(ClusterError, match="silent: 4 of 40 calls came back without an answer"):
        judge(evaluation(tmp_path, "silent", "one"), no_ray)


def test_other_contents_are_another_judge(tmp_path: Path, remembered: Remembered) -> None:
    cfg = evaluation(tmp_path, "one", "two")
    before = identity(cfg.judges[0])
    judge(cfg, no_ray)
    Path(cfg.judges[0].path).write_text("{}")
    assert identity(cfg.judges[0]) != before and len(plan(cfg).todo) == 40


def test_the_family_is_the_recipes_else_the_backends(remembered: Remembered) -> None:
    assert family(Served(name="qwen-notes", path="x.json", backend="remembered")) == "qwen"
    assert family(Served(name="notes", path="x.json", backend="remembered", family=" House ")) == "house"
    assert remembered.conditions(Served(name="n", path="p"), Engine()) == {}


@pytest.mark.parametrize(
    ("served", "words"),
    [
        ({"backend": "vlm"}, ["judges: j:", "no backend 'vlm'", "openai, ", "did you mean 'vllm'?"]),
        ({"backend": "openai"}, ["judges: j:", "backend openai needs base_url"]),
    ],
)
def test_a_recipe_is_refused_for_its_backend(tmp_path: Path, served: dict[str, str], words: list[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "n", "judges": [{"name": "j", "path": "p"} | served]}))
    with pytest.raises(ConfigError) as fault:
        load_section(EvalConfig, path)
    for word in [str(path), *words]:
        assert word in str(fault.value)


def test_what_runs_vllm() -> None:
    assert [runner(Farm(), n) for n in (RAY_DATA_FROM - 1, RAY_DATA_FROM)] == ["actors", "ray_data"]
    assert runner(Farm(backend="ray_data"), 1) == "ray_data" and runner(Farm(backend="actors"), 10**6) == "actors"


def test_a_name_is_given_once() -> None:
    registry: Registry[object] = Registry("thing", "dpeer.eval.elsewhere")
    registry.register("a", Remembered())
    registry.register("a", Remembered())  # a cell of a notebook that is executed again
    with pytest.raises(ConfigError, match=r"thing 'a' is registered already, by .*Remembered"):
        registry.register("a", test_what_runs_vllm)
    assert registry.names() == ("a",)


def test_another_distribution_registers_its_own(tmp_path: Path) -> None:
    module = "from dpeer.eval.backends.registry import BACKENDS\nBACKENDS.register('theirs', print)\n"
    (tmp_path / "their_backend.py").write_text(module)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dpeer.eval.backends]\ntheirs = their_backend\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); from dpeer.eval.backends.registry import BACKENDS"
    done = subprocess.run([sys.executable, "-c", f"{code}; print(*BACKENDS.names())"], capture_output=True, text=True)
    assert {"openai", "theirs", "vllm"} <= set(done.stdout.split()), done.stderr
