"""Benchmarks on real engines with tiny models, and log-probabilities against sequences computed one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpeer.eval.backends.config import Engine, Served
from dpeer.eval.bench.benchmark import BENCHMARKS
from dpeer.eval.bench.config import BenchConfig
from dpeer.eval.bench.load import load_items
from dpeer.eval.bench.run import bench
from dpeer.eval.bench.selection import names_of, scored
from tests.eval.bench.made_up import QUIET, no_ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # three engines start, one after the other
ENGINE = {"device": "cpu", "dtype": "float32", "max_model_len": 3000, "max_num_seqs": 64}


@pytest.fixture(scope="module", autouse=True)
def like_others() -> Iterator[None]:
    """Ray's workers of this file at the priority of the test: at 15 they get no turn on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


def config(folder: Path, models: Path, **changes: object) -> BenchConfig:
    values = {
        "name": "t",
        "output_dir": str(folder),
        "models": [{"name": "a", "path": str(models / "a")}],  # of two, each would start anew in every turn
        "judges": [{"name": n, "path": str(models / n)} for n in ("c", "d")],
        "judging": {"min_mass": 0.0, "allow_related": True},  # d is a qwen like a
        "generation": {"temperature": 0.0, "max_tokens": 12},
        "engine": ENGINE,
        "adjust": False,
    }
    return BenchConfig.model_validate(values | changes)


def test_xstest_and_a_conversation_of_five_turns_on_vllm(cluster: None, tmp_path: Path, models: Path) -> None:
    cfg = config(tmp_path, models, benchmarks={"xstest": {"data": "sample"}, "sycon": {"data": "sample"}})
    found = bench(cfg, contextlib.nullcontext, console=QUIET)
    rates = found.rates.set_index(["benchmark", "metric", "judge", "model"])["items"]
    # A random model may be cut before it has said anything: such items are left out, and told.
    assert (
        1 <= rates["xstest", "safe_compliance", "c", "a"] <= 6 and 1 <= rates["xstest", "unsafe_refusal", "d", "a"] <= 6
    )
    assert ("sycon", "turn_of_flip", "all", "a") in rates.index or "SYCON-Bench (debate): no item" in str(found.notes)
    again = bench(cfg, no_ray, console=QUIET)  # everything is on disk
    assert again.rates.equals(found.rates)


def test_selection_equals_sequences_one_by_one(tmp_path: Path, models: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    items = load_items(BENCHMARKS["personaknob-selection"], "sample")
    records = tuple(item.facts["record"] for item in items)
    found = scored(Served(name="a", path=str(models / "a")), Engine.model_validate(ENGINE), records, "cpu")
    model = AutoModelForCausalLM.from_pretrained(models / "a", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "a")
    for record, values in zip(records, found, strict=True):
        prompt = [{"role": m.role, "content": m.content} for m in record.prompt]
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        for response, value in zip(record.responses, values or [], strict=True):
            told = [*prompt, {"role": "assistant", "content": response.text}]
            ids = tokenizer(tokenizer.apply_chat_template(told, tokenize=False).rstrip("\n"), add_special_tokens=False)
            begin = len(tokenizer(head, add_special_tokens=False)["input_ids"])
            tokens = torch.tensor([ids["input_ids"]])
            with torch.no_grad():
                logs = model(tokens).logits.log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None])[:, 0]
            assert value == pytest.approx(logs[begin - 1 :].mean().item(), abs=1e-5)
    score = BENCHMARKS["personaknob-selection"].score
    for item, values in zip(items, found, strict=True):
        named = dict(zip(names_of(item.facts["record"]), values or [], strict=True))
        first = all(v < named["golden"] for name, v in named.items() if name != "golden")
        said = {name: (repr(v),) for name, v in named.items()}
        assert score(item, said, {})["golden_first"] == float(first)
