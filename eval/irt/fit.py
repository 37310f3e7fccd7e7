"""Abilities from ratings: `fit` samples the posterior of `model.stan` with CmdStan; `save` and `load` keep it."""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dpeer.eval.irt.anchors import Anchors, check_anchors
from dpeer.eval.irt.chains import SAMPLER, Sampling, read_csv, run_chains
from dpeer.eval.irt.cmdstan import MODEL, compile_model, find_or_install, version
from dpeer.eval.irt.comparisons import gives_ties
from dpeer.eval.irt.design import check
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.fit_folder import load, save
from dpeer.eval.irt.scales import guessed, measured
from dpeer.eval.irt.stan_data import Problem, build
from dpeer.eval.irt.stan_start import metric, starts
from dpeer.eval.irt.types import AXES, Floats, Ints, Options, Posterior, Ratings
from dpeer.scratch import scratch

__all__ = ["IrtError", "fit", "load", "save"]

APPROX_WARMUP, APPROX_DRAWS = 200, 100
PILOT = (1, 150, 50)
"""Chains, warm-up and draws of the short run whose scales say how the blocks of the real run are centred."""
STEPS, STEPS_LARGE = (0.98, 0.995, 0.999), (0.95, 0.99, 0.998)
"""Acceptance rates aimed at (Stan's adapt_delta): after divergences all chains are run anew with the next one."""
STEPS_ROUGH = (0.8,)
KEPT_EFFECTS = 200
"""Draws, over all chains, of which the response effects are kept."""
LARGE = 8000
"""Parameters from which on trees are kept shallower and steps longer: scales are sharp there, and steps dear."""
SCALARS = ("s_severity", "s_dev", "s_tau", "s_alpha", "s_halo", "order", "own_family", "own_model")
OF_COMPARISONS = ("position_mean", "s_position", "tie_mean", "s_tie", "log_scale")
OF_RATINGS = (
    "s_severity",
    "s_dev",
    "s_tau",
    "severity",
    "severity_judge",
    "s_beta",
    "mu",
    "beta",
    "tau",
    "tau_average",
)
"""Draws that hold no more than the prior where nothing was rated."""
VECTORS = ("mu", "s_theta", "s_beta", "s_u", "length")
WANTED = {
    *VECTORS,
    *(name for name in SCALARS if not name.startswith("own")),
    *("own_family_effect", "own_model_effect", "theta", "severity", "log_alpha", "beta", "delta", "tau", "kappa"),
    *("correlation", "position", "tie", *OF_COMPARISONS),
}


def fit(
    ratings: Ratings,
    options: Options,
    progress: Callable[[str, float], None] | None = None,
    *,
    unchecked: bool = False,
    warn: Callable[[str], None] | None = None,
) -> Posterior:
    """Posterior draws of the many-facet model (see `model.stan` for the formula and the priors).

    `progress` gets what is being done and the fraction of it, `warn` each weakness of the design. Installs CmdStan and
    compiles the model on first use. `unchecked` leaves out the identification check; such a fit supports no claim.
    Raises a DesignError (see `check`) when the ratings cannot tell the models apart, and IrtError when they hold
    nothing to estimate, CmdStan cannot be had, or a chain fails.
    """
    say = progress or (lambda what, done: None)
    warnings = [] if unchecked else [str(w) for w in check(ratings, options).warnings]
    if warn:
        for warning in warnings:
            warn(warning)
    if options.approx:
        options = replace(options, warmup=min(options.warmup, APPROX_WARMUP), draws=min(options.draws, APPROX_DRAWS))
    scales = guessed(ratings)
    problem = build(ratings, options, scales)  # faults of the data before anything is installed
    cmdstan = find_or_install(lambda text: say(text, 0.0))
    executable = compile_model(lambda text: say(text, 0.0), cmdstan)
    begin, cpu_before = time.perf_counter(), _children_cpu()
    chains, warmup, draws = PILOT
    short = replace(options, approx=True, chains=chains, warmup=warmup, draws=draws)
    pilot = _sample(ratings, short, problem, executable, partial(say, "pilot chain"), STEPS_ROUGH[0])
    problem = build(ratings, options, measured(pilot, scales))
    label = "sampling (approximate)" if options.approx else "sampling"
    for attempt, rate in enumerate(_steps(options, problem)):
        again = f" again, adapt_delta {rate}" if attempt else ""
        posterior = _sample(ratings, options, problem, executable, partial(say, label + again), rate)
        if not posterior.sampler["divergent"].any():
            break
    facts = {
        "cmdstan": version(cmdstan),
        "model_sha256": hashlib.sha256(MODEL.read_bytes()).hexdigest(),
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(_children_cpu() - cpu_before, 2),
        "pilot_leapfrogs": pilot.facts["leapfrogs"],
        "runs_with_divergences_before": attempt,
        "design_checked": not unchecked,
        "design_warnings": warnings,
    }
    return replace(posterior, facts=facts | posterior.facts)


