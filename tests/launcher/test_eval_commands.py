"""The evaluation from the command line: recipes, plans, imports, simulations, and what wrong input looks like."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from dpeer.config_io import load_section
from dpeer.eval.config import EvalConfig
from dpeer.launcher import demo_evaluation
from dpeer.launcher.cli import app
from dpeer.launcher.recipe import EVALUATION, recipe_names, recipe_path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("name", recipe_names(EVALUATION))
def test_every_shipped_recipe_loads_and_prints_itself(name: str) -> None:
    config = load_section(EvalConfig, recipe_path(name, EVALUATION))
    result = CliRunner().invoke(app, ["judge", name, "--dry-run"])
    assert result.exit_code == 0 and EvalConfig.model_validate(yaml.safe_load(result.output)) == config


def test_the_demo_moves_its_recipe_to_its_own_folder(tmp_path: Path) -> None:
    shipped = load_section(EvalConfig, recipe_path("demo", EVALUATION))
    moved = demo_evaluation.evaluation_config(tmp_path, 3)
    assert moved.seed == 3 and moved.folder == tmp_path / "evaluation"
    places = [Path(s.path) for s in (*moved.models, *moved.judges)]
    assert [tmp_path / Path(s.path).relative_to("runs/demo") for s in (*shipped.models, *shipped.judges)] == places
    changed = {"seed", "output_dir", "prompts", "models", "judges"}
    assert moved.model_dump(exclude=changed) == shipped.model_dump(exclude=changed)


def test_plan_only_counts_calls_without_an_engine(tmp_path: Path) -> None:
    responses = tmp_path / "responses.jsonl"
    rows = [{"model": m, "prompt": f"Question {q}?", "response": f"{m} says {q}."} for m in "ab" for q in range(4)]
    responses.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    judges = [{"name": n, "path": n, "backend": "openai", "base_url": "http://127.0.0.1:9"} for n in ("x", "y")]
    recipe.write_text(yaml.safe_dump({"name": "n", "output_dir": str(tmp_path), "judges": judges}))
    code, output = run("judge", recipe, "--plan-only", "--set", f"responses={responses}", "--tokens-per-second", 100)
    assert code == 0 and "96 ratings planned, 96 to make" in output and " 48 " in output, output
    assert "a difference of two models to about ±1." in output
    rounds = ("--set", "judging.until={contrast: 0.3}", "--set", f"responses={responses}")
    code, output = run("judge", recipe, "--plan-only", *rounds)
    assert code == 0 and "96 ratings planned" in output and "the most that the rounds may ask. The first: " in output
    assert not (tmp_path / "n" / "ratings" / "judge=x").exists() and not (tmp_path / "n" / "rounds").exists()


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("judge", "dmeo"), "did you mean 'demo'?"),
        (("judge", "demo", "--set", "farm.replica=2"), "did you mean farm.replicas?"),
        (("judge", "demo", "--set", "responses=nowhere.jsonl", "--plan-only"), "nowhere.jsonl"),
        (("irt", "fit", "nowhere.parquet"), "nowhere.parquet"),
        (("irt", "fit", "nowhere.parquet", "--model", "3pl"), "must be gmfrm, rasch or graded"),
        (("irt", "fit", "nowhere.parquet", "--with", "haloo"), "known: halo"),
        (("irt", "fit", "nowhere.parquet", "--thresholds", "judges"), "common, judge or item"),
        (("irt", "fit", "nowhere.parquet", "--severity-prior", "flat"), "shrunken or wide"),
        (("irt", "fit", "nowhere.parquet", "--scale", "5-1"), "e.g. 1-5"),
        (("irt", "fit", "nowhere.parquet", "--anchor-sd", "0"), "need --anchor FIT"),
        (("irt", "report", "nowhere"), "nowhere"),
        (("irt", "simulate", "-o", "x.parquet", "--set", "judge=5"), "judges"),
        (("irt", "simulate", "-o", "x.parquet", "--set", "judges=many"), "judges=many"),
        (("ratings", "import", "nowhere.csv", "-o", "x.parquet", "--map", "a=model"), "error:"),
        (("ratings", "import", "nowhere.csv", "-o", "x.parquet", "--map", "a"), "LEFT=RIGHT"),
        (("ratings", "import", "r.csv", "-o", "r.csv", "--map", "a=model"), "give a name that ends in .parquet"),
        (("ratings", "xstest", "nowhere", "-o", "x.parquet"), "nowhere"),
    ],
)
def test_wrong_input_is_one_screen(
    arguments: tuple[str, ...], shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = run(*arguments)
    assert code == 1 and shown in output and "Traceback" not in output and len(output) < 1500, output
    assert not list(tmp_path.glob("*.parquet"))


def test_simulated_and_imported_ratings_are_tables_that_a_fit_can_read(tmp_path: Path) -> None:
    from dpeer.eval.irt.encode import encode

    made = tmp_path / "made.parquet"
    code, output = run("irt", "simulate", "-o", made, "--set", "items=5", "--set", "models=3", "--set", "dimensions=2")
    assert code == 0 and "90 ratings" in output
    code, output = run("irt", "fit", made, "--base", "nobody")
    assert code == 1 and "nobody has no usable rating; choose one of model0" in output
    assert len(encode(made)) == 90 and json.loads((tmp_path / "made.truth.json").read_text())["theta"]
    labels, table = tmp_path / "labels.csv", tmp_path / "table.parquet"
    labels.write_text("system,question,who,verdict\na,q1,ann,good\nb,q1,ann,bad\na,q2,bob,what\nb,q2,bob,good\n")
    mapping = [x for pair in ("system=model", "question=item", "who=judge", "verdict=score") for x in ("--map", pair)]
    code, output = run(
        "ratings", "import", labels, "-o", table, *mapping, "--label", "good=2", "--label", "bad=1", "--human", "ann"
    )
    assert code == 0 and "4 ratings (3 ok, 1 unparsed)" in output
    found = pd.read_parquet(table).set_index("judge")
    assert found.loc["ann", "judge_family"].eq("human").all() and found.loc["ann", "score"].tolist() == [2, 1]
