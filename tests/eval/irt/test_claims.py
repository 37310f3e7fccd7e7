"""Simultaneous intervals, smallest effects and rank sets, against known distributions."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from dpeer.errors import ConfigError
from dpeer.eval.irt.claims import Claims, _certainty, claims, contrast_table, rank_sets, simultaneous, verdict
from dpeer.eval.irt.estimation import estimate
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.tables import tabulate
from dpeer.eval.irt.types import Posterior

made_up = runpy.run_path(str(Path(__file__).with_name("made_up.py")))["made_up"]


@pytest.fixture(scope="module")
def fitted() -> Posterior:
    return made_up(models=5, items=10, draws=500, noise=0.3, s_u=0.5)


@pytest.mark.parametrize("columns", [1, 3, 40])
def test_independent_normals_have_the_bounds_of_sidak(columns: int) -> None:
    draws = np.random.default_rng(columns).normal(2.0, 0.5, (60_000, columns))
    low, high = simultaneous(draws)
    wide = norm.ppf(0.5 + 0.5 * 0.95 ** (1 / columns))
    assert low == pytest.approx(2 - 0.5 * wide, abs=0.03) and high == pytest.approx(2 + 0.5 * wide, abs=0.03)


def test_equal_columns_cost_nothing_and_fixed_ones_are_left_alone() -> None:
    draws = np.random.default_rng(0).normal(size=(20_000, 1)) @ np.ones((1, 9))
    draws = np.column_stack([draws, np.full(20_000, 3.0)])
    low, high = simultaneous(draws)
    assert high[:9] == pytest.approx(1.96, abs=0.05) and low[9] == high[9] == 3.0


def test_a_family_holds_all_of_its_contrasts_at_once(fitted: Posterior) -> None:
    table = contrast_table(fitted, "model0", Claims())
    theta = fitted.flat("theta")
    contrast = (theta[:, 1:] - theta[:, :1]).reshape(len(theta), -1)
    inside = (contrast >= table["family_low"].to_numpy()) & (contrast <= table["family_high"].to_numpy())
    assert inside.all(axis=1).mean() == pytest.approx(0.95, abs=0.002)
    assert (table["family_low"] < table["contrast_low"]).all()


def test_a_stated_family_is_narrower_and_the_rest_is_not_claimed(fitted: Posterior) -> None:
    whole = contrast_table(fitted, "model0", Claims()).set_index(["model", "dimension"])
    part = contrast_table(fitted, "model0", Claims(family=("model3/*", "*4/T"))).set_index(["model", "dimension"])
    assert set(part["family_low"].dropna().index) == {("model3", "T"), ("model3", "A"), ("model4", "T")}
    assert part.loc[("model3", "T"), "family_low"] > whole.loc[("model3", "T"), "family_low"]
    assert set(part.loc["model1", "verdict"]) == {"undecided"}
    assert part["p_better"].tolist() == whole["p_better"].tolist()


def test_a_wrong_family_is_told_before_sampling() -> None:
    table, _ = simulate(Spec(models=2, items=4, dimensions=1, judges=2), 0)
    with pytest.raises(ConfigError, match=r"claim nobody/\*: no contrast has this name.*There are model1/"):
        estimate(table, wanted=Claims(family=("nobody/*",)))


@pytest.mark.parametrize(
    ("low", "high", "smallest", "said"),
    [
        (0.1, 0.5, 0, "better"),
        (-0.5, -0.1, 0, "worse"),
        (-0.1, 0.1, 0, "undecided"),
        (0.1, 0.5, 0.2, "better"),
        (0.3, 0.5, 0.2, "better by more than 0.2"),
        (-0.5, -0.3, 0.2, "worse by more than 0.2"),
        (0.01, 0.1, 0.2, "better by less than 0.2"),
        (-0.1, -0.01, 0.2, "worse by less than 0.2"),
        (-0.1, 0.1, 0.2, "equivalent within 0.2"),
        (-0.1, 0.6, 0.2, "no worse by 0.2"),
        (-0.6, 0.1, 0.2, "undecided"),
        (-0.6, -0.1, 0.2, "worse"),
        (np.nan, np.nan, 0.2, "undecided"),
    ],
)
def test_verdicts(low: float, high: float, smallest: float, said: str) -> None:
    assert verdict(low, high, smallest) == said


def test_sentences_carry_the_size_and_its_probability() -> None:
    found = tabulate(made_up(models=3, items=25, draws=400, noise=0.05, s_u=0.5), "model0", wanted=Claims(0.2))
    table, said = found.tables["contrasts"], claims(found)
    assert found.gate["green"] and len(said) == (table["verdict"] != "undecided").sum() > 0
    assert any("than model0 by more than 0.2 in" in sentence and "all 4 at once" in sentence for sentence in said)


def test_a_small_difference_has_the_probability_of_being_small_and_of_its_sign() -> None:
    """Uniform draws of the contrast: what share of them lies between 0 and the smallest effect is known."""
    p = made_up(models=2, dimensions=1, items=2, draws=250)
    for low, said in ((-0.1, "better"), (-0.35, "worse")):
        contrast = low + 0.0005 * (np.arange(1000) + 0.5)  # 400 of them between 0 and 0.2 to the side that is said
        p.draws["theta"] = np.stack([np.zeros(1000), contrast], axis=-1).reshape(4, 250, 2, 1)
        row = next(contrast_table(p, "model0", Claims(0.2)).itertuples())
        assert _certainty(row._replace(verdict=f"{said} by less than 0.2")) == "P = 0.400"


def test_rank_sets_hold_the_true_ranks_and_narrow_with_certainty() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for seed in range(40):
        p = made_up(models=5, items=2, draws=200, noise=0.0, seed=seed)
        truth = p.draws["theta"][0, 0]
        guess = truth + rng.normal(0, 0.3, truth.shape)
        p.draws["theta"] = guess + rng.normal(0, 0.3, p.draws["theta"].shape)
        table = rank_sets(p)
        rank = (-truth).argsort(axis=0).argsort(axis=0) + 1
        hits += bool(((table["best_rank"] <= rank.ravel()) & (rank.ravel() <= table["worst_rank"])).all())
    assert hits >= 35  # 95 % of 40, and three errors of a binomial below
    sure = rank_sets(made_up(models=5, items=2, draws=200, noise=1e-6))
    assert (sure["best_rank"] == sure["worst_rank"]).all()
    assert sorted(sure[sure["dimension"] == "T"]["best_rank"]) == [1, 2, 3, 4, 5]


def test_a_crowd_has_no_rank_sets() -> None:
    assert rank_sets(made_up(models=61, items=1, draws=10, noise=0.1)).empty
