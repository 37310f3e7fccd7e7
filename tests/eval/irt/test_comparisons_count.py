"""What is counted, centred and checked counts comparisons too, and only those who rate where ratings are meant."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpeer.eval.irt.anchors import check_anchors
from dpeer.eval.irt.claims import claims
from dpeer.eval.irt.comparison_fit import outcome_probabilities
from dpeer.eval.irt.design import TooFewJudges, check
from dpeer.eval.irt.draws import named
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit_statistics import thin
from dpeer.eval.irt.scales import guessed
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.stan_data import build
from dpeer.eval.irt.stan_terms import item_shares
from dpeer.eval.irt.tables import tabulate
from dpeer.eval.irt.types import Comparisons, Options, Posterior

made_up = runpy.run_path(str(Path(__file__).with_name("made_up.py")))["made_up"]
TWICE = Spec(models=3, items=8, dimensions=1, judges=2, samples=2, compared=1)


def test_responses_that_were_compared_count_as_answers() -> None:
    table, _ = simulate(TWICE, 1)
    pairs = table[table["other_model"].notna()].assign(dimension="compared")
    mixed = pd.concat([table[table["other_model"].isna()], pairs])
    for rows, dimensions in ((pairs, 1), (mixed, 2)):
        ratings = encode(rows)
        assert build(ratings, Options(), guessed(ratings)).data["V"] == 3 * 8 * dimensions
        assert "few_repeats" not in {w.kind for w in check(ratings, Options(model_item=True)).warnings}


def test_items_that_were_compared_count_in_the_mix_of_groups() -> None:
    table, _ = simulate(TWICE, 1)
    hard = table["item"].isin(sorted(table["item"].unique())[:2])
    table["item_group"] = np.where(hard, "hard", "easy")
    pairs = table["other_model"].notna()
    for rows in (table[pairs], table[pairs | ~hard]):  # nothing rated; hard items compared only
        share, answered = item_shares(encode(rows))
        assert np.allclose(share[:, 0], [0.75, 0.25]) and np.allclose(answered[..., 0], [0.75, 0.25])


def with_comparers(raters: int) -> pd.DataFrame:
    """Ratings by some judges, comparisons by others."""
    rated, _ = simulate(Spec(models=3, items=8, dimensions=2, judges=raters), 1)
    pairs, _ = simulate(Spec(models=3, items=8, dimensions=2, judges=6, compared=1, rated=False), 1)
    return pd.concat([rated, pairs.assign(judge="who compares " + pairs["judge"])])


@pytest.mark.parametrize("anchored", [False, True])
def test_severities_count_from_the_mean_of_those_who_rate(anchored: bool) -> None:
    table = with_comparers(3)
    table = table[~((table["judge"] == "rater2") & (table["dimension"] == "dimension1") & table["other_model"].isna())]
    ratings = encode(table)
    anchors = {"judges": {"rater0": {d: [0.3, 0.1] for d in ratings.dimensions}}, "log_alpha": {}}
    options = Options(model="rasch", thresholds="common", anchors=anchors if anchored else None)
    problem = build(ratings, options, guessed(ratings))
    rng, data = np.random.default_rng(0), problem.data
    shapes = {"severity": (9, 2), "mu": (2,), "theta": (3, 2), "beta": (data["B"],), "correlation": (2, 2)}
    steps = sum(data["steps"])
    stan = {
        n: rng.normal(size=(2, 50, *shape)) for n, shape in (shapes | {"tau": (steps,), "kappa": (9, steps)}).items()
    }
    stan["severity"] -= stan["severity"].mean(axis=2, keepdims=True)
    kept = {name: values.copy() for name, values in stan.items()}
    found = named(stan, ratings, problem, check_anchors(ratings, options, False, problem.response_effect))
    assert all(np.array_equal(stan[n], kept[n]) for n in ("severity", "mu"))  # effects are read with Stan's own
    gap = found["mu"][:, :, None] - found["severity"]
    assert np.allclose(gap, kept["mu"][:, :, None] - kept["severity"])
    means = [found["severity"][:, :, :n, d].mean(axis=-1) for d, n in enumerate((3, 2))]
    assert np.allclose(means, 0) is not anchored
    assert np.isnan(found["severity_judge"][0, 0]).sum() == 6


def test_who_only_compares_is_no_second_rater() -> None:
    with pytest.raises(TooFewJudges, match="the only judge who rates is 'rater0'"):
        check(one := encode(with_comparers(1)), Options())
    assert build(one, Options(response_effect=False), guessed(one)).no_intervals
    two = encode(with_comparers(2))
    check(two, Options())
    assert not build(two, Options(response_effect=False), guessed(two)).no_intervals


def test_the_criterion_of_a_dimension_without_ratings_does_not_hang_on_the_order_of_rows() -> None:
    table = with_comparers(2)
    pairs = table[table["other_model"].notna()].assign(dimension="compared")
    pairs["criterion"] = np.where(np.arange(len(pairs)) % 3, "warm", "cold")
    table = pd.concat([pairs.iloc[1:], pairs.iloc[:1], table[table["other_model"].isna()]])
    there, back = encode(table), encode(table.iloc[::-1])
    assert there.criteria == back.criteria and ("compared", "cold") in there.criteria
    assert ("compared", "warm") not in there.criteria
    later = encode(table[table["criterion"] != "cold"])
    assert later.criteria != there.criteria and later.rated_criteria == there.rated_criteria


def test_criteria_that_nobody_rated_on_have_no_row() -> None:
    p = made_up(items=6, draws=20, noise=0.1, delta=np.zeros(3))
    ratings = replace(p.ratings, criteria=(*p.ratings.criteria, ("T", "compared only")))
    assert tabulate(replace(p, ratings=ratings)).tables["criteria"]["n"].tolist() == [4 * 6 * 3] * 2


def with_pairs(*wins: tuple[int, int], n: int = 30) -> Posterior:
    """Of three models and nothing but chance in the ratings; each pair is compared n times, and the first one wins."""
    p: Posterior = made_up(
        models=3, items=n, dimensions=1, draws=100, noise=0.02, theta=np.array([[1.0], [0.0], [-1.0]])
    )
    this, other = (np.concatenate([m * n + np.arange(n) for m in models]) for models in zip(*wins, strict=True))
    size = len(this)
    none, place = np.zeros(size, np.int64), np.tile([0.5, -0.5], size // 2)
    pairs = Comparisons(this, other, none, np.arange(size) % 3, none + 2, place, none, none)
    return replace(p, ratings=replace(p.ratings, comparisons=pairs))


def test_preferences_in_a_circle_are_seen_and_support_no_claim() -> None:
    circle = tabulate(with_pairs((0, 1), (1, 2), (2, 0)))
    table = circle.tables["comparisons"].set_index(["model", "other"])
    assert table.loc[("model0", "model2"), "notable"] and table.loc[("model0", "model1"), "notable"]
    assert circle.gate["misfit_pairs"] > 0.25 and not circle.gate["green"] and not claims(circle)
    assert any("compared pairs of models fared otherwise" in reason for reason in circle.gate["reasons"])


def test_a_pair_that_fared_otherwise_is_named_by_the_claim() -> None:
    p = with_pairs((0, 1), (0, 2))
    chance = np.random.default_rng(1).random((len(p.ratings.comparisons), 1))
    p_expected = outcome_probabilities(p, *thin(p, 1))[..., 0].T
    outcome = (chance > p_expected.cumsum(axis=1)[:, :2]).sum(axis=1)
    sound = replace(p, ratings=replace(p.ratings, comparisons=replace(p.ratings.comparisons, outcome=outcome)))
    found = tabulate(sound, base="model2")
    assert not found.tables["comparisons"]["notable"].any() and found.gate["misfit_pairs"] == 0
    table = found.tables["comparisons"].copy()
    table.loc[table["other"] == "model1", ["notable", "observed"]] = [True, table["expected"].iloc[0] - 0.4]
    shown = replace(found, tables=found.tables | {"comparisons": table}, gate=found.gate | {"green": True})
    of = {model: s for model in ("model0", "model1") for s in claims(shown) if s.startswith(model)}
    assert "compared with model1 it does 0.40 worse" in of["model0"]
    assert "compared with model0 it does 0.40 better" in of["model1"] and "model2 it does" not in of["model0"]
