"""Adaptive judging that ends before all is decided: money that runs out, and last fits that fail."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from dpeer.errors import ClusterError
from dpeer.eval.adaptive.confirm import Last
from dpeer.eval.config import EvalConfig
from dpeer.eval.irt.design import ConstantScores
from dpeer.eval.irt.errors import IrtError, SamplerError
from dpeer.eval.judge import judge
from dpeer.eval.plan import plan
from dpeer.eval.store.parts import read_table
from tests.eval.evaluations import no_ray, write_responses
from tests.eval.planted import ABILITY, planted, registered


def test_a_budget_that_ends_between_rounds_leaves_a_table_and_says_what_is_provisional(
    tmp_path: Path,
) -> None:
    registered()
    responses = write_responses(tmp_path / "responses.jsonl", 70, tuple(ABILITY))
    prices = tmp_path / "prices.yaml"
    prices.write_text(yaml.safe_dump({"currency": "EUR", "models": {"planted": {"input": 1e4, "output": 0.0}}}))
    cfg = planted(tmp_path, responses, prices=str(prices), budget=76.0)
    said = StringIO()
    with pytest.raises(ClusterError, match=r"Cannot be decided at this budget: .*same - base on A") as stopped:
        judge(cfg, no_ray, console=Console(file=said, width=300))
    made = set(read_table(cfg.folder / "ratings")["rating_id"])
    facts = json.loads((cfg.folder / "ratings" / "manifest.json").read_text())["rounds"]
    assert [r["ratings"] for r in facts["rounds"]] == [48] and 48 < len(made) == facts["ratings"]
    assert set(pd.read_parquet(cfg.folder / "ratings.parquet")["rating_id"]) == made
    decided = {c["model"]: c["verdict"] in ("higher", "lower", "equivalent") for c in facts["contrasts"]}
    for model in ("same", "better"):
        told = str(stopped.value).partition("Decided provisionally")[decided[model] * 2]
        assert f"{model} - base on A" in told
    assert "what it has decided is provisional" in said.getvalue() and facts["currency"] == "EUR"


def test_scores_that_are_all_alike_are_asked_on_and_refused_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.eval.planted.THRESHOLDS", np.full(4, 40.0))
    backend = registered()
    cfg = planted(tmp_path, write_responses(tmp_path / "few.jsonl", 12, tuple(ABILITY)))
    said = StringIO()
    with pytest.raises(ConstantScores):
        judge(cfg, no_ray, console=Console(file=said, width=300))
    assert len(backend.asked) == len(plan(cfg).rows) and "did not converge on A" in said.getvalue()
    facts = json.loads((cfg.folder / "ratings" / "manifest.json").read_text())["rounds"]
    assert facts["provisional"] == "the last fit failed" and facts["rounds"][-1]["failure"]


def test_a_last_fit_that_fails_asks_for_more_ratings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise IrtError("the sampler failed: planted")

    monkeypatch.setattr("dpeer.eval.adaptive.confirm.estimate", failing)
    backend = registered()
    cfg = planted(
        tmp_path,
        write_responses(tmp_path / "few.jsonl", 24, tuple(ABILITY)),
        judging={"rubric": "toyworld", "dimensions": ["A"], "until": {"contrast": 9.0, "batch": 60}},
    )
    said = StringIO()
    with pytest.raises(IrtError, match="planted"):
        judge(cfg, no_ray, console=Console(file=said, width=300))
    assert len(backend.asked) == len(plan(cfg).rows) and "more are asked for: the sampler failed" in said.getvalue()
    second = json.loads(next((cfg.folder / "rounds").rglob("round-002.json")).read_text())
    assert second["failure"] == "the sampler failed: planted"
    assert set(np.ravel(second["looks"][0]["verdict"])) == {"open"}, "nothing is decided"


@pytest.fixture
def small(tmp_path: Path) -> EvalConfig:
    """Its last fit comes after the first rounds: nothing that large is to be found."""
    registered()
    return planted(
        tmp_path,
        write_responses(tmp_path / "few.jsonl", 24, tuple(ABILITY)),
        judging={"rubric": "toyworld", "dimensions": ["A"], "until": {"contrast": 9.0, "batch": 60}},
    )


def test_a_machine_that_cannot_fit_buys_no_ratings(small: EvalConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise SamplerError("no room left: planted")

    monkeypatch.setattr("dpeer.eval.adaptive.confirm.estimate", full)
    with pytest.raises(SamplerError, match="planted"):
        judge(small, no_ray, console=Console(file=StringIO()))
    facts = json.loads((small.folder / "ratings" / "manifest.json").read_text())["rounds"]
    assert facts["ratings"] < facts["of"] and facts["provisional"] == "the last fit failed"


def test_chains_that_did_not_pass_decide_nothing_for_good(small: EvalConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[bool] = []

    def last(what: Any, *_: Any) -> Last:
        fits.append(len(fits) > 0)
        shape = len(what.dimensions), len(what.models)
        return Last(np.zeros(shape), np.full(shape, 0.1), [] if fits[-1] else ["R-hat is 1.2"], fits[-1])

    monkeypatch.setattr("dpeer.eval.adaptive.rounds.posterior", last)
    said = StringIO()
    for passed in (False, True, True):
        judge(small, no_ray, console=Console(file=said, width=300))
        facts = json.loads((small.folder / "ratings" / "manifest.json").read_text())["rounds"]
        assert (facts["provisional"] is None) is passed
    assert "R-hat is 1.2" in said.getvalue() and "did not pass their diagnostics" in said.getvalue()
    assert fits == [False, True], "fitted again until it passed, and then no more"
