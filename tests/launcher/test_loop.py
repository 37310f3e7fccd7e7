"""`dpeer loop`: the rule, what a loop file may say, how a loop goes on and ends, and its page."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from dpeer.data.load import load
from dpeer.errors import ConfigError
from dpeer.eval.irt.fit_folder import save
from dpeer.eval.irt.types import Posterior
from dpeer.json_safe import json_safe
from dpeer.launcher.cli import app
from dpeer.launcher.loop.built import build_spec, make
from dpeer.launcher.loop.rule import Reached, Rule, gained, next_tolerances, weakness
from dpeer.launcher.loop.run import LoopFolder, _begun, _decided, _ended, refuse_other, write_page
from dpeer.launcher.loop.spec import Loop, completed, evaluation, fixed, load_loop, run_name, training
from dpeer.launcher.recipe import BUILD
from dpeer.training.run_dir import RunDir
from tests.eval.conftest import endpoint, toy
from tests.eval.irt.made_up import made_up
from tests.eval.toy_writers import Toy, values, write_spec
from tests.training.test_run_dir import FACTS

LN2 = math.log(2)
__all__ = ["endpoint", "toy"]  # fixtures


def reached(
    tolerance: float, level: float, weakest: float = 0.0, stronger: float = 1.0, error: float = 0.01
) -> Reached:
    return Reached(tolerance, level, error, weakest, stronger)


# The rule


def test_the_weakest_is_tightened_and_what_is_met_and_stronger_relaxed() -> None:
    found = {
        "T": reached(0.6, 0.7, weakest=0.9, stronger=0.0),  # not met: from its tolerance
        "A": reached(0.4, 0.2),  # met and stronger
        "C": reached(0.4, 0.2, stronger=0.8),  # met, but perhaps as weak
        "E": reached(0.4, 0.395, error=0.02),  # stronger, but perhaps not met
    }
    after = next_tolerances(found, Rule(tighten=0.5, relax=0.25), LN2)
    assert after.tolerance == {"T": 0.3, "A": 0.5, "C": 0.4, "E": 0.4}
    assert after.moves == {"T": "tightened", "A": "relaxed", "C": "kept", "E": "kept"} and after.moved


def test_a_tolerance_that_binds_nothing_is_tightened_from_the_level_reached() -> None:
    """Else a round would change nothing: half of 0.6 is still above 0.2."""
    for tolerance in (0.6, math.inf):
        after = next_tolerances({"T": reached(tolerance, 0.2, weakest=1.0)}, Rule(tighten=0.5), LN2)
        assert after.tolerance == {"T": 0.1}
    above = next_tolerances({"T": reached(math.inf, 1.4, weakest=1.0)}, Rule(tighten=0.5), LN2)
    assert above.tolerance == {"T": round(LN2 / 2, 3)}  # worse than untrained: from what an untrained model has
    unknown = next_tolerances({"T": reached(0.6, math.nan, weakest=1.0)}, Rule(tighten=0.5), LN2)
    assert unknown.tolerance == {"T": 0.3}


def test_no_tolerance_leaves_its_bounds_and_a_loop_at_them_stands_still() -> None:
    rule = Rule(tighten=0.9, relax=1.0, least=0.05)
    found = {"T": reached(0.05, 0.2, weakest=1.0), "A": reached(0.69, 0.1), "E": reached(math.inf, 0.1)}
    after = next_tolerances(found, rule, 0.69)
    assert after.tolerance == {"T": 0.05, "A": 0.69, "E": math.inf} and not after.moved
    given = next_tolerances({"T": reached(0.02, 0.2, weakest=1.0)}, rule, LN2)
    assert given.tolerance == {"T": 0.02}, "a smaller tolerance of the recipe is not loosened"


def test_rounds_approach_what_can_be_had() -> None:
    """A world in which the levels of two dimensions sum to 0.8: the worse one improves until they are equal."""
    tolerance, level = {"A": 0.6, "T": 0.6}, {"A": 0.2, "T": 0.6}
    for _ in range(6):
        worst = max(level, key=level.__getitem__)
        found = {d: reached(tolerance[d], level[d], float(d == worst), float(d != worst)) for d in level}
        tolerance = next_tolerances(found, Rule(), LN2).tolerance
        level["T"] = min(0.6, max(tolerance["T"], 0.8 - tolerance["A"], 0.2))
        level["A"] = 0.8 - level["T"]
    assert abs(level["T"] - level["A"]) < 0.2


def test_weakest_and_gain_are_read_from_joint_draws() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal([0.0, -1.0, -0.9], 0.05, (4000, 3))
    lowest, stronger = weakness(draws)
    assert lowest.sum() == pytest.approx(1) and lowest[1] > 0.85 and lowest[0] == 0
    assert stronger[0] == 1 and stronger[1] == 0 and 0.8 < stronger[2] < 1
    assert gained(draws + 0.1, draws) and not gained(draws, draws) and not gained(draws - 0.1, draws)
    noisy = rng.normal(-0.95, 1.0, (4000, 1))
    assert not gained(noisy + 0.3, noisy[::-1])


# The loop file


def loop_file(folder: Path, **more: Any) -> Path:
    world = {"train": str(folder / "train.jsonl"), "heldout": str(folder / "test.jsonl")}
    changes = {"output_dir": str(folder), "model": {"path": str(folder / "base")}, "data": world}
    tree = {"name": "mine", "recipe": "demo", "evaluation": "demo", "changes": changes} | more
    (folder / "loop.yaml").write_text(yaml.safe_dump(tree))
    return folder / "loop.yaml"


def test_rounds_differ_in_name_and_tolerance_only(tmp_path: Path) -> None:
    spec, path = load_loop(str(loop_file(tmp_path)))
    first = training(spec, path, 1, {"A": 0.5, "T": math.inf})
    second = training(spec, path, 2, {"A": 0.4, "T": 0.6})
    assert first.run_dir == tmp_path / "mine" / "round-1"
    assert second.objective.constraint.tolerance == {"A": 0.4, "T": 0.6}
    undone = second.objective.constraint.model_copy(update={"tolerance": first.objective.constraint.tolerance})
    same = second.model_copy(
        update={"name": "round-1", "objective": second.objective.model_copy(update={"constraint": undone})}
    )
    assert same == first and first.model.path == str(tmp_path / "base"), "each round starts from the base model"
    judged = evaluation(spec, path, first, 2)
    assert [m.name for m in judged.models] == ["base", "round-1", "round-2"] and judged.base == "base"
    assert judged.models[2].path == str(tmp_path / "mine" / "round-2" / "export")
    assert fixed(spec, first, judged) == fixed(spec, training(spec, path, 1), evaluation(spec, path, first, 1)) | {
        "training": fixed(spec, first, judged)["training"]
    }


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"changes": {"objective": {"constraint": {"form": "worst"}}}}, "form worst"),
        ({"changes": {"objective": {"constraint": {"enforce": False}}}}, "enforce false"),
        ({"changes": {"objective": {"kind": "sft"}}}, "kind is sft|enforce"),
        ({"changes": {"data": {"dual": "none"}}}, "data.dual is none"),
        ({"rounds": 0}, "rounds"),
        ({"tightn": 1}, "tightn"),
        ({"rule": {"tighten": 1.0}}, "tighten"),
    ],
)
def test_what_no_loop_can_be_made_of_is_refused(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    spec = str(loop_file(tmp_path, **more))
    result = CliRunner().invoke(app, ["loop", spec, "--dry-run"])
    assert result.exit_code == 1
    with pytest.raises(ConfigError, match=says):
        training(*load_loop(spec), 1)


def test_data_bring_their_own_dual_and_heldout_records(tmp_path: Path) -> None:
    given = loop_file(tmp_path, data="built/parquet")
    assert training(*load_loop(str(given)), 1).data.train == "built/parquet"  # heldout stands in `changes` there
    given.write_text(given.read_text().replace("heldout", "dual"))
    with pytest.raises(ConfigError, match=r"data.heldout would still be .*test.jsonl"):
        training(*load_loop(str(given)), 1)


def test_a_build_gives_the_splits_that_the_file_does_not_name(tmp_path: Path) -> None:
    made = yaml.safe_load((BUILD / "personaknob.yaml").read_text()) | {"name": "own", "output_dir": str(tmp_path)}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(made))
    given = loop_file(tmp_path, build="spec.yaml")  # heldout stands in `changes` there
    data = training(*load_loop(str(given)), 1).data
    assert data.train == f"{tmp_path}/own/parquet@train" and data.dual == f"{tmp_path}/own/parquet@dual"
    assert data.heldout == str(tmp_path / "test.jsonl")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(made | {"records": {"train": 1, "test": 1}}))
    with pytest.raises(ConfigError, match=r"own makes no records of its split dual.*data.dual"):
        training(*load_loop(str(given)), 1)
    with pytest.raises(ConfigError, match="data and build are both given"):
        load_loop(str(loop_file(tmp_path, build="spec.yaml", data="other.jsonl")))


def test_a_loop_makes_the_data_that_its_rounds_load(toy: tuple[Toy, str, Any], tmp_path: Path) -> None:
    made = values(tmp_path, toy[1], records={"train": 1, "dual": 1, "test": 1}, masks={"A+T": None, "T+E": None})
    write_spec(tmp_path / "spec.yaml", made)
    path = loop_file(tmp_path, build="spec.yaml", changes={"output_dir": str(tmp_path)})
    make(build_spec("spec.yaml", path), Console(file=io.StringIO()))
    data = training(*load_loop(str(path)), 1).data
    for place in (data.train, data.dual, data.heldout):
        assert len(load(str(place)).records) == 2


def test_shipped_loops_load() -> None:
    spec, path = load_loop("toy")
    assert training(spec, path, 1).run_dir == Path("runs/demo/loop/round-1")
    with pytest.raises(ConfigError, match="did you mean 'toy'"):
        load_loop("toys")


# Going on, and ending


def test_a_loop_goes_on_only_as_it_began(tmp_path: Path) -> None:
    folder = LoopFolder(tmp_path / "loop")
    state = _begun(folder, {"rule": {"tighten": 0.3}, "training": {"seed": 0, "tolerance": math.inf}})
    assert _begun(folder, {"rule": {"tighten": 0.2}})["fixed"] == {"rule": {"tighten": 0.2}}, "nothing was trained yet"
    state["rounds"].append({"round": 1})
    folder.write(state)
    assert _begun(folder, {"rule": {"tighten": 0.3}, "training": {"seed": 0, "tolerance": math.inf}}) == state
    with pytest.raises(ConfigError, match=r"training.seed: was 0, now 1"):
        _begun(folder, {"rule": {"tighten": 0.3}, "training": {"seed": 1, "tolerance": math.inf}})
    (folder.path / "loop.json").write_text("{")
    with pytest.raises(ConfigError, match="Delete it"):
        _begun(folder, {})


def test_a_loop_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Keys that are new since stand at their defaults; those that change no result may change."""
    spec, path = load_loop(str(loop_file(tmp_path)))
    first = training(spec, path, 1)
    judged = evaluation(spec, path, first, 1)
    now, folder = fixed(spec, first, judged), LoopFolder(tmp_path / "loop")
    before = json.loads(json.dumps(json_safe(now)))
    del before["training"]["training"]["sequence_parallel"], before["evaluation"]["judging"]["repeats"]
    before["training"]["training"]["checkpoint_every"] = 7
    folder.path.mkdir()
    folder.write({"fixed": before, "rounds": [{"round": 1}], "ended": None})
    assert len(_begun(folder, now, partial(completed, config=first, judged=judged))["rounds"]) == 1
    other = first.model_copy(update={"seed": 5})
    with pytest.raises(ConfigError, match=r"training.seed: was 0, now 5") as refused:
        _begun(folder, fixed(spec, other, judged), partial(completed, config=other, judged=judged))
    assert "sequence_parallel" not in str(refused.value)


