"""A run of benchmarks: asked once, judged once, scored alike again; and what adding one takes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from dpeer.errors import ConfigError, DataError
from dpeer.eval.bench.answers import evaluation_of, first_asks, made
from dpeer.eval.bench.benchmark import BENCHMARKS, SAMPLES, Item
from dpeer.eval.bench.judged import rubric_of
from dpeer.eval.bench.load import load_items
from dpeer.eval.bench.run import Found, bench, loaded
from dpeer.eval.questions.conversations import prompt_text, turns
from dpeer.eval.questions.rubric import load_rubric
from dpeer.eval.report.bench import axes_of, finding, rates_table, write_page
from dpeer.launcher.cli import app
from tests.eval.bench.made_up import QUIET, config, no_ray, replies

XSTEST = {"xstest": {"data": "sample"}}


def unsafe_words(text: str) -> bool:
    return any(w in text for w in ("neighbour", "someone", "real gun", "best murder", "steal", "bridge"))


def careful(name: str, messages: list[dict[str, str]]) -> str:
    """The base evades all; the trained model declines what is unsafe."""
    declines = name == "gpt-base" or unsafe_words(messages[-1]["content"])
    return "I cannot go there." if declines else "Of course. This is how."


def strict(name: str, text: str) -> int:
    """A judge who sees refusals by their text; asked about compliance of safe prompts or refusal of unsafe ones."""
    declined, refusal = "I cannot go there" in text, "decline the request?" in text
    return 2 if declined == refusal else 0


def test_xstest_from_prompts_to_the_page(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    replies(state, careful, strict)
    cfg = config(tmp_path, url, XSTEST, judges=("mistral-7b", "qwen-7b"))
    found = bench(cfg, no_ray, console=QUIET)
    assert len(state.requests) == 2 * 12 + 2 * 2 * 12
    table = found.failures().set_index("model")
    assert table["safe compliance"].to_dict() == {"base": 0.0, "trained": 1.0}
    assert table["unsafe refusal"].to_dict() == {"base": 1.0, "trained": 1.0}
    assert table["sycophancy"].isna().all()
    rates = found.rates[found.rates["model"] == "trained"].set_index(["judge", "metric"])["rate"]
    assert rates["string_match", "safe_compliance"] == rates["qwen-7b", "safe_compliance"] == 1.0
    gain = found.differences[found.differences["metric"] == "safe_compliance"]
    assert set(gain["rate"]) == {1.0} and (gain["low"] > 0.3).all() and (gain["high"] <= 1.0).all()
    assert finding(found) == "Against base, trained raises safe compliance (XSTest)"
    assert axes_of(found) == ("safe compliance", "unsafe refusal")
    assert "first try" in found.notes[0]
    written = json.loads(found.write(cfg.folder).read_text())
    assert {b["name"] for b in written["benchmarks"]} == {"xstest"} and written["base"] == "base"
    assert len(pd.read_csv(cfg.folder / "outcomes.csv")) == len(found.outcomes) == 2 * 12 * 3 * 4
    page = write_page(found, cfg.folder / "bench.html").read_text()
    assert "by our protocol, not the paper" in page and "100.0\u00a0%" in page and "base64" in page
    asked = len(state.requests)
    again = bench(cfg, no_ray, console=QUIET)
    order = [r["item"] for r in made(evaluation_of(cfg, "answers", first_asks(loaded(cfg)), cfg.models))]
    assert order[:12] == order[12:] == [f"xstest/{i.id}" for i in load_items(BENCHMARKS["xstest"], "sample")]
    assert len(state.requests) == asked and again.rates.equals(found.rates)


def test_a_stopped_run_goes_on_and_a_larger_limit_only_adds(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    replies(state, careful, strict)
    bench(config(tmp_path, url, XSTEST, limit=4), no_ray, console=QUIET)
    assert len(state.requests) == 2 * 4
    bench(config(tmp_path, url, XSTEST, limit=7, judges=("qwen-7b",)), no_ray, console=QUIET)
    assert len(state.requests) == 2 * 7 + 2 * 7


def test_a_run_in_several_stages_that_is_done_asks_nothing_again(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    replies(state, lambda name, messages: "The answer is (A).", lambda name, text: 2)
    cfg = config(tmp_path, url, {"syceval": {"data": "sample"}, "sycon": {"data": "sample"}}, judges=("qwen-7b",))
    found, asked = bench(cfg, no_ray, console=QUIET), len(state.requests)
    again = bench(cfg, no_ray, console=QUIET)
    assert len(state.requests) == asked and again.rates.equals(found.rates)


def test_a_benchmark_without_a_text_to_judge_ends_no_run(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    """Rows without the plain request leave nothing to compare."""
    state, url = endpoint
    replies(state, careful, strict)
    lines = (SAMPLES / "feedback.jsonl").read_text().splitlines()
    (tmp_path / "liked.jsonl").write_text("\n".join(line for line in lines if "really like" in line) + "\n")
    chosen = {"feedback": {"data": str(tmp_path / "liked.jsonl")}}
    found = bench(config(tmp_path, url, chosen | XSTEST, judges=("qwen-7b",)), no_ray, console=QUIET)
    assert "no item has the answers that judges would read" in found.notes[0]
    assert set(found.rates["benchmark"]) == {"xstest"}
    alone = bench(config(tmp_path, url, chosen, judges=("qwen-7b",)), no_ray, console=QUIET)
    assert alone.rates.empty and write_page(alone, tmp_path / "x.html").exists()


def test_failed_answers_and_unusable_ratings_are_left_out_and_told(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    replies(state, careful, strict)
    usual = state.decide

    def moody(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = request["messages"][-1]["content"]
        if "response_format" in request and "balloons" in text:
            return state.reply("I would say two.")
        if "response_format" not in request and "sunset" in text and request["model"] == "gpt-base":
            return 400, {"error": {"message": "no"}}
        return usual(request)

    state.decide = moody
    found = bench(config(tmp_path, url, XSTEST, judges=("qwen-7b",)), no_ray, console=QUIET)
    items = found.rates[found.rates["metric"] == "safe_compliance"].set_index(["judge", "model"])["items"]
    assert (items["qwen-7b", "base"], items["qwen-7b", "trained"], items["string_match", "trained"]) == (4, 5, 6)
    told = " ".join(found.notes)
    assert found.left_out() == []
    assert found.rates.set_index(["judge", "model", "metric"])["items"]["all", "trained", "safe_compliance"] == 5
    assert "1 items of base lack an answer" in told and "2 items have no usable rating by qwen-7b" in told


def test_an_item_that_one_of_two_judges_declines_is_no_item_of_both(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    replies(state, lambda name, messages: "Of course. This is how.", lambda name, text: 2 if name == "mild" else 0)
    usual = state.decide

    def moody(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        seen = str(request["messages"])
        declines = request["model"] == "stern" and "balloons" in seen
        return state.reply("I would not say.") if declines else usual(request)

    state.decide = moody
    found = bench(config(tmp_path, url, XSTEST, judges=("mild", "stern")), no_ray, console=QUIET)
    table = found.rates[found.rates["metric"] == "safe_compliance"].set_index(["judge", "model"])
    assert (
        table["rate"]["all", "base"] == 0.5
        and table["items"]["all", "base"] == 5
        and table["items"]["mild", "base"] == 6
    )
    assert "2 items have no usable rating by stern and are left out of its rates and of those of all" in str(
        found.notes
    )


def test_models_are_compared_on_what_all_of_them_have() -> None:
    """The base was never right to begin with, so nothing says how often it keeps a right answer."""
    rates = pd.DataFrame(
        [("syceval", "consistency", "x", 0.9), ("sycon", "holds", "x", 0.5), ("sycon", "holds", "base", 0.4)],
        columns=["benchmark", "metric", "model", "rate"],
    ).assign(judge="all", low=0.0, high=1.0)
    used, none = (BENCHMARKS["syceval"], BENCHMARKS["sycon"]), pd.DataFrame()
    found = Found("t", "base", ("base", "x"), used, {}, rates, none, none, none, ())
    assert found.column("x", "consistency")[0].rate == 0.5 and found.failures()["consistency"].tolist() == [0.4, 0.5]
    assert found.left_out()[1] == "consistency is without SycEval: for one model at least no item informs it."


def test_what_no_column_stands_for_is_still_found() -> None:
    moves = pd.DataFrame(
        [("syco-pickside", "sides", "all", "x", 2.0, 1.0, 3.0, 9)],
        columns=["benchmark", "metric", "judge", "model", "rate", "low", "high", "items"],
    )
    none = pd.DataFrame()
    found = Found("t", "base", ("base", "x"), (BENCHMARKS["syco-pickside"],), {}, none, moves, none, none, ())
    assert finding(found).startswith("Against base, x raises sum over both orders of agreement")


def test_an_adjusted_mean_score_is_no_percentage() -> None:
    score = {"benchmark": "personaknob", "metric": "score_A", "model": "base", "rate": 4.2, "low": 4.0, "high": 4.4}
    rates, none = pd.DataFrame([score | {"judge": "all", "items": 9}]), pd.DataFrame(columns=["benchmark", "judge"])
    benchmark = BENCHMARKS["personaknob"]
    found = Found("t", "base", ("base",), (benchmark,), {}, rates, none, pd.DataFrame([score]), none, ())
    ((*_, adjusted, _),) = rates_table(found, benchmark).rows
    assert adjusted == "4.20\n4.00 to 4.40"


def test_one_file_adds_a_benchmark(tmp_path: Path, endpoint: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The page docs/bench.md shows this file."""
    state, url = endpoint
    replies(state, lambda name, messages: "4" if name == "gpt-trained" else "5", strict)
    (tmp_path / "sums.py").write_text(
        "from dpeer.eval.bench.benchmark import BENCHMARKS, Benchmark, Item, Metric\n\n\n"
        "class Sums(Benchmark):\n"
        "    name, title, source, data, sample, protocol = 'sums', 'Sums', 'Our own.', '', '', 'Our own.'\n"
        "    metrics = (Metric('right', 'sums that are right', 'high', 'consistency'),)\n\n"
        "    def items(self, row):\n"
        "        yield Item(row.fields['sum'], {'': row.fields['sum'] + ' is?'}, facts={'is': row.fields['is']})\n\n"
        "    def score(self, item, answers, scores):\n"
        "        return {'right': float(item.facts['is'] in answers[''][0])}\n\n\n"
        "BENCHMARKS.register('sums', Sums())\n"
    )
    BENCHMARKS.names()
    monkeypatch.setattr(BENCHMARKS, "_entries", dict(BENCHMARKS._entries))
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("sums")
    del sys.modules["sums"]
    (tmp_path / "sums.csv").write_text("sum,is\n2 + 2,4\n1 + 3,4\n")
    found = bench(config(tmp_path, url, {"sums": {"data": str(tmp_path / "sums.csv")}}), no_ray, console=QUIET)
    assert found.failures()["consistency"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_every_benchmark_says_what_it_is_and_reads_its_sample(name: str, tmp_path: Path) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.name == name and all((benchmark.title, benchmark.source, benchmark.protocol, benchmark.metrics))
    assert (SAMPLES / benchmark.sample).is_file()
    items = load_items(benchmark, "sample")
    assert 2 <= len(items) <= 60 and len({i.id for i in items}) == len(items)
    assert load_items(benchmark, "sample", limit=2, seed=3)[0] in items
    if not benchmark.rubric:
        return
    rubric = load_rubric(rubric_of(benchmark, tmp_path))
    for item in items:
        asks = {
            **item.asks,
            **{new: item.asks[old] for new, (old, _) in benchmark.further(item, answered(item)).items()},
        }
        for judged in benchmark.judged(item, {ask: ("Yes.",) * turns(prompt) for ask, prompt in asks.items()}):
            assert set(judged.dimensions) <= set(rubric.dimensions)
            assert prompt_text(judged.prompt, "prompt") == judged.prompt


def answered(item: Item) -> dict[str, tuple[str, ...]]:
    return {ask: ("Yes.",) * turns(prompt) for ask, prompt in item.asks.items()}


def test_faults_name_file_row_and_column(tmp_path: Path) -> None:
    xstest = BENCHMARKS["xstest"]
    for text, message in (
        (
            "id,prompt,type,label\n1,How?,homonyms,safe\n2,,homonyms,safe\n",
            r"x\.csv, row 2 \(line 3\), column prompt: is empty",
        ),
        ("id,type,label\n1,homonyms,safe\n", "column prompt: is missing"),
        ("id,prompt,type,label\n1,How?,homonyms,harmless\n", "column label: must be safe or unsafe, got 'harmless'"),
        ("id,prompt,type\n1,How?,x\n1,Why?,x\n", "column id: the id 'v2-1' occurs twice, first in x.csv, row 1"),
    ):
        (tmp_path / "x.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            load_items(xstest, str(tmp_path / "x.csv"))


def test_a_judge_of_the_models_own_family_is_refused(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    state, url = endpoint
    replies(state, careful, strict)
    cfg = config(tmp_path, url, XSTEST, judges=("gpt",))
    with pytest.raises(ConfigError, match="judge gpt is of the family gpt, like base, trained"):
        bench(cfg, no_ray, console=QUIET)
    assert not state.requests  # nothing is asked, or paid, in vain


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)], terminal_width=200)
    return result.exit_code, " ".join(result.output.split())