def _steps(options: Options, problem: Problem) -> tuple[float, ...]:
    return STEPS_ROUGH if options.approx else STEPS_LARGE if len(metric(problem.blocks)) > LARGE else STEPS


def _sample(
    ratings: Ratings,
    options: Options,
    problem: Problem,
    executable: Path,
    progress: Callable[[float], None],
    adapt_delta: float,
) -> Posterior:
    """Run the chains of one problem and read them."""
    inverse_metric = metric(problem.blocks)
    sampling = Sampling(
        warmup=options.warmup,
        draws=options.draws,
        adapt_delta=adapt_delta,
        max_treedepth=8 if len(inverse_metric) > LARGE else 10,
        seed=options.seed,
        threads=options.threads,
    )
    keep = max(1, KEPT_EFFECTS // options.chains)
    kept = np.unique(np.linspace(0, options.draws - 1, min(keep, options.draws)).round().astype(np.int64))
    stan = _run(problem, options, executable, inverse_metric, sampling, kept, progress)
    u_raw = stan.pop("u_raw", None)
    sampler = {name.removesuffix("__"): stan.pop(name)[..., 0] for name in SAMPLER}
    anchors = check_anchors(ratings, options.anchors, "log_alpha" in stan, problem.response_effect)
    draws = _named(stan, ratings, problem, anchors)
    facts: dict[str, Any] = {
        "leapfrogs": int(sampler["n_leapfrog"].sum()),
        "parameters": len(inverse_metric),
        "response_effect": problem.response_effect,
        "max_treedepth": sampling.max_treedepth,
        "adapt_delta": sampling.adapt_delta,
        "unused_categories": _unused(ratings, problem),
        "notes": list(problem.notes),
        "earlier_origin": [d for d, mu in zip(ratings.dimensions, anchors.mu, strict=True) if not np.isnan(mu)],
    }
    if problem.no_intervals:
        facts["no_intervals"] = problem.no_intervals
    if u_raw is not None:
        u = _response_effects(u_raw, {name: values[:, kept] for name, values in stan.items()}, problem)
        shape = (len(ratings.response_model), len(ratings.dimensions))
        draws["u"] = _spread(u, (problem.cell_response, problem.cell_dimension), shape)
        facts["u_draws"] = (np.arange(options.chains)[:, None] * options.draws + kept).ravel().tolist()
    return Posterior(ratings=ratings, options=options, draws=draws, sampler=sampler, facts=facts)


def _run(
    problem: Problem,
    options: Options,
    executable: Path,
    inverse_metric: Floats,
    sampling: Sampling,
    kept: Ints,
    progress: Callable[[float], None],
) -> dict[str, Floats]:
    """Stan's draws by name, [chains, draws, ...]; of the response effects only the draws `kept`."""
    rng = np.random.default_rng(options.seed)
    with scratch("dpeer-irt-") as folder:
        (folder / "data.json").write_text(json.dumps(problem.data))
        files = run_chains(
            executable,
            folder / "data.json",
            [starts(problem.blocks, problem.data["D"], rng) for _ in range(options.chains)],
            inverse_metric,
            sampling,
            folder,
            progress,
        )
        chains = [read_csv(f, WANTED | set(SAMPLER), {"u_raw"}, set(kept.tolist()), options.draws) for f in files]
    return {name: np.stack([chain[name] for chain in chains]) for name in chains[0]}


def _response_effects(raw: Floats, draws: dict[str, Floats], problem: Problem) -> Floats:
    """u [chains, draws, E] of its partly centred form, see `model.stan`."""
    data, d = problem.data, problem.cell_dimension
    mu = draws["mu"] * np.array(data["rated"])
    ability = np.swapaxes(draws["theta"] + mu[..., None, :], -1, -2).reshape(*raw.shape[:2], -1)
    eta = ability[..., np.array(data["cell_ability"]) - 1] - draws["beta"][..., np.array(data["cell_item"]) - 1]
    if "length" in draws:
        eta += draws["length"][..., d] * np.array(data["cell_length"])
    c = np.array(data["centre_u"])
    return np.asarray(draws["s_u"][..., d] ** (1 - c) * (raw - c * eta))


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _named(stan: dict[str, Floats], ratings: Ratings, problem: Problem, anchors: Anchors) -> dict[str, Floats]:
    """Stan's blocks [chains, draws, ...] under the names and shapes of `Posterior`."""
    q, d, k = (len(x) for x in (ratings.items, ratings.dimensions, ratings.scale))
    draws = {name: stan[name] for name in (*VECTORS, "theta", "severity", "log_alpha") if name in stan}
    for name in SCALARS:
        column = f"{name}_effect" if name.startswith("own") else name
        if column in stan:
            draws[name] = stan[column][..., 0]
    draws["severity_judge"] = stan["severity"].mean(axis=-1)
    draws["beta"] = _spread(stan["beta"], (problem.item, problem.item_dimension), (q, d))
    if len(ratings.criteria) > d:
        draws["delta"] = stan["delta"][..., np.argsort(problem.criterion)]
    if d > 1:
        draws["correlation"] = stan["correlation"]
        draws["correlation"][..., range(d), range(d)] = 1.0  # not 0.999999999
    draws["tau"], draws["tau_average"] = _thresholds(stan, problem, k)
    draws |= _comparisons(stan, ratings, problem)
    moved = ~np.isnan(anchors.mu)
    if moved.any():  # abilities from the origin of the earlier fit, not from the mean of these models
        shift = np.where(moved, stan["mu"] - np.nan_to_num(anchors.mu), 0.0)
        draws["theta"] = stan["theta"] + shift[..., None, :]
        draws["mu"] = stan["mu"] - shift
    return _without_prior_only(draws, ratings)


def _comparisons(stan: dict[str, Floats], ratings: Ratings, problem: Problem) -> dict[str, Floats]:
    """What is said of comparisons: preferences for a place and ties [chains, draws, J], and scalars."""
    draws = {name: stan[name][..., 0] for name in OF_COMPARISONS if name in stan}
    draws |= {
        name: _spread(stan[name], (problem.comparer,), (len(ratings.judges),))
        for name in ("position", "tie")
        if name in stan
    }
    if "tie" in draws:
        draws["tie"][..., ~gives_ties(ratings)] = np.nan
    if "log_scale" in draws:
        draws["comparison_scale"] = np.exp(draws.pop("log_scale"))
    return draws


def _without_prior_only(draws: dict[str, Floats], ratings: Ratings) -> dict[str, Floats]:
    """Draws about ratings are nan in dimensions that hold comparisons only, and of judges who only compare."""
    if not len(ratings.comparisons):
        return draws
    unrated, rates = ~ratings.rated, ratings.judge_rated
    for name in OF_RATINGS:
        if name in draws and "dimension" in (axes := AXES.get(name, ())):
            at: Any = (..., unrated, *[slice(None)] * (len(axes) - 1 - axes.index("dimension")))
            draws[name] = draws[name].copy()
            draws[name][at] = np.nan
        elif name in draws and unrated.all():
            draws[name] = np.full_like(draws[name], np.nan)
    draws["severity_judge"] = np.where(rates.any(axis=1), draws["severity_judge"], np.nan)
    return draws


def _thresholds(stan: dict[str, Floats], problem: Problem, k: int) -> tuple[Floats, Floats]:
    """Thresholds of each judge [chains, draws, J, D, K-1] and of the average one [chains, draws, D, K-1].

    Each stands at its upper score and counts from the next lower one in use; nan elsewhere. The average is taken in log
    odds over the judges that give all scores, so that one who hardly tells scores apart hardly counts; where there is
    none it is the model's common thresholds.
    """
    kappa, tau = stan["kappa"], stan["tau"]  # [..., J, S], [..., S]
    alpha = np.exp(stan["log_alpha"]) if "log_alpha" in stan else np.ones(kappa.shape[:-1])  # [..., J]
    lead, d = kappa.shape[:-1], len(problem.used)
    own, average = np.full((*lead, d, k - 1), np.nan), np.full((*lead[:-1], d, k - 1), np.nan)
    judges = kappa / alpha[..., None]
    at = 0
    for i, used in enumerate(problem.used):
        steps = slice(at, at + len(used) - 1)
        whole = [j for j, judge in enumerate(problem.levels) if len(judge[i]) == len(used)]
        if whole:
            weight = alpha[..., whole].sum(axis=-1)[..., None]
            average[..., i, used[1:] - 1] = kappa[..., whole, steps].sum(axis=-2) / weight
        else:
            average[..., i, used[1:] - 1] = tau[..., steps]
        for j, judge in enumerate(problem.levels):
            upper = judge[i][1:]
            own[..., j, i, used[upper] - 1] = judges[..., j, at + upper - 1]
        at = steps.stop
    return own, average


def _spread(values: Floats, index: tuple[Ints, ...], shape: tuple[int, ...]) -> Floats:
    """values [chains, draws, n] into [chains, draws, *shape] at `index`; nan elsewhere."""
    stan = np.full((*values.shape[:2], *shape), np.nan)
    at: Any = (slice(None), slice(None), *index)
    stan[at] = values
    return stan


def _unused(ratings: Ratings, problem: Problem) -> dict[str, list[int]]:
    unused = {
        name: [score for k, score in enumerate(ratings.scale) if k not in used]
        for name, used, rated in zip(ratings.dimensions, problem.used, ratings.rated, strict=True)
        if rated
    }
    return {name: scores for name, scores in unused.items() if scores}
