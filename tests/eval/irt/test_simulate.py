"""The simulator is the oracle of the fit, so it is checked against the formula itself, rating by rating."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from dpeer.errors import ConfigError
from dpeer.eval.irt.design import check
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Options

BUSY = Spec(
    models=3,
    items=200,
    dimensions=2,
    judges=4,
    criteria=2,
    repeats=2,
    self_judges=1,
    families=2,
    mu=0.3,
    s_alpha=0.4,
    length=0.5,
    order=-0.6,
    own_family=0.7,
    own_model=0.5,
)


def test_shapes_and_sums_to_zero() -> None:
    table, truth = simulate(BUSY, seed=1)
    assert len(table) == 3 * 200 * 2 * 4 * 2 * 2 and table["rating_id"].is_unique
    shapes = {"theta": (3, 2), "mu": (2,), "severity": (4, 2), "severity_judge": (4,), "log_alpha": (4,)}
    shapes |= {"beta": (200, 2), "delta": (4,), "tau": (4, 2, 4), "u": (600, 2), "length": (2,), "own_family": ()}
    assert {name: truth[name].shape for name in shapes} == shapes
    for name in ("theta", "severity", "severity_judge", "log_alpha", "beta"):
        np.testing.assert_allclose(truth[name].sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(truth["severity"].mean(axis=1), truth["severity_judge"], atol=1e-12)
    np.testing.assert_allclose(truth["delta"].reshape(2, 2).sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(truth["tau"].sum(axis=2), 0, atol=1e-12)


def test_encoding_keeps_the_order_of_the_truth() -> None:
    table, truth = simulate(BUSY, seed=1)
    assert (table["order"].map({"up": 0, "down": 1}) == table["repeat"]).all()
    ratings = encode(table)
    assert ratings.models == ("model0", "model1", "model2")
    assert ratings.judges == ("model0", "rater1", "rater2", "rater3")
    assert len(ratings.criteria) == len(truth["delta"])
    assert [ratings.items[q] for q in ratings.response_item[:2]] == ["item000", "item001"]
    assert len(ratings.response_model) == len(truth["u"])
    everything = Options(self_family=True, self_model=True, order=True, length=True, halo=True)
    assert check(ratings, everything).components == {"dimension0": 1, "dimension1": 1}


def test_scores_follow_the_formula() -> None:
    """Mean score and category counts of every judge x model x dimension cell, from the truth by the formula."""
    table, truth = simulate(BUSY, seed=2)
    r = encode(table)
    d, j, m, q = r.dimension, r.judge, r.model, r.item
    eta = truth["mu"][d] + truth["theta"][m, d] - truth["beta"][q, d] + truth["u"][r.response, d]
    eta += truth["length"][d] * r.response_length[r.response] + truth["order"] * np.where(r.reversed, 0.5, -0.5)
    eta += truth["own_family"] * r.own_family + truth["own_model"] * r.own_model
    eta -= truth["severity"][j, d] + truth["delta"][r.criterion]
    passed = np.cumsum(np.pad(truth["tau"][j, d], ((0, 0), (1, 0))), axis=1)
    p = softmax(np.exp(truth["log_alpha"])[j][:, None] * (np.arange(5) * eta[:, None] - passed), axis=1)
    mean = p @ np.arange(5)
    variance = p @ np.arange(5) ** 2 - mean**2
    cell = (j * 3 + m) * 2 + d
    z = np.bincount(cell, r.category - mean) / np.sqrt(np.bincount(cell, variance))
    assert len(z) == 24 and np.abs(z).max() < 4 and 0.5 < z.std() < 1.5
    counts = np.bincount(r.category, minlength=5)
    assert np.abs((counts - p.sum(axis=0)) / np.sqrt((p * (1 - p)).sum(axis=0))).max() < 4
    slope = np.polyfit(mean, r.category, 1)[0]
    assert abs(slope - 1) < 0.02


def test_planted_effects_move_scores_by_what_was_planted() -> None:
    plain = replace(BUSY, own_family=0.0, own_model=0.0, order=0.0, length=0.0)
    for name, marked in (("own_family", "model_family"), ("own_model", "model")):
        with_effect, _ = simulate(replace(plain, **{name: 1.5}), seed=3)
        without, _ = simulate(plain, seed=3)
        own = with_effect[marked] == with_effect["judge_family" if name == "own_family" else "judge"]
        change = with_effect["score"].astype(float) - without["score"].astype(float)
        assert change[own].mean() > 0.5 and (change[~own] == 0).all()


def test_halo_is_shared_by_the_dimensions_of_a_judge_only() -> None:
    table, _ = simulate(Spec(models=2, items=400, dimensions=2, judges=2, s_u=0, s_beta=0, s_theta=0, s_halo=1.5), 4)
    wide = table.pivot(index="response_id", columns=["judge", "dimension"], values="score").astype(float)
    correlation = wide.corr().to_numpy()
    assert correlation[0, 1] > 0.3 and correlation[2, 3] > 0.3
    assert np.abs(correlation[:2, 2:]).max() < 0.15


def test_missing_ratings_are_rows_without_a_score() -> None:
    table, _ = simulate(Spec(missing=0.2), seed=5)
    lost = table["status"] == "unparsed"
    assert (
        0.17 < lost.mean() < 0.23 and table.loc[lost, "score"].isna().all() and table.loc[~lost, "score"].notna().all()
    )
    assert encode(table).statuses == {"ok": int((~lost).sum()), "unparsed": int(lost.sum())}


def test_linked_design_is_used() -> None:
    table, _ = simulate(Spec(linked=(10, 2)), seed=6)
    judges = table.groupby(["model", "item"])["judge"].nunique()
    assert (judges == 3).sum() == 8 * 10 and (judges == 2).sum() == 8 * 50


@pytest.mark.parametrize("categories", [2, 10])
def test_number_of_categories(categories: int) -> None:
    table, truth = simulate(Spec(categories=categories, dimensions=1, s_theta=3), seed=7)
    assert truth["tau"].shape == (3, 1, categories - 1)
    assert set(table["score"]) == set(range(1, categories + 1))


def test_same_seed_same_table() -> None:
    pd.testing.assert_frame_equal(simulate(BUSY, 8)[0], simulate(BUSY, 8)[0])
    assert not simulate(BUSY, 8)[0]["score"].equals(simulate(BUSY, 9)[0]["score"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("judges", 0), ("categories", 11), ("missing", 1.0), ("s_u", -1.0), ("self_judges", 9), ("correlation", -0.5)],
)
def test_impossible_specs(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        Spec(**{field: value})