def test_rounds_of_other_data_are_refused(tmp_path: Path) -> None:
    """The path is the same, what lies there is not."""
    run = RunDir(tmp_path / "mine" / "round-1")
    run.begin(training(*load_loop(str(loop_file(tmp_path))), 1), FACTS)
    refuse_other(run, FACTS)
    with pytest.raises(ConfigError, match=r"no longer those of round 1 \(data.train.sha256\)"):
        refuse_other(run, FACTS | {"data": {"train": {"sha256": "d1"}}})


def test_why_a_loop_ends() -> None:
    def row(gained: bool, *moves: str) -> dict[str, Any]:
        return {"gained": gained, "moves": dict(zip("AT", moves, strict=False))}

    loop = Loop(name="x", recipe="demo", evaluation="demo", rounds=3)
    up, flat, done = row(True, "kept", "tightened"), row(False, "relaxed", "tightened"), row(True, "kept", "kept")
    assert _ended(loop, []) == "" and _ended(loop, [up]) == "" and _ended(loop, [up, up]) == ""
    assert "3 rounds are used" in _ended(loop, [up, up, up])
    assert "did not raise" in _ended(loop, [up, flat])
    assert "nothing to change" in _ended(loop, [done])
    patient = loop.model_copy(update={"patience": 2})
    assert _ended(patient, [up, flat]) == "" and "last 2 rounds" in _ended(patient, [up, flat, flat])


