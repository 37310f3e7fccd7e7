"""Benchmarks as tasks of other harnesses: what is written, and that it scores as dpeer does, there and here."""

from __future__ import annotations

import ast
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dpeer.errors import ConfigError
from dpeer.eval.bench.benchmark import BENCHMARKS, Benchmark, Item
from dpeer.eval.bench.config import BenchConfig
from dpeer.eval.bench.export.cut import Cut
from dpeer.eval.bench.export.played import as_json, judge_prompts
from dpeer.eval.bench.export.write import Harness, cut_of, export, unfit
from dpeer.eval.bench.judged import rubric_of
from dpeer.eval.bench.load import load_items
from dpeer.eval.bench.run import bench
from dpeer.eval.questions.conversations import turns
from dpeer.eval.questions.rubric import load_rubric
from dpeer.launcher.cli import app
from tests.eval.bench.made_up import QUIET, config, no_ray
from tests.eval.bench.stub import ANSWERS, answer, verdict, words_in

HERE = Path(__file__).parent
LM_EVAL = ("mimicry", "opinion", "or-bench", "or-bench-toxic", "xstest")
INSPECT = tuple(name for name in BENCHMARKS.names() if name != "personaknob-selection")
MODELS = ("gpt-base", "gpt-trained")


def sampled(*names: str) -> BenchConfig:
    return BenchConfig.model_validate({"benchmarks": {name: {"data": "sample"} for name in names}})


def ran(source: str) -> dict[str, Any]:
    """A module that no other knows, as harnesses load it."""
    found: dict[str, Any] = {"__name__": "task", "__file__": "task.py"}
    exec(compile(source, "task.py", "exec", dont_inherit=True), found)  # where annotations are evaluated
    return found


def imports(source: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(source)))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return {n.partition(".")[0] for n in names | {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}}


