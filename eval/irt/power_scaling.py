"""How much do the prior and the ratings decide? Power-scaling sensitivity (Kallioinen et al., Statistics and Computing
34, 2024; R package priorsense): the posterior with the prior, or the likelihood, raised to a power near 1, from the
draws by Pareto smoothed importance sampling, and how far a quantity moves (cumulative Jensen-Shannon distance per
doubling).

Scaled are the priors of what is at the top: means, spreads, correlation, thresholds, criteria and effects. That
abilities, judges, items and responses come from normal distributions with these spreads is part of the model.
Likelihoods are those of `irt.marginal`, with effects of responses integrated out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from dpeer.eval.irt.stan_terms import SEVERITY_PRIORS
from dpeer.eval.irt.types import GRADED, Floats, Ints, Posterior

POWERS = (0.8, 1.25)
NOTABLE = 0.05
"""Sensitivity that counts: a standard normal moves as far when its mean moves by about 0.3 sd as the power doubles."""
UNRELATED = 100
WEAK = "the prior decides, the ratings say little"
CONFLICT = "prior and ratings may disagree"
SENSITIVE = "the prior matters"
_LOGNORMAL = {
    "s_theta": (0.0, 0.8),
    "s_beta": (np.log(0.7), 0.8),
    "s_alpha": (np.log(0.35), 0.8),
    "s_tau": (np.log(0.25), 1.0),
    **dict.fromkeys(("s_judge_model", "s_judge_item", "s_group"), (np.log(0.25), 0.8)),
    "s_item_step": (np.log(0.5), 1.0),
}
_NORMAL = {"mu": 5.0, "delta": 1.0, "length": 1.0, "order": 1.0, "own_family": 1.0, "own_model": 1.0, "s_halo": 1.0}
_STUDENT = ("s_u", "s_v")
_STEP_SD, _LKJ = 2.5, 2.0


def log_prior(posterior: Posterior, draws: Ints) -> Floats:
    """[S] at flat draws, up to a constant; as in `model.stan`. Common thresholds are taken as the average judge's."""
    total = np.zeros(len(draws))
    severity, dev = SEVERITY_PRIORS[posterior.options.severity_prior]
    for name, (mean, sd) in {**_LOGNORMAL, "s_severity": severity, "s_dev": dev}.items():
        if name in posterior.draws:
            total += _sum(stats.lognorm.logpdf(posterior.flat(name)[draws], sd, scale=np.exp(mean)))
    for name, sd in _NORMAL.items():
        if name in posterior.draws:
            total += _sum(stats.norm.logpdf(posterior.flat(name)[draws], scale=sd))
    for name in _STUDENT:
        if name in posterior.draws:
            total += _sum(stats.t.logpdf(posterior.flat(name)[draws], 4))
    if "correlation" in posterior.draws:
        root = np.diagonal(np.linalg.cholesky(posterior.flat("correlation")[draws]), axis1=-2, axis2=-1)
        d = root.shape[-1]
        total += (np.log(root) * (d - np.arange(1, d + 1) + 2 * _LKJ - 2)).sum(axis=-1)
    return total + _of_steps(posterior, draws)


def _sum(values: Floats) -> Floats:
    return np.asarray(np.nansum(values.reshape(len(values), -1), axis=1))


def _of_steps(posterior: Posterior, draws: Ints) -> Floats:
    """Of the common thresholds, from their mean; of graded responses, of the free steps behind the cutpoints."""
    total = np.zeros(len(draws))
    for tau in np.moveaxis(posterior.flat("tau_average")[draws], 1, 0):
        steps = tau[:, np.isfinite(tau[0])]
        if steps.shape[1] > 1:
            if posterior.options.model == GRADED:
                gaps = np.log(np.expm1(np.maximum(np.diff(steps, axis=1), 1e-12)))
                steps = np.concatenate([np.zeros((len(steps), 1)), gaps.cumsum(axis=1)], axis=1)
            steps = steps - steps.mean(axis=1, keepdims=True)
            total -= (steps**2).sum(axis=1) / (2 * _STEP_SD**2)
    return total