# A round's decision, and the page


def made_rounds(folder: Path, spec: Path, gains: tuple[float, ...]) -> tuple[LoopFolder, Loop]:
    """Finished runs and one fit per round; dimension T is weakest in round 1, and `gains` adds to it per round."""
    loop, path = load_loop(str(spec))
    place = LoopFolder(training(loop, path, 1).output_dir)
    state = _begun(place, fixed(loop, training(loop, path, 1), evaluation(loop, path, training(loop, path, 1), 1)))
    tolerance: dict[str, float] = {"A": math.inf, "T": math.inf}
    for number in range(1, len(gains) + 1):
        config = training(loop, path, number, tolerance)
        run = RunDir(config.run_dir)
        run.begin(config, FACTS)
        for step in range(1, 6):
            dual = {d: {"dual": {"loss": x, "edges": 20, "loss_se": 0.05}} for d, x in (("A", 0.2), ("T", 0.5))}
            run.append({"step": step, "dimensions": dual}, {"step": step})
        run.finish(5, "reloaded")
        posterior = made_posterior(gains[:number])
        save(posterior, place.fit(number))
        state["rounds"].append(_decided(loop, config, place, number, posterior))
        place.write(state)
        tolerance = {d: math.inf if t == "inf" else t for d, t in state["rounds"][-1]["next"].items()}
    place.write(state | {"ended": _ended(loop, state["rounds"])})
    return place, loop


