"""Comparisons of two responses beside ratings of one, or in their place: what they link, identify and estimate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpeer.errors import DataError
from dpeer.eval.irt.comparisons import gives_ties, position_known, replicated
from dpeer.eval.irt.design import ConstantScores, DisconnectedDesign, check
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit, load, save
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.tables import tabulate
from dpeer.eval.irt.terminal import terminal
from dpeer.eval.irt.types import Floats, Options, Posterior

BOTH = Spec(models=4, items=12, dimensions=1, judges=3, compared=1, position=0.8, s_position=0.3, tie=0.2)
PAIRS = replace(BOTH, rated=False)
SEED = 3
DRAWS = Options(chains=2, warmup=200, draws=150)


def compared(
    *rows: tuple[str, str, int], judge: str = "ann", dimension: str = "tone", order: str = "first"
) -> pd.DataFrame:
    """Rows (model, other model, outcome), each about an item of its own."""
    frame = pd.DataFrame(rows, columns=["model", "other_model", "score"])
    return frame.assign(
        item=[f"q{k}" for k in range(len(rows))], judge=judge, dimension=dimension, order=order, mode="import"
    )


# Tables


def test_a_table_holds_both_and_each_row_is_one_of_them() -> None:
    table, _ = simulate(BOTH, SEED)
    ratings, pairs = encode(table), table[table["other_model"].notna()]
    c = ratings.comparisons
    assert len(ratings) == len(table) - len(pairs) and len(c) == len(pairs) and ratings.scale == (1, 2, 3, 4, 5)
    names = np.array(ratings.models)
    assert (names[ratings.response_model[c.response]] == pairs["model"]).all()
    assert (names[ratings.response_model[c.other]] == pairs["other_model"]).all()
    assert (c.outcome - 1 == pairs["score"]).all() and (c.place == np.where(pairs["order"] == "first", 0.5, -0.5)).all()
    assert (ratings.response_item[c.response] == ratings.response_item[c.other]).all()
    alone = encode(pairs)
    assert len(alone) == 0 and len(alone.response_model) == 4 * 12


def test_a_model_that_judges_itself_is_known_by_its_weights_on_either_side() -> None:
    frame = compared(("x", "y", 1), ("y", "x", -1), ("x", "z", 0), judge="ann").assign(
        model_hash=["w1", "w2", "w1"], judge_hash="w2"
    )
    assert encode(frame).comparisons.own_model.tolist() == [-1, 1, 0]
    named = compared(("x", "y", 1), ("y", "x", -1), judge="y")
    assert encode(named).comparisons.own_model.tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"score": 2}, "score: .*2.* is no outcome of a comparison; those are -1, 0, 1"),
        ({"other_model": "a"}, "other_model: 'a' is compared with itself"),
        ({"order": "up"}, "order: 'up' is neither first nor second"),
    ],
)
def test_a_faulty_row_is_refused_with_its_place(change: dict[str, object], told: str) -> None:
    frame = compared(("a", "b", 1), ("b", "a", 0))
    frame.loc[0, list(change)] = list(change.values())
    with pytest.raises(DataError, match=f"row 1, column {told}"):
        encode(frame)


# Identification


def test_comparisons_link_models_that_ratings_leave_apart() -> None:
    rated, _ = simulate(Spec(models=4, items=8, dimensions=1, judges=4), 1)
    apart = (rated["model"] < "model2") == (rated["judge"] < "rater2")
    halves = rated[apart & ((rated["model"] < "model2") == (rated["item"] < "item4"))]
    with pytest.raises(DisconnectedDesign, match=r"model0, model1.*model2, model3"):
        check(encode(halves), Options())
    bridge = compared(("model1", "model2", 1), judge="rater0", dimension=str(rated["dimension"].iloc[0]))
    check(encode(pd.concat([halves, bridge.assign(item="item0")])), Options())


def test_islands_of_comparisons_are_refused_with_the_comparison_that_is_missing() -> None:
    rows = [("a", "b", 1), ("b", "a", 1), ("c", "d", -1), ("d", "c", 0)]
    with pytest.raises(DisconnectedDesign, match=r"\{a, b\} and \{c, d\} are never compared.*ann compares c with a"):
        check(encode(compared(*rows)), Options())
    check(encode(compared(*rows, ("a", "d", 0))), Options())
    with pytest.raises(DisconnectedDesign, match="no usable rating of c, d, nor a comparison"):
        rated, _ = simulate(Spec(models=2, items=8, dimensions=1, judges=2), 1)
        rated["dimension"] = "tone"
        check(encode(pd.concat([rated, compared(("c", "d", 1), ("d", "c", 0))])), Options())
    with pytest.raises(ConstantScores, match="every comparison in tone is a tie"):
        check(encode(compared(("a", "b", 0), ("b", "a", 0))), Options())


def test_a_place_that_goes_with_a_model_is_no_effect_of_its_own() -> None:
    always = encode(compared(("a", "b", 1), ("a", "b", 0), ("c", "b", 1)))
    assert not position_known(always)
    warnings = [w.text for w in check(always, Options()).warnings if w.kind == "comparisons"]
    assert len(warnings) == 1 and "Ask every pair in both orders" in warnings[0]
    assert position_known(encode(compared(("a", "b", 1), ("b", "a", 0), ("c", "b", 1))))
    assert not position_known(encode(compared(("a", "b", 1), ("b", "a", 0), order="")))


def test_an_effect_of_the_response_needs_more_rows_than_differences() -> None:
    once = compared(("a", "b", 1), ("b", "c", 0), ("c", "d", 1)).assign(item="q", sample=0)
    assert not replicated(encode(once))
    assert replicated(encode(pd.concat([once, once.assign(order="second")])))
    assert replicated(encode(pd.concat([once, compared(("a", "d", 1)).assign(item="q", sample=0)])))


def test_who_never_calls_a_tie_though_others_do_has_none() -> None:
    ties = compared(*[("a", "b", k % 3 - 1) for k in range(60)])
    never = compared(*[("a", "b", 1 - 2 * (k % 2)) for k in range(60)], judge="bob")
    few = compared(*[("a", "b", 1), ("b", "a", 1)], judge="cy")
    assert gives_ties(encode(pd.concat([ties, never, few]))).tolist() == [True, False, True]
    assert not gives_ties(encode(never)).any()


# Estimates


@pytest.fixture(scope="module")
def truth() -> dict[str, Floats]:
    return simulate(BOTH, SEED)[1]


@pytest.fixture(scope="module")
def fits() -> dict[str, Posterior]:
    table, _ = simulate(BOTH, SEED)
    pairs = table["other_model"].notna()
    return {
        "pairs": fit(encode(table[pairs]), DRAWS),
        "both": fit(encode(table), DRAWS),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "both"])
def test_abilities_and_preferences_for_a_place_come_back(
    fits: dict[str, Posterior], truth: dict[str, Floats], kind: str
) -> None:
    posterior = fits[kind]
    for name in ("theta", "position"):
        draws = posterior.flat(name)
        z = (draws.mean(axis=0) - truth[name]) / draws.std(axis=0)
        assert np.abs(z).max() < 3.5 and np.sqrt((z**2).mean()) < 1.7
    assert posterior.flat("position_mean").mean() > 0.2
    assert np.abs(posterior.flat("tie").mean(axis=0) - truth["tie"]).max() < 0.4


@pytest.mark.slow
def test_abilities_of_pairs_and_of_both_agree_within_their_intervals(fits: dict[str, Posterior]) -> None:
    pairs, both = (fits[kind].flat("theta") for kind in ("pairs", "both"))
    gap = (pairs.mean(axis=0) - both.mean(axis=0)) / np.hypot(pairs.std(axis=0), both.std(axis=0))
    assert np.abs(gap).max() < 2
    assert "comparison_scale" not in fits["both"].draws


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "both"])
def test_tables_count_both_and_say_nothing_of_what_was_not_rated(
    fits: dict[str, Posterior], kind: str, tmp_path: Path
) -> None:
    from dpeer.eval.report.page import write_report

    posterior = fits[kind]
    result = tabulate(posterior)
    c, judges = posterior.ratings.comparisons, result.tables["judges"]
    assert judges["comparisons"].tolist() == np.bincount(c.judge).tolist()
    assert np.average(judges["tie_share"], weights=judges["comparisons"]) == pytest.approx((c.outcome == 1).mean())
    assert (judges["position_low"] < judges["position"]).all() and judges["severity"].isna().all() == (kind == "pairs")
    cards = result.tables["cards"]
    assert cards["shown_first"].to_numpy() == pytest.approx(judges["position"].to_numpy())
    table = result.tables["comparisons"]
    assert table["n"].sum() == len(c) and (table[["better", "ties", "worse"]].sum(axis=1) == table["n"]).all()
    inside = (table["expected_low"] <= table["observed"]) & (table["observed"] <= table["expected_high"])
    assert inside.mean() > 0.85
    assert result.abilities["fair"].isna().all() == (kind == "pairs")
    assert not result.tables["diagnostics"]["rhat"].isna().any()
    assert len(terminal(result)) >= 3
    page = write_report(result, tmp_path / "report", "Fit")
    text = Path(page).read_text(encoding="utf-8")
    assert "Shown first" in text and "Does the fit reproduce the comparisons?" in text
    save(posterior, tmp_path / "fit")
    again = load(tmp_path / "fit")
    assert (again.ratings.comparisons.outcome == c.outcome).all() and len(again.ratings) == len(posterior.ratings)
