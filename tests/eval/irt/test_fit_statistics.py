"""Infit, outfit and predictive checks against data that do, and do not, follow the model."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from dpeer.eval.irt.fit_statistics import (
    category_offsets,
    discrimination,
    fit_statistics,
    predictor,
    thin,
)
from dpeer.eval.irt.link import probabilities
from dpeer.eval.irt.types import Posterior

made_up = runpy.run_path(str(Path(__file__).with_name("made_up.py")))["made_up"]


def with_draws(posterior: Posterior, **draws: np.ndarray) -> Posterior:
    kept = {name: values for name, values in (posterior.draws | draws).items() if values is not None}
    return replace(posterior, draws=kept)


def rerated(posterior: Posterior, category: np.ndarray) -> Posterior:
    return replace(posterior, ratings=replace(posterior.ratings, category=category))


def scalar_probabilities(p: Posterior, rating: int, draw: int) -> np.ndarray:
    """P(k) of one rating, term by term from the text of the formula."""
    r, flat = p.ratings, {name: p.flat(name)[draw] for name in p.draws}
    m, q, d, j, response = r.model[rating], r.item[rating], r.dimension[rating], r.judge[rating], r.response[rating]
    eta = flat["mu"][d] + flat["theta"][m, d] - flat["beta"][q, d] - flat["severity"][j, d]
    eta += flat["u"][response, d] + flat["length"][d] * r.response_length[response] - flat["delta"][r.criterion[rating]]
    eta += flat["order"] * (0.5 if r.reversed[rating] else -0.5)
    logits = [0.0]
    for k in range(len(r.scale) - 1):
        logits.append(logits[-1] + np.exp(flat["log_alpha"][j]) * (eta - flat["tau"][j, d, k]))
    return softmax(logits)


def test_probabilities_are_those_of_the_formula() -> None:
    p = made_up(
        items=5,
        noise=0.3,
        s_u=0.8,
        repeats=2,
        length=np.array([0.3, -0.2]),
        order=np.array(0.4),
        log_alpha=[0.5, -0.2, -0.3],
    )
    draws = np.array([3, 77])
    r = p.ratings
    slope = discrimination(p, draws)[r.judge] * predictor(p, draws, draws)
    ours = probabilities(slope, np.moveaxis(category_offsets(p, draws)[r.judge, r.dimension], 1, 0))
    for rating in (0, 17, 101, len(r) - 1):
        for b, draw in enumerate(draws):
            assert ours[:, rating, b] == pytest.approx(scalar_probabilities(p, rating, draw), abs=1e-12)


def test_unused_categories_have_no_probability_and_the_lowest_used_one_is_found() -> None:
    tau = np.tile([np.nan, 0.3, np.nan, -0.4], (3, 2, 1))  # thresholds into categories 2 and 4
    p = made_up(items=5)
    for lowest in (0, 1):
        category = np.random.default_rng(0).choice([lowest, 2, 4], size=len(p.ratings))
        changed = rerated(with_draws(p, tau=np.broadcast_to(tau, (4, 150, *tau.shape))), category)
        offsets = category_offsets(changed, np.array([0]))[..., 0]
        assert np.isfinite(offsets[0, 0]).tolist() == [k in (lowest, 2, 4) for k in range(5)]
        assert offsets[0, 0][[lowest, 2, 4]] == pytest.approx([0, 0.3, -0.1])


@pytest.mark.parametrize("seed", [1, 2])
def test_mean_squares_are_one_for_data_of_the_model(seed: int) -> None:
    found = fit_statistics(made_up(items=120, seed=seed), draws=60)
    assert found.judges[["infit", "outfit"]].to_numpy() == pytest.approx(1, abs=0.12)
    assert found.models[["infit", "outfit"]].to_numpy() == pytest.approx(1, abs=0.3)
    assert found.items["infit"].mean() == pytest.approx(1, abs=0.03)
    assert (found.judges["infit_p"].between(0.005, 0.995)).all()


def test_p_values_are_calibrated_over_data_sets() -> None:
    p = np.concatenate([fit_statistics(made_up(items=15, seed=s), draws=60).misfit["p"] for s in range(12)])
    assert p.mean() == pytest.approx(0.5, abs=0.06)
    assert ((p < 0.05) | (p > 0.95)).mean() == pytest.approx(0.1, abs=0.06)


def test_a_random_judge_misfits() -> None:
    p = made_up(items=80)
    r = p.ratings
    random = np.where(r.judge == 2, np.random.default_rng(0).integers(0, 5, len(r)), r.category)
    judges = fit_statistics(rerated(p, random), draws=60).judges.set_index("judge")
    assert judges.loc["judge2", "infit"] > 1.3 and judges.loc["judge2", "infit_p"] == 0
    assert judges.loc["judge0", "infit"] == pytest.approx(1, abs=0.15)


def test_a_judge_that_favours_a_model_is_found_in_its_cell() -> None:
    p = made_up(items=60)
    r = p.ratings
    favoured = (r.judge == 1) & (r.model == 2) & (r.dimension == 0)
    misfit = fit_statistics(rerated(p, np.minimum(4, r.category + favoured)), draws=60).misfit
    worst = misfit.loc[misfit["z"].abs().idxmax()]
    assert (worst["judge"], worst["model"], worst["dimension"]) == ("judge1", "model2", "T")
    assert worst["observed"] > worst["expected_high"] and worst["p"] == 0


def test_checks_count_every_rating_once() -> None:
    p = made_up(items=20, keep=lambda c: (c["item"] + c["judge"]) % 2 == 0)
    found = fit_statistics(p, draws=30)
    assert found.ppc["observed"].sum() == len(p.ratings)
    assert found.ppc["expected"].sum() == pytest.approx(len(p.ratings))
    assert found.misfit["n"].sum() == len(p.ratings)
    r = p.ratings
    cell = (r.judge == 0) & (r.model == 1) & (r.dimension == 1)
    row = found.misfit.query("judge == 'judge0' and model == 'model1' and dimension == 'A'").iloc[0]
    assert row["observed"] == pytest.approx((r.category[cell] + 1).mean())


def test_response_effects_that_were_not_kept_are_integrated() -> None:
    kept = made_up(items=120, s_u=1.2)
    integrated = with_draws(kept, u=None)
    ignored = with_draws(kept, u=None, s_u=None)
    for p, expected in ((kept, 1.0), (integrated, 1.0)):
        assert fit_statistics(p, draws=40).judges["infit"].mean() == pytest.approx(expected, abs=0.06)
    assert fit_statistics(ignored, draws=40).judges["infit"].mean() > 1.3
    spread = lambda p: np.ptp(fit_statistics(p, draws=40).misfit[["expected_low", "expected_high"]], axis=1).mean()  # noqa: E731
    assert spread(integrated) > 1.1 * spread(kept)


def test_halo_is_integrated() -> None:
    p = made_up(items=120)
    halo = with_draws(p, s_halo=np.full((4, 150), 1.5))
    assert fit_statistics(halo, draws=20).judges["infit"].mean() < 0.85


def test_thinning_keeps_response_effects_beside_their_draws() -> None:
    p = made_up(items=4, s_u=1.0, noise=0.1)
    kept = np.arange(0, 600, 15)
    thinned = replace(
        with_draws(p, u=p.flat("u")[kept].reshape(4, -1, *p.draws["u"].shape[2:])), facts={"u_draws": kept.tolist()}
    )
    index, place = thin(thinned, 10)
    assert len(index) == 10 and set(index) <= set(kept)
    assert predictor(thinned, index, place) == pytest.approx(predictor(p, index, index))