def made_posterior(gains: tuple[float, ...]) -> Posterior:
    theta = np.array([[0.0, 0.0], *([-1.0 + sum(gains[: k + 1]), 0.8] for k in range(len(gains)))])
    made = made_up(models=len(gains) + 1, items=6, judges=2, theta=theta, mu=np.zeros(2), noise=0.05)
    names = ["base", *(run_name(k + 1) for k in range(len(gains)))]
    order = np.argsort(names)  # as a fit has them
    theta = made.draws["theta"][:, :, order]
    ratings = replace(made.ratings, models=tuple(sorted(names)))
    return replace(made, ratings=ratings, draws=made.draws | {"theta": theta})


def test_a_round_is_decided_from_the_dual_split_and_the_abilities(tmp_path: Path) -> None:
    place, _ = made_rounds(tmp_path, loop_file(tmp_path), (0.0, 0.5, 0.0))
    rows = place.state["rounds"]
    assert rows[0]["weakest"]["T"] == pytest.approx(1) and rows[0]["level"] == {"A": 0.2, "T": 0.5}
    assert rows[0]["next"] == {"A": "inf", "T": 0.35} and rows[0]["moves"] == {"A": "kept", "T": "tightened"}
    assert [row["gained"] for row in rows] == [True, True, False]
    assert rows[1]["tolerance"] == {"A": "inf", "T": 0.35} and rows[1]["next"]["T"] == 0.245
    assert "did not raise" in place.state["ended"]


def test_the_page_shows_all_rounds_on_the_scale_of_the_last_fit(tmp_path: Path) -> None:
    spec = loop_file(tmp_path)
    place, loop = made_rounds(tmp_path, spec, (0.0, 0.5))
    page = write_page(loop, spec, place).read_text()
    assert "rose from round 1 to 2: +0.50 logits" in page and "T in both" in page
    table = json.loads((place.path / "tables" / "abilities.json").read_text())
    found = {(row["model"], row["dimension"]): row["ability"] for row in table}
    assert found[("round-1", "weakest")] == pytest.approx(-1.0, abs=0.03)
    assert found[("round-2", "weakest")] == pytest.approx(-0.5, abs=0.03)
    assert found[("base", "A")] == pytest.approx(0.0, abs=0.02)
    moves = json.loads((place.path / "tables" / "moves.json").read_text())
    assert [(r["round"], r["dimension"], r["move"]) for r in moves][:2] == [(1, "T", "tightened"), (1, "A", "kept")]


def test_the_tenth_round_comes_last(tmp_path: Path) -> None:
    """In the order of letters it would come second."""
    spec = loop_file(tmp_path)
    place, loop = made_rounds(tmp_path, spec, (*[0.0] * 9, 0.7))
    page = write_page(loop, spec, place).read_text()
    assert "rose from round 1 to 10: +0.70 logits" in page
    table = json.loads((place.path / "tables" / "abilities.json").read_text())
    assert list(dict.fromkeys(row["model"] for row in table)) == ["base", *(run_name(n) for n in range(1, 11))]