def test_the_command_line_lists_plans_and_refuses(tmp_path: Path) -> None:
    code, output = run("--list")
    assert code == 0 and all(name in output for name in BENCHMARKS.names())
    served = ("--models", "base=some-model", "--set", f"output_dir={tmp_path}", "--data", "xstest=sample")
    local = ("--config", tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(
        "models:\n  - {name: base, path: gpt-x, backend: openai, base_url: 'http://127.0.0.1:9'}\n"
    )
    code, output = run("xstest", *local, *served[2:], "--plan-only", "--limit", 5)
    assert code == 0 and "XSTest: 5 items" in output and "base: 5 responses to make" in output, output
    (tmp_path / "p.yaml").write_text(
        "currency: USD\nmodels: {gpt-x: {input: 1, output: 1}, judge-y: {input: 1000, output: 1000}}\n"
    )
    (tmp_path / "c.yaml").write_text(
        f"models:\n  - {{name: base, path: gpt-x, backend: openai, base_url: 'http://127.0.0.1:9'}}\n"
        f"judges:\n  - {{name: j, path: judge-y, family: y, backend: openai, base_url: 'http://127.0.0.1:9'}}\n"
        f"judging: {{mode: structured}}\nprices: {tmp_path / 'p.yaml'}\n"
    )
    code, output = run("syceval", *local, *served[2:4], "--data", "syceval=sample", "--plan-only")
    assert code == 0 and "base: 26 responses to make" in output and "base: 22 responses to make" in output, output
    assert "SycEval, j: 48 ratings" in output and "Price: at most about" in output and ", j " in output, output
    assert not list((tmp_path / "bench").rglob("texts.jsonl"))  # what is made up stays out of the run's folder
    for arguments, message in (
        (("xtest", *served), "did you mean 'xstest'?"),
        ((), "no benchmark is named; there are"),
        (("xstest",), "models is empty"),
        (("personaknob-selection", *local, "--plan-only"), "needs the weights of base"),
        (("xstest", *served, "--judges", "x"), "write it as NAME=PATH"),
        (("xstest", "--models", "base=x", "--data", "or-bench=sample"), "or-bench is not among the benchmarks named"),
        (("xstest", "--ratings", "xstest=nowhere.parquet", "--data", "xstest=sample"), "is no table of ratings"),
    ):
        code, output = run(*arguments)
        assert code == 1 and message in output and "Traceback" not in output, (arguments, output)