@pytest.mark.parametrize(("harness", "names"), [("inspect", INSPECT), ("lm-eval", LM_EVAL)])
def test_tasks_need_the_harness_alone_and_hold_the_items(
    harness: Harness, names: tuple[str, ...], tmp_path: Path
) -> None:
    assert {n for n in BENCHMARKS.names() if not unfit(BENCHMARKS[n], harness)} - set(names) <= {"are-you-sure"}
    paths = export(sampled(*names), harness, tmp_path)
    assert len(paths) == len(names) and export(sampled(*names), harness, tmp_path) == paths
    foreign = {"inspect_ai"} if harness == "inspect" else {"datasets"}
    for name, path in zip(names, paths, strict=True):
        source = path.with_suffix(".py").read_text(encoding="utf-8")
        assert imports(source) - set(sys.stdlib_module_names) == foreign
        head = " ".join(str(ast.get_docstring(ast.parse(source))).split())
        benchmark = BENCHMARKS[name]
        assert benchmark.source in head and benchmark.protocol in head and f"our own sample {benchmark.sample}" in head
        lines = (tmp_path / f"{name.replace('-', '_')}.jsonl").read_text(encoding="utf-8").splitlines()
        items = load_items(benchmark, "sample")
        assert [json.loads(line) for line in lines] == json.loads(json.dumps([as_json(item) for item in items]))
        top = [n.name for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        assert len(top) == len(set(top))
        if harness == "lm-eval":
            task = yaml.load(path.read_text(encoding="utf-8"), Loader=_Named)
            assert [m["metric"] for m in task["metric_list"]] == [m.name for m in benchmark.metrics]
            used = {task["custom_dataset"], task["doc_to_text"], *(m["aggregation"] for m in task["metric_list"])}
            assert {u.partition(".")[2] for u in used} <= ran(source).keys()


class _Named(yaml.SafeLoader):
    """Reads `!function file.name` as text."""


_Named.add_constructor("!function", lambda loader, node: node.value)


@pytest.mark.parametrize("name", INSPECT)
def test_what_is_cut_out_scores_as_the_plug_in(name: str, tmp_path: Path) -> None:
    """On many answers: what is asked further, prompts of judges, verdicts of the rule and values."""
    benchmark = BENCHMARKS[name]
    cut = ran(cut_of(benchmark, "inspect", bool(benchmark.rubric)))
    twin = cut["BENCHMARK"]
    rng = random.Random(name)
    informed = 0
    for item in load_items(benchmark, "sample"):
        copy = cut["Item"](**json.loads(json.dumps(as_json(item))))
        pool = [*ANSWERS, *words_in([json.loads(json.dumps(as_json(item)))])]
        for _ in range(20):
            answers = {ask: [rng.choice(pool) for _ in range(turns(p))] for ask, p in item.asks.items()}
            more = benchmark.further(item, answers)
            assert more == twin.further(copy, answers)
            answers |= {a: [*answers[old], *(rng.choice(pool) for _ in texts)] for a, (old, texts) in more.items()}
            judged = benchmark.judged(item, answers)
            assert benchmark.rule(item, answers) == twin.rule(copy, answers)
            scores: Mapping[tuple[str, str], float] = {}
            if benchmark.rubric:
                rubric = load_rubric(rubric_of(benchmark, tmp_path))
                asked = list(judge_prompts(rubric, judged))
                assert asked == list(cut["judge_prompts"](cut["RUBRIC"], twin.judged(copy, answers)))
                told = [json.dumps({"rationale": "", "score": rng.choice(rubric.scale)}) for _ in asked]
                scores = cut["scores_in"](asked, told, rubric.scale)
                assert not asked or cut["scores_in"](asked, ["none", *told[1:]], rubric.scale) is None
            values = benchmark.score(item, answers, scores)
            assert values == twin.score(copy, answers, scores)
            informed += bool(values)
    assert informed > 10


def test_what_cannot_be_cut_out_is_refused() -> None:
    import numpy

    class Sums(Benchmark):
        name, rubric, metrics = "sums", "", ()

        def score(self, item: Item, answers: Any, scores: Any) -> Any:
            return {"sum": float(numpy.sum([1.0]))}

    with pytest.raises(ConfigError, match="uses numpy, which its module does not define"):
        cut_of(Sums(), "inspect", False)
    with pytest.raises(ConfigError, match="its code needs numpy"):
        Cut().add_value("numpy", numpy)
    with pytest.raises(ConfigError, match="is a Console, which no text can stand for"):
        Cut().add_value("QUIET", QUIET)
    cut = Cut(taken={"words_in"})
    with pytest.raises(ConfigError, match="two things are called words_in"):
        cut.add(words_in)


def test_the_command_line_writes_and_refuses(tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["bench", *map(str, arguments)], terminal_width=200)
        return result.exit_code, " ".join(result.output.split())

    given = ("xstest", "--data", "xstest=sample", "--limit", 3)
    code, output = run(*given, "--export", "lm-eval", "-o", tmp_path / "t")
    assert code == 0 and output == str(tmp_path / "t" / "dpeer_xstest.yaml"), output
    assert len((tmp_path / "t" / "xstest.jsonl").read_text().splitlines()) == 3
    for arguments, message in (
        ((*given[:-1], 4, "--export", "lm-eval", "-o", tmp_path / "t"), "exists and differs; remove it"),
        ((*given, "--export", "helm", "-o", tmp_path), "one of inspect, lm-eval"),
        ((*given, "--export", "inspect"), "no folder"),
        (("sycon", "--data", "sycon=sample", "--export", "lm-eval", "-o", tmp_path), "judges score it"),
        (("syceval", "--data", "syceval=sample", "--export", "lm-eval", "-o", tmp_path), "depends on the answers"),
        (("are-you-sure", "--data", "are-you-sure=sample", "--export", "lm-eval", "-o", tmp_path), "conversations"),
        (
            ("personaknob-selection", "--data", "personaknob-selection=sample", "--export", "inspect", "-o", tmp_path),
            "log-probabilities",
        ),
    ):  # fmt: skip
        code, output = run(*arguments)
        assert code == 1 and message in output and "Traceback" not in output, (arguments, output)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


# In the other harness itself


PACKAGES = {"inspect_ai": "inspect_ai==0.3.285", "lm_eval": "lm_eval==0.4.13"}


def environment(folder: Path, package: str) -> Path:
    """Python of an environment with the package, or a skip that says why there is none."""
    kept = os.environ.get("DPEER_TEST_HARNESSES")  # a folder with such environments, to spare the downloads
    python = (Path(kept) if kept else folder) / package / "bin" / "python"
    if python.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", folder / package], check=True, capture_output=True)
    pip = [folder / package / "bin" / "python", "-m", "pip", "install", "-q", "--retries", "1", "--timeout", "10"]
    try:
        done = subprocess.run([*pip, PACKAGES[package]], capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{package} does not install here within ten minutes")
    if done.returncode:
        pytest.skip(f"{package} does not install here: {done.stderr.strip().splitlines()[-1:]}")
    return python


def scores_here(
    folder: Path, endpoint: tuple[Any, str], names: tuple[str, ...]
) -> dict[tuple[str, str, str], dict[str, tuple[float, int]]]:
    """(benchmark, rule or judge, model) -> metric -> rate and items, by dpeer on the same stub."""
    state, url = endpoint
    words: list[str] = []

    def decide(request: dict[str, Any]) -> Any:
        messages = request["messages"]
        if "response_format" in request:
            return state.reply(verdict(messages[-1]["content"]))
        return state.reply(answer(request["model"], messages, words))

    state.decide = decide
    found: dict[tuple[str, str, str], dict[str, tuple[float, int]]] = {}
    for name in names:
        benchmark = BENCHMARKS[name]
        words[:] = words_in(json.loads(json.dumps([as_json(i) for i in load_items(benchmark, "sample")])))
        judges = ("mistral-7b",) if benchmark.rubric else ()
        said = bench(config(folder / name, url, {name: {"data": "sample"}}, judges=judges), no_ray, console=QUIET)
        for row in said.rates[said.rates["judge"] != "all"].itertuples():
            by = "judge" if row.judge in judges else "rule"
            found.setdefault((name, by, f"gpt-{row.model}"), {})[row.metric] = (row.rate, row.items)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_inspect_gives_the_same_scores(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    python = environment(tmp_path, "inspect_ai")
    here = scores_here(tmp_path / "here", endpoint, INSPECT)
    paths = dict(zip(INSPECT, export(sampled(*INSPECT), "inspect", tmp_path / "tasks"), strict=True))
    keys = list(here)
    tasks = [
        (str(paths[name]), model, by, bool(BENCHMARKS[name].rubric and BENCHMARKS[name].rules))
        for name, by, model in keys
    ]
    there = outside(tmp_path, python, "run_inspect.py", tasks, after=[tmp_path / "logs"])
    assert len(there) == len(keys) >= 2 * len(INSPECT)
    for key, (_, _, _, scores, _) in zip(keys, there, strict=True):
        known = {m: tuple(s) for m, s in scores.items() if s[1]}
        assert known.keys() == here[key].keys(), key
        for metric, (rate, items) in here[key].items():
            assert known[metric] == (pytest.approx(rate, abs=1e-12), items), (key, metric)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_lm_evaluation_harness_gives_the_same_scores(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    python = environment(tmp_path, "lm_eval")
    here = scores_here(tmp_path / "here", endpoint, LM_EVAL)
    export(sampled(*LM_EVAL), "lm-eval", tmp_path / "tasks")
    keys = [(name, model) for name in LM_EVAL for model in MODELS]
    tasks = [(f"dpeer_{name.replace('-', '_')}", model) for name, model in keys]
    there = outside(tmp_path, python, "run_lm_eval.py", tasks, before=[tmp_path / "tasks"])
    for (name, model), (_, _, scores) in zip(keys, there, strict=True):
        known = {m: s for m, s in scores.items() if not math.isnan(s)}
        rates = {m: rate for m, (rate, _) in here[name, "rule", model].items()}
        assert known == pytest.approx(rates, abs=1e-12), (name, model)


def outside(
    folder: Path, python: Path, script: str, tasks: list[Any], before: Sequence[Path] = (), after: Sequence[Path] = ()
) -> list[Any]:
    for file in (script, "stub.py"):
        shutil.copy(HERE / file, folder)
    (folder / "todo.json").write_text(json.dumps(tasks))
    quiet = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COLUMNS")}
    quiet |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "HOME": str(folder)}
    done = subprocess.run(
        [python, folder / script, *before, folder / "todo.json", folder / "done.json", *after],
        capture_output=True, text=True, env=quiet, cwd=folder, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: list[Any] = json.loads((folder / "done.json").read_text())
    return found
