"""Judges left out, and the pull of the prior: against refitting, brute force and known distributions."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dpeer.eval.irt import robustness
from dpeer.eval.irt.claims import Claims, claims
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.marginal import chosen_draws, log_likelihood
from dpeer.eval.irt.power_scaling import CONFLICT, POWERS, SENSITIVE, WEAK, _sensitivities, log_prior, sensitivity_table
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.tables import tabulate
from dpeer.eval.irt.types import Comparisons, Floats, Options, Posterior, Ratings
from dpeer.eval.irt.without_judge import Without, by_refit, by_weights, leave_out, stability, without_table
from tests.eval.irt.made_up import made_up

NOBODY = Claims()


def test_ratings_without_a_judge_are_those_of_a_table_without_it() -> None:
    table, _ = simulate(Spec(models=3, items=5, dimensions=2, judges=3, linked=(2, 2), compared=1, missing=0.1), 4)
    whole = encode(table)
    for j, name in enumerate(whole.judges):
        found, wanted = leave_out(whole, j), encode(table, scale=whole.scale, without=(name,))
        for part, kind in ((lambda r: r, Ratings), (lambda r: r.comparisons, Comparisons)):
            for f in fields(kind):
                if f.name not in ("comparisons", "statuses", "notes", "status_by_judge", "response_length"):
                    one, other = (getattr(part(r), f.name) for r in (found, wanted))
                    assert np.array_equal(one, other), f.name


def test_a_model_of_one_judge_cannot_be_compared_without_it() -> None:
    r = made_up(judges=2, keep=lambda c: (c["model"] != 2) | (c["judge"] == 1)).ratings
    with pytest.raises(IrtError, match="judge1 alone rated model2"):
        leave_out(r, 1)


def few_ratings() -> Posterior:
    """A judge with ratings of three items."""
    return made_up(
        judges=3, items=12, s_u=0.7, noise=0.05, draws=150, keep=lambda c: (c["judge"] < 2) | (c["item"] < 3)
    )


def test_draws_without_a_judge_are_weighted_by_what_its_ratings_said() -> None:
    posterior = few_ratings()
    index, place = chosen_draws(posterior)
    density = log_likelihood(posterior, index, place)
    found = by_weights(posterior, 2, index, place, density)
    rest = log_likelihood(posterior, index, place, posterior.ratings.judge != 2)
    weight = np.exp((rest - density).sum(axis=0) - (rest - density).sum(axis=0).max())
    unit = np.exp(posterior.flat("log_alpha")[:, :2].mean(axis=1))
    usual = np.exp(posterior.flat("log_alpha")[:, :2].mean())
    wanted = np.average(posterior.flat("theta") * (unit / usual)[:, None, None], axis=0, weights=weight)
    assert found.how == "weights" and found.khat < 0.7
    assert found.theta.mean(axis=0) == pytest.approx(wanted, abs=0.02)


def shifted(posterior: Posterior, judge: str, by: float) -> Without:
    theta = posterior.flat("theta").copy()
    theta[:, 1, 0] += by
    return Without(judge, theta, 0.3, "weights")


def test_a_contrast_changes_where_its_verdict_does_or_it_leaves_its_interval() -> None:
    posterior = made_up(models=2, dimensions=1, draws=200, noise=0.1, theta=np.array([[-0.5], [0.5]]))
    silent = Without("judge2", np.zeros((0, 2, 1)), 1.4, "", "because")
    found = (shifted(posterior, "judge0", 0.0), shifted(posterior, "judge1", -1.0), silent)
    table = without_table(posterior, found, "model0", NOBODY)
    assert table["changes"].tolist()[:2] == [False, True] and table["verdict"].tolist()[:2] == ["better", "undecided"]
    contrasts = tabulate(posterior, "model0").tables["contrasts"]
    assert stability(contrasts, table).tolist() == ["undecided without judge1; not known without judge2"]
    stable = without_table(posterior, found[:1], "model0", NOBODY)
    assert stability(contrasts, stable).tolist() == ["stable"]
    away = without_table(posterior, (shifted(posterior, "judge0", 2.0),), "model0", NOBODY)
    assert stability(contrasts, away).tolist() == ["+3.00, outside the interval of all without judge0"]
    nothing = without_table(posterior, (silent,), "model0", NOBODY)
    assert stability(contrasts, nothing).tolist() == ["not known without judge2"]


def test_claims_and_tables_carry_what_was_found() -> None:
    posterior = made_up(
        models=2, dimensions=1, items=60, draws=500, noise=0.1, theta=np.array([[-0.5], [0.5]]), s_u=0.5
    )
    index, place = chosen_draws(posterior, 200)
    likelihood = log_likelihood(posterior, index, place).sum(axis=0)
    mark = robustness.fingerprint(posterior)
    judges = (shifted(posterior, "judge0", 0.0), shifted(posterior, "judge1", -1.0))
    result = tabulate(posterior, "model0", robust=robustness.Robustness(mark, index, likelihood, judges))
    green = replace(result, gate=result.gate | {"green": True})
    assert claims(green)[0].endswith("; judges left out: undecided without judge1")
    assert {"without_judge", "sensitivity"} <= result.tables.keys()
    calm = tabulate(posterior, "model0", robust=robustness.Robustness(mark, index, likelihood, judges[:1]))
    assert claims(replace(calm, gate=green.gate))[0].endswith("; stable, whichever judge is left out")
    assert "stable" not in tabulate(posterior, "model0").tables["contrasts"]


def test_what_cannot_be_known_is_said(tmp_path: Path) -> None:
    posterior = made_up(judges=3, items=12, s_u=0.7, noise=0.3, draws=50)
    kept: list[robustness.Robustness] = []
    found = robustness.robustness(posterior, refits=0, keep=kept.append)
    assert len(kept) == 3 and [w.how for w in found.judges] == ["", "", ""]
    assert "k-hat" in found.judges[0].why and found.judges[0].why.endswith("no fit was to be made")
    assert robustness.notes(found, {})[0].startswith("Not known what would be claimed without judge judge0: importance")
    alone = robustness.robustness(made_up(judges=1, draws=20))
    assert alone.judges == () and alone.note.startswith("One judge")
    two = by_refit(made_up(judges=2, draws=20, s_u=0.5), 0, np.nan, lambda what, done: None)
    assert two.how == "" and two.why.startswith("judge1 alone rated each response once")
    anchored = replace(posterior, options=Options(anchors={"judges": {}}))
    assert "anchors" in by_refit(anchored, 0, np.nan, lambda what, done: None).why
    compared = replace(posterior.ratings, comparisons=Comparisons(*(np.zeros(1, np.int64) for _ in range(8))))
    joined = robustness.robustness(replace(posterior, ratings=compared), refits=0)
    assert "comparison" in joined.note and not len(joined.likelihood)
    assert joined.judges[0].why.startswith("no importance weights")


def test_what_was_found_is_kept_and_goes_on(tmp_path: Path) -> None:
    posterior = few_ratings()
    found = robustness.robustness(posterior, refits=0)
    assert robustness.load(tmp_path, posterior) is None
    robustness.save(found, tmp_path)
    again = robustness.load(tmp_path, posterior)
    assert again is not None and again.judges[2].theta == pytest.approx(found.judges[2].theta, abs=1e-5)
    assert [(w.judge, w.how, w.why) for w in again.judges] == [(w.judge, w.how, w.why) for w in found.judges]
    kept = replace(again, judges=(*again.judges[:2], replace(again.judges[2], khat=-7.0)))
    assert robustness.robustness(posterior, refits=0, earlier=kept).judges[2].khat == -7.0
    other = replace(posterior, draws=posterior.draws | {"theta": posterior.draws["theta"] + 1})
    assert robustness.load(tmp_path, other) is None
    (tmp_path / robustness.FILE).write_bytes(b"PK nothing")
    with pytest.raises(IrtError, match="is damaged"):
        robustness.load(tmp_path, posterior)


def distance(power: float) -> float:
    """Cumulative Jensen-Shannon distance of normal(0, 1) and normal(0, sd^2 = 1 / power), by quadrature."""
    x = np.linspace(-3.4, 3.4, 20001)
    p, q = stats.norm.cdf(x), stats.norm.cdf(x, scale=power**-0.5)
    m = (p + q) / 2
    step = x[1] - x[0]
    total = step * (p * np.log2(p / m) + q * np.log2(q / m)).sum()
    return float(np.sqrt(total / (step * (p + q).sum())))


def test_the_pull_of_a_prior_that_is_all_there_is() -> None:
    x = np.random.default_rng(0).normal(size=4000)
    found = _sensitivities(
        np.stack([x, np.random.default_rng(1).normal(size=4000), np.ones(4000)], axis=1), -(x**2) / 2
    )
    wanted = np.mean([distance(power) / abs(np.log2(power)) for power in POWERS])
    assert found[0] == pytest.approx(wanted, rel=0.1)
    assert found[1] < 0.05 and np.isnan(found[2])


def test_prior_and_ratings_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    posterior = made_up(models=2, dimensions=1, judges=2, draws=500, noise=0.1)
    index = np.arange(2000)
    mu = rng.normal(8.0, 2.0, (4, 500, 1))  # far from the mean of its prior, normal(0, 5)
    odd = replace(posterior, draws=posterior.draws | {"mu": mu, "theta": np.stack([mu, -mu], axis=2)})
    informed = sensitivity_table(odd, "model0", index, 0.5 * mu.ravel())
    assert informed["diagnosis"][0] == CONFLICT
    silent = sensitivity_table(odd, "model0", index, rng.normal(size=2000))
    assert silent["diagnosis"][0] in (WEAK, SENSITIVE)
    assert silent["likelihood_counts"][0] >= 0.05 and (silent["diagnosis"] != CONFLICT).all()
    assert set(silent["quantity"][1:3]) == {"severity of judge0", "severity of judge1"}


def test_the_prior_is_that_of_the_program() -> None:
    posterior = made_up(dimensions=2, draws=40, noise=0.0, chains=1)
    draws = {
        name: posterior.draws[name].copy() for name in ("mu", "s_theta", "correlation", "tau_average", "s_severity")
    }
    index = np.arange(2)

    def change(**moved: Floats) -> float:
        for name, value in moved.items():
            draws[name][0, 1] = value
        found = log_prior(replace(posterior, draws=posterior.draws | draws), index)
        return float(found[1] - found[0])

    said = change(mu=np.array([1.2, 0.2]))
    assert said == pytest.approx(stats.norm.logpdf(1.2, 0, 5) - stats.norm.logpdf(0.2, 0, 5))
    said = change(s_theta=np.array([2.0, 1.0])) - said
    assert said == pytest.approx(stats.lognorm.logpdf(2.0, 0.8) - stats.lognorm.logpdf(1.0, 0.8))
    before = change()
    said = change(correlation=np.array([[1.0, 0.6], [0.6, 1.0]])) - before
    assert said == pytest.approx(2 * np.log(1 - 0.36) / 2)  # LKJ(2) of two: density of the factor, (2 eta - 2) log L_22
    before = change()
    said = change(tau_average=draws["tau_average"][0, 0] * 2) - before
    assert said == pytest.approx(-3 * (draws["tau_average"][0, 0] ** 2).sum() / (2 * 2.5**2))


@pytest.mark.slow
def test_weights_and_a_refit_say_the_same() -> None:
    table, _ = simulate(Spec(models=3, items=20, dimensions=1, judges=4), 3)
    few = (table["judge"] != "rater3") | (table["item"] == "item00")
    posterior = fit(encode(table[few]), Options(chains=2, warmup=300, draws=500))
    index, place = chosen_draws(posterior)
    weights = by_weights(posterior, 3, index, place, log_likelihood(posterior, index, place))
    refit = by_refit(posterior, 3, weights.khat, lambda what, done: None)
    assert weights.khat < 0.7 and refit.how == "refit"
    assert weights.theta.mean(axis=0) == pytest.approx(refit.theta.mean(axis=0), abs=0.08)
    assert weights.theta.std(axis=0) == pytest.approx(refit.theta.std(axis=0), rel=0.25)