def quantities(posterior: Posterior, base: str, draws: Ints) -> tuple[list[str], Floats]:
    """Names and draws [S, n] of what a reader looks at: contrasts, severities, discriminations and spreads."""
    r = posterior.ratings
    theta, b = posterior.flat("theta")[draws], r.models.index(base)
    others = [m for m in range(len(r.models)) if m != b]
    names = [f"{r.models[m]} - {base} in {d}" for m in others for d in r.dimensions]
    values = [(theta[:, others] - theta[:, [b]]).reshape(len(draws), -1)]
    of_judges = [("severity_judge", "severity"), ("log_alpha", "log discrimination")]
    for name, words in of_judges if len(r.judges) > 1 else ():
        if name in posterior.draws:
            names += [f"{words} of {judge}" for judge in r.judges]
            values.append(posterior.flat(name)[draws])
    for name in (
        "s_theta",
        "s_u",
        "s_v",
        "s_halo",
        "s_severity",
        "s_alpha",
        "length",
        "order",
        "own_family",
        "own_model",
    ):
        if name in posterior.draws:
            drawn = posterior.flat(name)[draws].reshape(len(draws), -1)
            names += [f"{name} in {d}" for d in r.dimensions] if posterior.flat(name).ndim > 1 else [name]
            values.append(drawn)
    return names, np.concatenate(values, axis=1)


def sensitivity_table(posterior: Posterior, base: str, draws: Ints, likelihood: Floats) -> pd.DataFrame:
    """A row per quantity: prior, likelihood (how far it moves per doubling of the power), prior_counts and
    likelihood_counts (from where on that counts: `NOTABLE`, or the noise of so many draws) and diagnosis (in words, or
    empty): both move it, the likelihood does not, or that is not known.

    likelihood [S]: log likelihood of all ratings at flat `draws`; the prior is scaled at all draws."""
    every = np.arange(len(posterior.flat("theta")))
    frame = pd.DataFrame({"quantity": pd.Series(quantities(posterior, base, draws[:1])[0], dtype="str")})
    for kind, at, density in (("prior", every, log_prior(posterior, every)), ("likelihood", draws, likelihood)):
        values = quantities(posterior, base, at)[1]
        frame[kind] = _sensitivities(values, density)
        frame[f"{kind}_counts"] = max(NOTABLE, _noise(density))
    moved = {kind: frame[kind] >= frame[f"{kind}_counts"] for kind in ("prior", "likelihood")}
    why = np.where(moved["likelihood"], CONFLICT, np.where(frame["likelihood"] < NOTABLE, WEAK, SENSITIVE))
    return frame.assign(diagnosis=pd.Series(np.where(moved["prior"], why, ""), dtype="str"))


def _noise(density: Floats) -> float:
    """What a quantity that has nothing to do with a log density [S] seldom exceeds: as many parameters share a prior,
    its weights vary though none of them matters."""
    unrelated = np.random.default_rng(0).standard_normal((len(density), UNRELATED))
    return float(np.quantile(_sensitivities(unrelated, density), 0.99))


def _sensitivities(values: Floats, density: Floats) -> Floats:
    """[n] of draws [S, n] when a log density [S] is scaled."""
    from arviz_stats.base import array_stats

    assert len(values) == len(density)  # ArviZ would not notice
    weights = []
    for power in POWERS:
        log = np.asarray(array_stats.power_scale_lw(density - density.max(), alpha=power))
        weights.append(np.exp(log - log.max()))
    lower, upper = (w[None] / w.sum() for w in weights)
    return np.array(
        [
            float(array_stats.power_scale_sense(column[None], lower, upper, *POWERS)) if np.ptp(column) > 0 else np.nan
            for column in values.T
        ]
    )
