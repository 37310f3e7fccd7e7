"""Adaptive judging in rounds: what is recorded, what ends them, and runs that are killed and go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from dpeer.errors import CheckpointError, ClusterError, ConfigError
from dpeer.eval.adaptive.choose import opening
from dpeer.eval.adaptive.decide import look
from dpeer.eval.adaptive.record import Record
from dpeer.eval.adaptive.rounds import first_round
from dpeer.eval.adaptive.task import task
from dpeer.eval.config import Until
from dpeer.eval.irt.design import ConstantScores
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.judge import judge
from dpeer.eval.plan import plan
from dpeer.eval.store.parts import read_table
from tests.eval.evaluations import no_ray, write_responses
from tests.eval.made_designs import crossed, fitted
from tests.eval.planted import ABILITY, planted, registered

ROOT = Path(__file__).parents[2]


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    return write_responses(tmp_path / "responses.jsonl", 70, tuple(ABILITY))


def test_a_base_without_responses_is_refused(tmp_path: Path, responses: Path) -> None:
    registered()
    cfg = planted(tmp_path, responses, base="bse")
    with pytest.raises(ConfigError, match=r"judging\.until: base bse has no response.*base, better, same"):
        first_round(cfg, plan(cfg), Until())


def test_a_spent_budget_names_what_is_left_and_a_damaged_round_is_refused(tmp_path: Path, responses: Path) -> None:
    backend = registered()
    prices = tmp_path / "prices.yaml"
    prices.write_text(yaml.safe_dump({"models": {"planted": {"input": 1e4, "output": 0.0}}}))
    cfg = planted(tmp_path, responses, prices=str(prices), budget=20.0)
    quiet = Console(file=StringIO())
    with pytest.raises(
        ClusterError, match=r"raise `budget`.*Cannot be decided at this budget: better - base on A, same"
    ):
        judge(cfg, no_ray, console=quiet)
    made = set(read_table(cfg.folder / "ratings")["rating_id"])
    (first,) = (cfg.folder / "rounds").rglob("round-001.json")
    assert len(made) > 0 and made < set(json.loads(first.read_text())["rating_ids"])
    assert set(pd.read_parquet(cfg.folder / "ratings.parquet")["rating_id"]) == made, "a table of what was answered"
    facts = json.loads((cfg.folder / "ratings" / "manifest.json").read_text())["rounds"]
    assert facts["ratings"] == len(made) and facts["currency"] == "USD" and facts["contrasts"] == []
    assert facts["provisional"] == "the budget ended"
    before = len(backend.asked)
    with pytest.raises(ClusterError, match="Cannot be decided"):
        judge(cfg, no_ray, console=quiet)
    assert set(read_table(cfg.folder / "ratings")["rating_id"]) >= made
    assert not set(backend.asked[before:]) & made, "nothing is paid for twice"
    first.write_bytes(first.read_bytes().replace(b'"looks"', b'"loots"'))
    with pytest.raises(
        CheckpointError, match=r"round-001\.json does not match its checksum.*the rounds then begin anew"
    ):
        judge(cfg, no_ray, console=quiet)


def test_a_budget_that_ends_between_rounds_leaves_a_table_and_says_what_is_provisional(
    tmp_path: Path, responses: Path
) -> None:
    registered()
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


def test_an_end_holds_for_the_ratings_that_led_to_it(tmp_path: Path, responses: Path) -> None:
    """A round, an end, a failed rating asked for again, and another contrast; each read back as after a kill."""
    registered()
    cfg = planted(tmp_path, responses)
    full, until = plan(cfg), Until(contrast=0.3)
    what = task(cfg, full, until)

    def read(until: Until = until) -> Record:
        return Record(tmp_path / "rounds", what, full, until)

    ratings = full.rows.head(8).assign(status=["ok"] * 7 + ["engine_error"], score=3)
    late = ratings.assign(status="ok")
    design, asked = crossed(3, 50, 2), opening(crossed(3, 50, 2), 60, 0)
    first = look([fitted(2.0, 0.0, sd=0.05)], design, asked, [], 0.3)
    assert first.verdict[0, 1:].tolist() == ["higher", "equivalent"]
    record = read()
    record.begin(ratings["rating_id"])
    record.add(first)
    assert not read().ended(ratings), "killed during the last fit"
    record.finish(ratings)
    assert read().ended(ratings) and not read().ended(late)
    assert not read(Until(contrast=0.2)).ended(ratings)
    assert read(Until(contrast=0.2)).looks[0].verdict[0, 1:].tolist() == ["higher", "open"]
    assert read(Until(contrast=0.2)).looks[0].time.tolist() == first.time.tolist(), "the error is spent once"
    again = read()
    again.add(first)
    again.begin(full.rows["rating_id"].iloc[8:20])
    assert not read().ended(ratings) and len(read().looks) == 2, "the look at the end was one, too"
    assert read().rounds == [1, 1]
    other = Record(tmp_path / "rounds", what, replace(full, rows=full.rows.head(20)), until)
    assert not other.looks and other.others == [record.folder]


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

    monkeypatch.setattr("dpeer.eval.adaptive.rounds.estimate", failing)
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_with_the_same_ratings_and_saves_what_it_says(tmp_path: Path, responses: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    backend, said = registered(), StringIO()
    cfg = planted(whole, responses)
    table = pd.read_parquet(judge(cfg, no_ray, console=Console(file=said, width=300)))
    full = plan(cfg)
    assert cfg.judging.until
    first = set(first_round(cfg, full, cfg.judging.until).rows["rating_id"])
    assert len(backend.asked) == len(set(backend.asked)) == len(table) < 0.8 * len(full.rows)
    assert first < set(table["rating_id"]) < set(full.rows["rating_id"])
    per_model = table["model"].value_counts()
    assert per_model["better"] <= per_model["same"] <= per_model["base"]
    facts = json.loads((cfg.folder / "ratings" / "manifest.json").read_text())["rounds"]
    assert facts["ratings"] == len(table) and facts["of"] == len(full.rows) and len(facts["rounds"]) > 1
    verdicts = {c["model"]: c["verdict"] for c in facts["contrasts"]}
    assert verdicts["better"] == "higher" and verdicts["same"] != "higher"
    share = f"asked for {len(table)} of {len(full.rows)} planned ratings ({100 * len(table) / len(full.rows):.0f} %)"
    assert share in said.getvalue()

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.eval.planted", str(cut), str(responses), str(len(first) + 30)]
    died = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    made = read_table(cut / "test" / "ratings")
    assert len(first) < len(made) < len(table) and not (cut / "test" / "rounds" / "end.json").exists()
    backend = registered()
    again = pd.read_parquet(judge(planted(cut, responses), no_ray, console=Console(file=StringIO())))
    assert not set(backend.asked) & set(made["rating_id"]) and len(backend.asked) == len(table) - len(made)
    keys = ["rating_id", "score"]
    assert again[keys].sort_values("rating_id").equals(table[keys].sort_values("rating_id"))
    names = [p.relative_to(whole) for p in sorted((whole / "test" / "rounds").rglob("*.json"))]
    assert all((cut / name).read_bytes() == (whole / name).read_bytes() for name in names) and len(names) > 2
    asked = len(backend.asked)
    judge(planted(cut, responses), no_ray, console=Console(file=StringIO()))
    assert len(backend.asked) == asked
