"""Leave-one-out against refitting, and the comparison of models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp

from dpeer.errors import ConfigError
from dpeer.eval.irt import loo as module
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.loo import Loo, comparable, compare_models, loo, smoothed, stacking
from dpeer.eval.irt.marginal import Units, chosen_draws, log_likelihood
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Floats, Options, Posterior
from tests.eval.irt.made_up import made_up


def normal_draws(seed: int = 0) -> tuple[Floats, Floats, float]:
    """log densities [n, S] of n normal observations with unknown mean at exact posterior draws, and the exact log
    predictive density of each one left out."""
    rng = np.random.default_rng(seed)
    y, tau = rng.normal(0.5, 1, 12), 2.0

    def posterior(y: Floats) -> tuple[float, float]:
        precision = 1 / tau**2 + len(y)
        return y.sum() / precision, precision**-0.5

    mean, sd = posterior(y)
    draws = rng.normal(mean, sd, 8000)
    density = -0.5 * (y[:, None] - draws) ** 2 - 0.5 * np.log(2 * np.pi)
    exact = []
    for i in range(len(y)):
        m, s = posterior(np.delete(y, i))
        exact.append(-0.5 * (y[i] - m) ** 2 / (1 + s**2) - 0.5 * np.log(2 * np.pi * (1 + s**2)))
    return density, np.array(exact), float(logsumexp(density, axis=1).sum())


def test_smoothed_weights_give_the_exact_predictive_density_of_normals() -> None:
    density, exact, _ = normal_draws()
    weights, khat = smoothed(-density)
    assert logsumexp(weights + density, axis=1) == pytest.approx(exact, abs=0.03)
    assert np.exp(weights).sum(axis=1) == pytest.approx(1) and (khat < 0.7).all()
    flat, none = smoothed(np.zeros((1, 100)))
    assert np.exp(flat) == pytest.approx(0.01) and none[0] == -np.inf


def test_stacking_prefers_what_predicts_and_shares_where_both_do() -> None:
    rng = np.random.default_rng(0)
    good = rng.normal(-1, 0.3, 200)
    assert stacking(np.stack([good, good - 1]))[0] > 0.99
    first, second = np.where(np.arange(200) < 100, -1.0, -3.0), np.where(np.arange(200) < 100, -3.0, -1.0)
    assert stacking(np.stack([first, second])) == pytest.approx([0.5, 0.5], abs=1e-3)


def test_fits_of_other_ratings_are_refused() -> None:
    one = made_up(s_u=0.5, draws=30).ratings
    comparable({"a": one, "b": replace(one)})
    other = replace(one, category=one.category[::-1].copy())
    with pytest.raises(ConfigError, match="a and b are fits of other ratings"):
        comparable({"a": one, "b": other})
    with pytest.raises(ConfigError, match="their judges are not the same"):
        comparable({"a": one, "b": replace(one, judges=("x", "y", "z"))})


def test_the_model_that_made_the_ratings_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = made_up(models=4, items=20, s_u=0.6, draws=25, noise=0.02)
    flat = replace(truth, draws=truth.draws | {"theta": 0 * truth.draws["theta"]})
    table = compare_models({"flat": flat, "truth": truth})
    assert table["fit"].tolist() == ["truth", "flat"] and table["verdict"].tolist() == [
        "predicts best",
        "predicts worse",
    ]
    assert table["difference"][0] == 0 and table["weight"][0] > 0.9
    same = compare_models({"one": truth, "two": replace(truth)})
    assert same["verdict"].tolist() == ["predicts best", "predicts as well"]
    whole = loo(truth)
    units = whole.units.assign(khat=np.where(whole.units["item"] == "item3", 2.0, 0.1))
    monkeypatch.setattr(
        module,
        "loo",
        lambda posterior, draws: Loo(
            units.assign(elpd=units["elpd"] - 9.0 * (posterior is flat) * (units["khat"] > 1)), 100
        ),
    )
    assert compare_models({"flat": flat, "truth": truth})["verdict"].str.contains("not to be relied on").any()


@pytest.mark.slow
def test_leave_one_out_is_what_refitting_without_the_answer_predicts() -> None:
    table, _ = simulate(Spec(models=3, items=8, dimensions=1, judges=3, s_u=0.6), 2)
    options = Options(model="rasch", thresholds="common", chains=2, warmup=300, draws=500)
    posterior = fit(encode(table), options)
    found = loo(posterior)
    for model, item in (("model0", "item3"), ("model2", "item7")):
        out = (table["model"] == model) & (table["item"] == item)
        rest = fit(encode(table[~out], scale=range(1, 6)), options)
        whole: Posterior = replace(rest, ratings=posterior.ratings)
        density = log_likelihood(whole, *chosen_draws(whole))
        units = Units.of(posterior.ratings)
        names = zip(
            np.array(posterior.ratings.models)[units.model], np.array(posterior.ratings.items)[units.item], strict=True
        )
        at = list(names).index((model, item))
        exact = logsumexp(density[at]) - np.log(density.shape[1])
        assert found.units["elpd"][at] == pytest.approx(exact, abs=0.12)
        assert found.units["khat"][at] < 0.7
