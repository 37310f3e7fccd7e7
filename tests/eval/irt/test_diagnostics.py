"""R-hat and ESS at known values, and a gate that opens only for a fit that has converged."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpeer.eval.irt.diagnostics import LARGE_BLOCK, convergence, diagnostics, ebfmi, gate, parameter_names
from dpeer.eval.irt.types import Options, Posterior

made_up = runpy.run_path(str(Path(__file__).with_name("made_up.py")))["made_up"]


def ar1(rho: float, chains: int, draws: int, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.empty((chains, draws, n))
    x[:, 0] = rng.normal(size=(chains, n))
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=(chains, n))
    return x


def converged(seed: int = 0, **settings: object) -> Posterior:
    return made_up(items=12, chains=4, draws=400, noise=0.1, seed=seed, **settings)


def changed(posterior: Posterior, **draws: np.ndarray) -> Posterior:
    return replace(posterior, draws=posterior.draws | draws)


def sampler(posterior: Posterior, **values: np.ndarray) -> Posterior:
    return replace(posterior, sampler=posterior.sampler | values)


def test_independent_draws_count_in_full() -> None:
    rhat, bulk, tail = convergence(ar1(0.0, 4, 1000, 40))
    assert rhat == pytest.approx(1, abs=0.005)
    assert bulk.mean() == pytest.approx(4000, rel=0.05) and tail.mean() == pytest.approx(4000, rel=0.08)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_autocorrelated_draws_count_as_theory_says(rho: float) -> None:
    _, bulk, _ = convergence(ar1(rho, 4, 2000, 40))
    assert bulk.mean() == pytest.approx(8000 * (1 - rho) / (1 + rho), rel=0.1)


def test_shifted_and_wider_chains_raise_rhat() -> None:
    x = ar1(0.0, 4, 1000, 20)
    shifted, wider = x.copy(), x.copy()
    shifted[0] += 1
    wider[0] *= 4
    # One of four chains shifted by 1: the means of the eight halves have variance 3/14.
    assert convergence(shifted)[0].mean() == pytest.approx(np.sqrt(1 + 3 / 14), abs=0.03)
    assert (convergence(wider)[0] > 1.05).all()


def test_chains_that_stand_still_apart_are_no_agreement() -> None:
    x = ar1(0.0, 4, 100, 2)
    x[:, :, 1] = np.arange(4)[:, None]
    rhat, bulk, tail = convergence(x)
    assert rhat[1] == np.inf and bulk[1] == tail[1] == 4
    assert np.isnan(convergence(x[:1])[0]).all()


def test_energy() -> None:
    energies = np.concatenate([ar1(rho, 1, 20_000, 1)[..., 0] for rho in (0.0, 0.9)])
    assert ebfmi(energies) == pytest.approx([2.0, 0.2], rel=0.1)  # 2 (1 - rho)


def test_names_of_parameters() -> None:
    r = made_up(items=3).ratings
    assert parameter_names(r, "theta", (4, 2))[:3] == ["theta[model0, T]", "theta[model0, A]", "theta[model1, T]"]
    assert parameter_names(r, "tau", (3, 2, 4))[5] == "tau[judge0, A, 3]"
    assert parameter_names(r, "s_severity", ()) == ["s_severity"]
    assert parameter_names(r, "unheard_of", (2,)) == ["unheard_of[1]", "unheard_of[2]"]


def test_constants_and_missing_blocks_are_left_out() -> None:
    p = converged()
    beta, tau = p.draws["beta"].copy(), p.draws["tau"].copy()
    beta[:, :, 0] = np.nan
    tau[..., 1] = 0.5
    table = diagnostics(changed(p, beta=beta, tau=tau, correlation=np.ones((4, 400, 2, 2))))
    names = set(table["parameter"])
    assert "beta[item1, T]" in names and "beta[item0, T]" not in names
    assert "tau[judge0, T, 2]" in names and "tau[judge0, T, 3]" not in names
    assert not any(name.startswith("correlation") for name in names)
    assert table[["rhat", "ess_bulk", "ess_tail"]].notna().all().all()
    assert not table.loc[table["parameter"].str.startswith("beta"), "gated"].any()


def test_of_many_items_the_worst_are_shown() -> None:
    p = made_up(items=3)
    beta = np.random.default_rng(0).normal(size=(4, 60, 20_000, 1))
    beta[0, :, 1234] += 3
    table = diagnostics(changed(p, beta=beta))
    items = table[table["parameter"].str.startswith("beta")].set_index("parameter")
    assert len(items) == LARGE_BLOCK and items["rhat"].idxmax() == "beta[1235, 1]"


def test_a_converged_fit_is_green() -> None:
    found = gate(converged())
    assert found["green"] and found["reasons"] == [] and found["advice"] == []
    assert found["rhat_max"] < 1.01 and found["ess_bulk_min"] > 400 and len(found["worst"]) == 10
    assert json.loads(json.dumps(found)) == found


def test_items_do_not_close_the_gate() -> None:
    p = converged()
    beta = p.draws["beta"].copy()
    beta[0] += 1
    assert gate(changed(p, beta=beta))["green"]


@pytest.mark.parametrize("name", ["theta", "severity", "tau", "s_beta", "s_severity", "log_alpha"])
def test_one_chain_elsewhere_closes_the_gate_and_is_named(name: str) -> None:
    p = converged()
    draws = p.draws[name].copy()
    draws[0] += 1
    found = gate(changed(p, **{name: draws}))
    assert not found["green"] and f"R-hat is 1.8 at {name}"[:9] in found["reasons"][0] and name in found["reasons"][0]
    assert found["worst"][0]["parameter"].startswith(name)
    assert any("warm-up" in line for line in found["advice"])


def test_few_effective_draws_close_the_gate_with_a_number_of_draws() -> None:
    p = converged()
    found = gate(changed(p, theta=p.draws["theta"] + ar1(0.8, 4, 400, 8).reshape(4, 400, 4, 2)))
    assert not found["green"] and any("bulk ESS" in reason for reason in found["reasons"])
    assert any("draws" in line for line in found["advice"])


def test_divergences_energy_and_single_chains_close_the_gate() -> None:
    p = converged()
    divergent = np.zeros((4, 400))
    divergent[2, 7] = 1
    assert "1 of 1600 transitions diverged" in gate(sampler(p, divergent=divergent))["reasons"][0]
    energy = np.cumsum(np.random.default_rng(0).normal(size=(4, 400)), axis=1)
    assert "E-BFMI" in gate(sampler(p, energy=energy))["reasons"][0]
    one = replace(p, draws={k: v[:1] for k, v in p.draws.items()}, sampler={k: v[:1] for k, v in p.sampler.items()})
    assert "one chain" in gate(one)["reasons"][0]


def test_deep_trajectories_bring_advice_only() -> None:
    found = gate(sampler(converged(), treedepth=np.full((4, 400), 10.0)))
    assert found["green"] and found["treedepth_hits"] == 1600 and "tree depth" in found["advice"][0]


def test_fits_without_calibrated_intervals_are_never_green() -> None:
    assert "approximate" in gate(converged(options=Options(approx=True)))["reasons"][0]
    alone = replace(converged(), facts={"no_intervals": "one judge, and no response is rated twice"})
    assert gate(alone)["reasons"] == ["one judge, and no response is rated twice"]


def test_draws_that_are_not_numbers_close_the_gate() -> None:
    p = converged()
    theta = p.draws["theta"].copy()
    theta[1, 5, 0, 0] = np.nan
    assert any("theta are not numbers" in reason for reason in gate(changed(p, theta=theta))["reasons"])


def test_a_sampler_that_did_not_move_is_not_green() -> None:
    found = gate(made_up(items=3, noise=0.0))
    assert not found["green"] and any("did not move" in reason for reason in found["reasons"])


def test_advice_names_the_term_that_the_data_do_not_inform() -> None:
    p = converged()
    slow = ar1(0.99, 4, 400, 1)[..., 0]
    found = gate(changed(p, s_u=np.stack([slow, slow], -1), s_halo=slow, own_family=slow))
    text = " ".join(found["advice"])
    assert "halo" in text and "own" in text and not found["green"]


def test_ratings_that_the_model_does_not_predict_close_the_gate() -> None:
    p = converged()
    misfit = pd.DataFrame({"notable": [True, True, True, False, False, False]})
    found = gate(p, misfit=misfit)
    assert not found["green"] and "50% of the judge x model" in found["reasons"][0] and found["misfit"] == 0.5
    assert gate(p, misfit=misfit.iloc[2:])["green"]
