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

from dpeer.eval.irt.anchors import check_anchors
from dpeer.eval.irt.cmdstan import FUNCTIONS, MODEL, compile_model, find_or_install, version
from dpeer.eval.irt.design import check
from dpeer.eval.irt.diagnostics import missing_draws, mixing
from dpeer.eval.irt.draws import RAW, WANTED, named, response_effects, spread
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.fit_folder import load, save
from dpeer.eval.irt.forecast import at_once, check_room, seconds
from dpeer.eval.irt.restart import begin, earlier, joined, left
from dpeer.eval.irt.scales import guessed, measured
from dpeer.eval.irt.stan_data import Problem, build
from dpeer.eval.irt.stan_start import metric, starts
from dpeer.eval.irt.stan_terms import term_effects
from dpeer.eval.irt.types import KEPT_EFFECTS, Floats, Ints, Options, Posterior, Ratings
from dpeer.eval.progress import duration
from dpeer.scratch import scratch

__all__ = ["IrtError", "fit", "load", "save"]

APPROX_WARMUP, APPROX_DRAWS = 200, 100
PILOT = (1, 150, 50)
"""Chains, warm-up and draws of the short run whose scales say how the blocks of the real run are centred."""
STEPS = (0.95, 0.99, 0.998)
"""Acceptance rates aimed at (Stan's adapt_delta): after divergences all chains are run anew with the next one."""
STEPS_ROUGH = (0.8,)
ENOUGH = 2000
"""Draws of all chains from which on they go on where the gate asks for more; fewer are for a look."""
LARGE = 8000
"""Parameters from which on trees are kept shallower: scales are sharp there, and steps dear."""
Say = Callable[[str, float], None]
APART = 1.05
"""R-hat from which on approximate chains that go on from an earlier fit are given up; others must pass the gate."""
CAUTION = 0.6
"""Of the draws that seem to be missing: short chains understate their effective size (0.14 at 250, 0.18 at 810)."""
SEEDS = 2**32
"""Seeds that CmdStan knows."""
BURN_IN, LEAST_PART = 100, 50
"""Iterations by which chains from an earlier fit reach the posterior of more ratings, and draws that are worth a start
of CmdStan."""


