"""Graded responses from ratings to tables, and what refuses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from dpeer.errors import ConfigError
from dpeer.eval.irt.ability import fair_averages
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.fit_statistics import fit_statistics
from dpeer.eval.irt.precision import components_of
from dpeer.eval.irt.recover import recover
from dpeer.eval.irt.scales import guessed
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.stan_data import build
from dpeer.eval.irt.tables import tabulate
from dpeer.eval.irt.types import Options
from dpeer.eval.irt.variant import differing, variant_of
from tests.eval.irt.made_up import made_up

GRADED = Options(model="graded")


def test_a_fit_finds_what_was_planted_and_every_table_knows_the_link() -> None:
    table, truth = simulate(Spec(models=4, items=25, dimensions=1, judges=3, s_theta=1.5, link="graded"), 3)
    posterior = fit(encode(table), replace(GRADED, chains=2, warmup=200, draws=150))
    theta = posterior.flat("theta")[..., 0]
    away = (theta.mean(axis=0) - truth["theta"][:, 0]) / theta.std(axis=0)
    assert (np.abs(away) < 3).all()
    tau = posterior.flat("tau")
    assert (np.diff(tau, axis=-1) > 0).all()
    assert tau.mean(axis=(0, 1, 2)) == pytest.approx(truth["tau"].mean(axis=(0, 1)), abs=0.6)
    tables = tabulate(posterior).tables
    assert not tables["thresholds"]["disordered"].any()
    counts = tables["ppc"]
    inside = (counts["expected_low"] <= counts["observed"]) & (counts["observed"] <= counts["expected_high"])
    assert inside.mean() > 0.85 and tables["judges"]["infit"].between(0.7, 1.3).all()
    fair = tables["ability"]
    assert np.abs(fair["fair"] - fair["raw_mean"]).max() < 0.5


def test_fair_averages_are_expected_scores_of_cumulative_logits() -> None:
    p = made_up(items=3000, judges=1, models=3, dimensions=1, s_u=0.9, draws=1, chains=2, options=GRADED)
    beta, u = p.flat("beta")[0, :, 0], np.random.default_rng(0).normal(0, 0.9, 3000)
    location = p.flat("theta")[0, :, 0, None] + 0.2 - beta + u
    score = 1 + expit(location[..., None] - p.flat("tau")[0, 0, 0]).sum(axis=-1)
    assert fair_averages(p)[0, :, 0] == pytest.approx(score.mean(axis=1), abs=0.04)


def test_expected_scores_are_those_of_the_formula() -> None:
    p = made_up(draws=2, chains=1, options=GRADED, log_alpha=np.array([0.5, 0.0, -0.5]))
    r, found = p.ratings, fit_statistics(p)
    draw = {name: values[0, 0] for name, values in p.draws.items()}
    place = draw["mu"][r.dimension] + draw["theta"][r.model, r.dimension] - draw["beta"][r.item, r.dimension]
    place = place - draw["severity"][r.judge, r.dimension]
    reached = expit(np.exp(draw["log_alpha"])[r.judge, None] * (place[:, None] - draw["tau"][r.judge, r.dimension]))
    assert found.expected == pytest.approx(reached.sum(axis=1), abs=1e-6)


@pytest.mark.parametrize(
    ("spec", "switches", "why"),
    [
        (Spec(models=3, items=4, dimensions=1), {"thresholds": "item"}, "no thresholds of items"),
        (Spec(models=3, items=4, dimensions=1, compared=1), {}, "hold comparisons"),
    ],
)
def test_what_graded_responses_do_not_hold_is_refused(spec: Spec, switches: dict[str, str], why: str) -> None:
    ratings = encode(simulate(spec, 0)[0])
    with pytest.raises(IrtError, match=why):
        build(ratings, replace(GRADED, **switches), guessed(ratings))


def test_what_knows_one_link_only_refuses_the_other(tmp_path: Path) -> None:
    with pytest.raises(IrtError, match="--model gmfrm as the pilot"):
        components_of(made_up(options=GRADED))
    with pytest.raises(ConfigError, match="--set link=graded"):
        recover(Spec(models=3, items=4), GRADED, 1, 0, tmp_path)
    with pytest.raises(ConfigError, match="must be adjacent or graded"):
        Spec(link="probit")
    one, other = (variant_of(made_up(options=o)) for o in (GRADED, Options()))
    assert differing(one, other) == "model graded and gmfrm"
