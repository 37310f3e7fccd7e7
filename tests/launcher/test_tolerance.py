"""`dpeer tolerance`: what pilots say of reachable levels; the pilots themselves run in test_train_ray.py."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from dpeer.config import Config
from dpeer.errors import ConfigError
from dpeer.launcher.recipe import training_config
from dpeer.launcher.tolerance import EQUAL, WORST, Levels, apply, explore, levels, pilots, reach
from dpeer.objective.bounds import room
from dpeer.report.tolerance import write_page
from dpeer.training.run_dir import RunDir

DIMS = ("A", "T")


def at(a: float, t: float) -> Levels:
    return Levels({"A": a, "T": t}, {"A": 0.01, "T": 0.02}, {"A": 0.3, "T": 0.5})


FOUND = {EQUAL: at(0.1, 0.7), WORST: at(0.3, 0.3), "favouring A": at(0.095, 0.8), "favouring T": at(0.35, 0.2)}


def test_suggestion_price_and_records() -> None:
    a, t = reach(FOUND, {"A": 400, "T": 100}, 6.0)
    # room for a proof: log 40 / (n b) + b variance / 2 + sd / sqrt n, with b = sqrt(2 log 40 / (n variance)) <= 0.8 / 6
    goal, stakes = math.log(40), (0.8 / 6, 0.8 / 6)
    rooms = [
        goal / (n * b) + b * s**2 / 2 + s / math.sqrt(n) for n, s, b in zip((400, 100), (0.3, 0.5), stakes, strict=True)
    ]
    assert a.suggested == pytest.approx(0.2 + rooms[0], abs=0.011) and t.suggested == pytest.approx(
        0.3 + rooms[1], abs=0.011
    )
    assert t.price == pytest.approx((0.35 - 0.1) / (0.7 - 0.2))
    assert math.isnan(a.price)  # 0.005 gained is within the error
    assert t.needed is not None and room(0.25, t.needed, 6.0) <= 0.03 < room(0.25, t.needed - 1, 6.0)


def test_without_certificate_records_only_the_error_is_added() -> None:
    a, _ = reach(FOUND, {"A": 0, "T": 0}, 6.0)
    assert a.suggested == pytest.approx(0.21)


def test_levels_weigh_steps_by_their_edges(tmp_path: Path) -> None:
    def row(loss: float, edges: int, se: float | None) -> str:
        return json.dumps({"dimensions": {"A": {"dual": {"loss": loss, "edges": edges, "loss_se": se}}}})

    early = [row(9.0, 5, 1.0)] * 8
    (tmp_path / "ledger.jsonl").write_text("\n".join([*early, row(0.2, 3, 0.1), row(0.6, 1, None)]))
    found = levels(tmp_path / "ledger.jsonl")
    assert found.loss["A"] == pytest.approx((3 * 0.2 + 0.6) / 4)
    assert found.se["A"] == pytest.approx(0.1) and found.spread["A"] == pytest.approx(math.sqrt(3) * 0.1)


def test_records_that_are_seen_again_make_no_level_surer(tmp_path: Path) -> None:
    """Ten steps over a dual split of eight edges are ten looks at the same eight."""
    run = RunDir(tmp_path)
    for edges, se in ((80, 0.1 / math.sqrt(10)), (8, 0.1)):
        run.begin(training_config("demo", []), {"data": {"dual": {"edges": {"A": edges}}}})
        run.ledger.unlink(missing_ok=True)
        run.ends.clear()
        for step in range(1, 51):
            run.append({"step": step, "dimensions": {"A": {"dual": {"loss": 0.2, "edges": 8, "loss_se": 0.1}}}}, {})
        assert levels(run.ledger).se["A"] == pytest.approx(se)


def test_pilots_change_weights_and_nothing_else() -> None:
    config = training_config("demo")
    arms = pilots(config, DIMS, 12)
    assert list(arms) == [EQUAL, WORST, "favouring A", "favouring T"]
    assert all(arm.training.steps == 12 and arm.data == config.data for arm in arms.values())
    assert arms[WORST].objective.constraint.form == "worst" and not arms[EQUAL].objective.constraint.enforce
    assert arms["favouring T"].objective.primary == {"A": 1.0, "T": 5.0}
    assert len({arm.run_dir for arm in arms.values()}) == 4
    assert all(Config.model_validate(arm.model_dump()) == arm for arm in arms.values())


def test_recipe_and_page(tmp_path: Path) -> None:
    reached = reach(FOUND, {"A": 400, "T": 100}, 6.0)
    apply(tmp_path / "new.yaml", "demo", (), reached)
    assert training_config(str(tmp_path / "new.yaml")).objective.constraint.tolerance == {
        r.dimension: r.suggested for r in reached
    }
    with pytest.raises(ConfigError, match="the file exists"):
        apply(tmp_path / "new.yaml", "demo", (), reached)
    assert yaml.safe_load((tmp_path / "new.yaml").read_text())["extends"] == "demo"
    page = write_page(reached, tmp_path / "page.html", "x").read_text()
    assert "can be had and proven" in page and "Half way" not in page and "half way" in page


@pytest.mark.parametrize(
    "settings",
    [("training.epochs=2", "data.heldout=10%"), ("name=mine", "model.lora={alpha: 8}"), ("training.optimizer={}",)],
)
def test_the_recipe_has_a_name_of_its_own_and_all_settings(settings: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("extends: demo\nname: first\nmodel: {lora: {rank: 4}}\n")
    recipe, new = str(tmp_path / "first.yaml"), str(tmp_path / "new.yaml")
    apply(Path(new), recipe, settings, reached := reach(FOUND, {"A": 400, "T": 100}, 6.0))
    before, after = training_config(recipe, settings), training_config(new)
    assert after.name == f"{before.name}-held" and after.run_dir != before.run_dir
    assert after.objective.constraint.tolerance == {r.dimension: r.suggested for r in reached}
    rest = {"name", "objective"}
    assert after.model_dump(exclude=rest) == before.model_dump(exclude=rest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("objective.kind=sft", "no loss per dimension"),
        ("objective.constraint.form=balance", "levels of the loss are tolerances"),
        ("data.dual=none", "Give data.dual"),
    ],
)
def test_what_has_no_level_is_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        explore(training_config("demo", (change, "objective.dual.evidence=batch")), None)