def fit(
    ratings: Ratings,
    options: Options,
    progress: Callable[[str, float], None] | None = None,
    *,
    unchecked: bool = False,
    warn: Callable[[str], None] | None = None,
    keep_csv: Path | None = None,
    start: Posterior | None = None,
    keep: Callable[[Posterior], None] | None = None,
) -> Posterior:
    """Posterior draws of the many-facet model (see `model.stan` for the formula and the priors).

    `progress` gets what is being done and the fraction of it, `warn` each weakness of the design. Installs CmdStan and
    compiles the model on first use. `unchecked` leaves out the identification check; such a fit supports no claim.
    `start`: an earlier fit of the same models, judges and terms to fewer ratings. Chains go on from its last draws with
    its metric and step size, and end as soon as they hold the effective draws that a claim needs; where a transition
    diverges, or draws for which a fresh fit could be made do not pass the gate, it is made afresh.
    CmdStan's own files go to the folder `keep_csv`, in place of those of an earlier fit. `keep` gets what there is
    before chains go on, which an interrupt would cost.
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

    def with_facts(posterior: Posterior) -> Posterior:
        facts = {
            "cmdstan": version(cmdstan),
            "model_sha256": hashlib.sha256(MODEL.read_bytes() + FUNCTIONS.read_bytes()).hexdigest(),
            "seconds": round(time.perf_counter() - begin, 2),
            "cpu_seconds": round(_children_cpu() - cpu_before, 2),
            "started_from_earlier": start is not None and "pilot_leapfrogs" not in posterior.facts,
            "design_checked": not unchecked,
            "design_warnings": warnings,
        }
        return replace(posterior, facts=facts | posterior.facts)

    posterior = start and _continued(start, ratings, options, executable, say, keep_csv)
    if posterior is None:
        goes_on = not (unchecked or keep_csv or options.approx or options.chains == 1 or problem.no_intervals)
        before = (lambda found: keep(with_facts(found))) if keep else (lambda found: None)
        posterior = _fresh(ratings, options, problem, executable, say, keep_csv, before if goes_on else None)
    return with_facts(posterior)


def _fresh(
    ratings: Ratings,
    options: Options,
    problem: Problem,
    executable: Path,
    say: Say,
    keep_csv: Path | None,
    keep: Callable[[Posterior], None] | None,
) -> Posterior:
    """A pilot for the scales of `problem`, then all chains, anew with shorter steps after divergences; with `keep` on
    from their last draws where they are a little short of the gate."""
    chains, warmup, draws = PILOT
    short = replace(options, approx=True, chains=chains, warmup=warmup, draws=draws)
    nuts = _nuts(problem, options) | {"adapt_delta": STEPS_ROUGH[0]}
    pilot = _sample(ratings, short, problem, executable, partial(say, "pilot chain"), nuts=nuts)
    problem = build(ratings, options, measured(pilot, problem.scales))
    expected = seconds(pilot.facts["seconds_per_draw"], options, at_once(options.chains, options.threads, len(ratings)))
    label = f"sampling{' (approximate)' * options.approx}, about {duration(expected)}"
    sample = partial(_sample, ratings, problem=problem, executable=executable, keep_csv=keep_csv)
    for attempt, rate in enumerate(STEPS_ROUGH if options.approx else STEPS):
        again = f" again, adapt_delta {rate}" if attempt else ""
        for other in keep_csv.glob("model-*.csv") if keep_csv and attempt else ():  # of draws that do not count
            other.unlink()
        nuts = _nuts(problem, options) | {"adapt_delta": rate}
        found = sample(options, progress=partial(say, label + again), nuts=nuts)
        facts = {
            "pilot_leapfrogs": pilot.facts["leapfrogs"],
            "expected_seconds": expected,
            "runs_with_divergences_before": attempt,
            "adapt_delta": rate,
        }
        posterior = replace(found, facts=found.facts | facts)
        afresh = options.warmup + options.draws  # what sampling anew would take
        if keep and options.chains * options.draws >= ENOUGH and 0 < missing_draws(posterior) <= afresh:
            _, inverse_metric, _ = begin(posterior, ratings, problem, options.chains)
            nuts = _nuts(problem, options) | _as_before(inverse_metric, posterior.sampler["stepsize"][:, -1].tolist())
            more = partial(sample, progress=partial(say, f"sampling, more draws{again}"))
            posterior = _until_green(posterior, options, options.draws + afresh, problem, more, nuts, keep)
        if not posterior.sampler["divergent"].any():
            break
    return posterior


def _continued(
    start: Posterior, ratings: Ratings, options: Options, executable: Path, say: Say, keep_csv: Path | None
) -> Posterior | None:
    """Chains that go on from the last draws of an earlier fit, with its metric and step size, until they hold the
    effective draws that a claim needs; None where a transition diverged or draws for which a fresh fit could be made do
    not pass the gate."""
    scales, centres = earlier(start, ratings, options)
    problem = build(ratings, options, scales, centres)
    inits, inverse_metric, step = begin(start, ratings, problem, options.chains)
    nuts = _nuts(problem, options) | _as_before(inverse_metric, step)
    label = "sampling from the earlier fit"
    sample = partial(_sample, ratings, problem=problem, executable=executable, keep_csv=keep_csv)
    size = options.draws if keep_csv else max(options.draws // 4, min(LEAST_PART, options.draws))
    part = replace(options, warmup=BURN_IN, draws=size)
    first = sample(part, progress=partial(say, label), nuts=nuts | {"inits": inits})
    more = partial(sample, progress=partial(say, f"{label}, more draws"))
    most = options.draws + options.warmup * (not keep_csv and not options.approx)  # more would take a fresh fit's time
    posterior = _until_green(replace(first, options=options), options, most, problem, more, nuts, caution=CAUTION)
    rough = options.approx and not posterior.sampler["divergent"].any() and mixing(posterior)[0] < APART
    if not rough and missing_draws(posterior):
        return None
    return posterior


def _as_before(inverse_metric: Floats, step: float | list[float]) -> dict[str, Any]:
    return {"inv_metric": inverse_metric, "step_size": step, "adapt_engaged": False}


def _until_green(
    posterior: Posterior,
    options: Options,
    most: int,
    problem: Problem,
    sample: Callable[..., Posterior],
    nuts: dict[str, Any],
    keep: Callable[[Posterior], None] = lambda posterior: None,
    caution: float = 1.0,
) -> Posterior:
    """Chains that go on from their last draws until they pass the gate, diverge, hold `most` draws, or cannot go on. No
    part is longer than the run that was asked for, for whose files there was room."""
    number = 0
    while (missing := missing_draws(posterior)) > 0 and (room := min(most - posterior.length, options.draws)) > 0:
        number += 1
        keep(posterior)
        inits, *_ = begin(posterior, posterior.ratings, problem, options.chains)
        draws = min(max(LEAST_PART, int(caution * missing)), room)
        part = replace(options, warmup=0, draws=draws, seed=(options.seed + number) % SEEDS)
        try:
            posterior = joined(posterior, sample(part, nuts=nuts | {"inits": inits}))
        except IrtError as error:  # what there is is worth more
            note = f"the chains could not go on until the gate is passed: {error}"
            return replace(posterior, facts=posterior.facts | {"notes": [*posterior.facts["notes"], note]})
    return posterior


def _nuts(problem: Problem, options: Options) -> dict[str, Any]:
    """How the chains of a fresh fit move, in CmdStanPy's words."""
    inverse_metric = metric(problem.blocks)
    depth = 8 if len(inverse_metric) > LARGE else 10
    rng = np.random.default_rng(options.seed)
    inits = [starts(problem.blocks, problem.data["D"], rng) for _ in range(options.chains)]
    return {"inv_metric": inverse_metric, "max_treedepth": depth, "inits": inits}


def _sample(
    ratings: Ratings,
    options: Options,
    problem: Problem,
    executable: Path,
    progress: Callable[[float], None],
    nuts: dict[str, Any],
    keep_csv: Path | None = None,
) -> Posterior:
    """Run the chains of one problem and read them."""
    keep = max(1, KEPT_EFFECTS // options.chains)
    kept = np.unique(np.linspace(0, options.draws - 1, min(keep, options.draws)).round().astype(np.int64))
    stan, sampler, raw, remains, spent = _run(ratings, problem, options, executable, nuts, kept, progress, keep_csv)
    anchors = check_anchors(ratings, options, "log_alpha" in stan, problem.response_effect, "v_mean" in stan)
    draws = named(stan, ratings, problem, anchors)
    facts: dict[str, Any] = {
        "leapfrogs": int(sampler["n_leapfrog"].sum()),
        "seconds_per_draw": spent,
        "parameters": len(nuts["inv_metric"]),
        "response_effect": problem.response_effect,
        "model_item": "v_mean" in stan,
        "max_treedepth": nuts["max_treedepth"],
        "adapt_delta": nuts.get("adapt_delta"),
        "unused_categories": _unused(ratings, problem),
        "notes": list(problem.notes),
        "people_scale": [d for d, on in zip(ratings.dimensions, problem.terms.scaled, strict=True) if on],
        "earlier_origin": [d for d, mu in zip(ratings.dimensions, anchors.mu, strict=True) if not np.isnan(mu)],
    }
    if problem.no_intervals:
        facts["no_intervals"] = problem.no_intervals
    if raw:
        thin = {name: values[:, kept] for name, values in stan.items()} | raw
        effects = term_effects(problem.terms, ratings, thin, problem.data, problem.used, problem.item)
        if "u_raw" in raw:
            shape = (len(ratings.response_model), len(ratings.dimensions))
            u = response_effects(thin, effects, problem)
            effects["u"] = spread(u, (problem.cell_response, problem.cell_dimension), shape)
        draws |= effects
        facts["u_draws"] = (np.arange(options.chains)[:, None] * options.draws + kept).ravel().tolist()
    return Posterior(ratings, options, draws, sampler, facts, remains)


def _run(
    ratings: Ratings,
    problem: Problem,
    options: Options,
    executable: Path,
    nuts: dict[str, Any],
    kept: Ints,
    progress: Callable[[float], None],
    keep_csv: Path | None,
) -> tuple[dict[str, Floats], dict[str, Floats], dict[str, Floats], dict[str, Floats], float]:
    """Stan's draws by name and the sampler's, [chains, draws, ...], blocks of RAW [chains, kept, n], what a later fit
    starts from, and the seconds that a draw took."""
    from dpeer.eval.irt.chains import Wanted, run_chains  # CmdStanPy: 0.4 CPU s that reports need not pay

    chains, draws, side_by_side = options.chains, options.draws, at_once(options.chains, options.threads, len(ratings))
    wanted = Wanted(WANTED, RAW, frozenset(kept.tolist()), tuple(name for name, *_ in problem.blocks))
    with scratch("dpeer-irt-") as folder:
        files = chains if keep_csv else side_by_side
        check_room(folder, len(ratings), len(nuts["inv_metric"]), options, files)
        (folder / "data.json").write_text(json.dumps(problem.data))
        found, rest = run_chains(
            executable,
            wanted,
            progress,
            keep_csv,
            data=str(folder / "data.json"),
            chains=chains,
            parallel_chains=side_by_side,
            threads_per_chain=options.threads,
            iter_warmup=options.warmup,
            iter_sampling=draws,
            seed=options.seed,
            output_dir=str(folder),
            **nuts | {"inits": nuts["inits"][:chains]},
        )
        stan = {n: v.reshape(chains, draws, *v.shape[1:]) for n, v in found.stan_variables().items()}
        sampler = {n.removesuffix("__"): v.T for n, v in found.method_variables().items()}
        last = {name: np.stack([chain.last[name] for chain in rest]) for name in rest[0].last}
        spent = max(chain["sampling"] for chain in found.time) / draws
        remains = left(problem, ratings, last, np.mean(np.asarray(found.inv_metric), axis=0))
    return stan, sampler, {n: np.stack([chain.thinned[n] for chain in rest]) for n in rest[0].thinned}, remains, spent


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _unused(ratings: Ratings, problem: Problem) -> dict[str, list[int]]:
    unused = {
        name: [score for k, score in enumerate(ratings.scale) if k not in used]
        for name, used, rated in zip(ratings.dimensions, problem.used, ratings.rated, strict=True)
        if rated
    }
    return {name: scores for name, scores in unused.items() if scores}
