"""Has the sampler converged? R-hat, effective sample sizes, energy, divergences, and the gate that a claim must pass.

R-hat and ESS are rank-normalised (Vehtari et al., 2021, Bayesian Analysis 16:667); E-BFMI: Betancourt (2016).
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from dpeer.eval.irt.comparisons import replicated
from dpeer.eval.irt.types import AXES, THINNED, Floats, Posterior, Ratings

MAX_RHAT = 1.01
MIN_ESS = 400.0
MIN_EBFMI = 0.3

MAX_MISFIT = 0.25
"""Largest share of judge x model cells whose mean score, and of compared pairs of models whose mean outcome, may lie
notably off its posterior prediction."""

NOT_GATED = ("beta", "judge_model", *THINNED)
"""Nuisance blocks with an element per item or response. No claim is about one of them, and their scales are gated."""

LARGE_BLOCK = 2000
"""From this size on, only the elements with the largest plain R-hat get the rank-normalised figures (2.4 ms each)."""


def parameter_names(ratings: Ratings, name: str, shape: tuple[int, ...]) -> list[str]:
    """Names such as `theta[lagrangian, T]` of all elements of a block, last axis fastest."""
    if not shape:
        return [name]
    known = ratings.names
    axes = [known[axis] for axis in AXES.get(name, ())]
    if tuple(len(axis) for axis in axes) != shape:
        axes = [tuple(str(i + 1) for i in range(n)) for n in shape]
    return [f"{name}[{', '.join(index)}]" for index in product(*axes)]


def _plain_rhat(draws: Floats) -> Floats:
    """Split R-hat without ranks, of draws [chains, draws, n]: a cheap screen."""
    half = draws.shape[1] // 2
    split = np.concatenate([draws[:, :half], draws[:, -half:]])
    within = split.var(axis=1, ddof=1).mean(axis=0)
    between = split.mean(axis=1).var(axis=0, ddof=1)
    rhat: Floats = np.sqrt((half - 1) / half + between / np.maximum(within, np.finfo(float).tiny))
    return rhat


def convergence(draws: Floats) -> tuple[Floats, Floats, Floats]:
    """R-hat, bulk and tail ESS of draws [chains, draws, n], each [n].

    R-hat is nan for a single chain. Chains that stand still at different values: R-hat inf and an ESS of one each.
    """
    from arviz_stats.base import array_stats

    stuck = (draws.std(axis=1) == 0).all(axis=0)
    rhat, bulk, tail = (np.full(draws.shape[2], float(fill)) for fill in (np.inf, len(draws), len(draws)))
    moving = draws[:, :, ~stuck]
    axes = {"chain_axis": 0, "draw_axis": 1}
    if moving.shape[2]:
        if len(draws) > 1:
            rhat[~stuck] = array_stats.rhat(moving, **axes)
        bulk[~stuck] = array_stats.ess(moving, method="bulk", **axes)
        tail[~stuck] = array_stats.ess(moving, method="tail", prob=(0.05, 0.95), **axes)
    if len(draws) == 1:
        rhat[:] = np.nan
    return rhat, bulk, tail


def diagnostics(posterior: Posterior, left_out: tuple[str, ...] = THINNED) -> pd.DataFrame:
    """One row per parameter that is neither constant nor absent (nan): parameter, rhat, ess_bulk, ess_tail, gated."""
    frames = []
    for name, draws in posterior.draws.items():
        if name in left_out:
            continue
        flat = draws.reshape(*draws.shape[:2], -1)
        varies = ~np.isnan(flat).all(axis=(0, 1)) & ~(flat == flat[:1, :1]).all(axis=(0, 1))
        chosen = np.flatnonzero(varies)
        if len(chosen) > LARGE_BLOCK:
            worst = np.argsort(_plain_rhat(flat[:, :, chosen]))[-LARGE_BLOCK:]
            chosen = chosen[np.sort(worst)]
        names = parameter_names(posterior.ratings, name, draws.shape[2:])
        rhat, bulk, tail = convergence(flat[:, :, chosen])
        frames.append(
            pd.DataFrame(
                {
                    "parameter": pd.Series([names[i] for i in chosen], dtype="str"),
                    "rhat": rhat,
                    "ess_bulk": bulk,
                    "ess_tail": tail,
                    "gated": name not in NOT_GATED,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def mixing(posterior: Posterior) -> tuple[float, float]:
    """The largest R-hat and the least bulk or tail ESS of what is gated, infinite and 0 where one cannot be told; R-hat
    is 0 for a single chain."""
    gated = diagnostics(posterior, NOT_GATED)
    alone = posterior.sampler["divergent"].shape[0] == 1
    rhat, ess = gated["rhat"].fillna(0.0 if alone else np.inf), gated[["ess_bulk", "ess_tail"]].fillna(0.0)
    return float(rhat.max()), float(ess.min(axis=None))


def missing_draws(posterior: Posterior) -> int:
    """Draws per chain that the gate asks of the sampler still, 0 where it is passed; -1: no number would do."""
    if posterior.sampler["divergent"].any() or not (ebfmi(posterior.sampler["energy"]) > MIN_EBFMI).all():
        return -1
    rhat, ess = mixing(posterior)
    if rhat < MAX_RHAT and ess > MIN_ESS:
        return 0
    if not (ess > 0 and np.isfinite(rhat)):  # chains that stood still
        return -1
    short = max(MIN_ESS / ess, (rhat**2 - 1) / (MAX_RHAT**2 - 1))  # what R-hat exceeds 1 by goes with 1 / ESS
    return max(1, int(posterior.length * (1.1 * short - 1)))


def ebfmi(energy: Floats) -> Floats:
    """Energy fraction of missing information per chain, of energies [chains, draws]."""
    fraction: Floats = np.square(np.diff(energy, axis=1)).mean(axis=1) / energy.var(axis=1, ddof=1)
    return fraction


def gate(
    posterior: Posterior,
    table: pd.DataFrame | None = None,
    misfit: pd.DataFrame | None = None,
    comparisons: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """May claims be made from this fit? green, reasons and advice, with the figures behind them (ready for JSON).

    R-hat < 1.01, bulk and tail ESS > 400, no divergence and E-BFMI > 0.3, prior scales included: they fail first.
    An approximate fit, an unchecked one, or one that supports no intervals, is never green. `table` saves a second
    run of `diagnostics`; with the tables `misfit` (`irt.fit_statistics`) and `comparisons` (`irt.comparison_fit`) the
    posterior predictive checks count too.
    """
    table = diagnostics(posterior) if table is None else table
    gated = table[table["gated"]]
    energies = ebfmi(posterior.sampler["energy"])
    off, pairs_off = (float("nan") if t is None else float(t["notable"].mean()) for t in (misfit, comparisons))
    faults = (
        *(_structural(posterior, gated), _mixing(posterior, gated), _sampler(posterior, energies)),
        *(_misfit(off), _misfit_of_pairs(pairs_off)),
    )
    reasons = [reason for lines, _ in faults for reason in lines]
    advice = [line for _, lines in faults for line in lines]
    chains, draws = posterior.sampler["divergent"].shape
    score = np.maximum(gated["rhat"].fillna(0) / MAX_RHAT, MIN_ESS / gated[["ess_bulk", "ess_tail"]].min(axis=1))
    worst_rows = gated.loc[score.sort_values(ascending=False).index[:10], ["parameter", "rhat", "ess_bulk", "ess_tail"]]
    return {
        "green": not reasons,
        "reasons": reasons,
        "advice": list(dict.fromkeys(advice)),
        "worst": [
            {k: v if k == "parameter" else _number(v) for k, v in row.items()} for row in worst_rows.to_dict("records")
        ],
        "rhat_max": _number(gated["rhat"].max()),
        "ess_bulk_min": _number(gated["ess_bulk"].min()),
        "ess_tail_min": _number(gated["ess_tail"].min()),
        "ebfmi_min": _number(energies.min()),
        "misfit": _number(off),
        "misfit_pairs": _number(pairs_off),
        "divergences": int(posterior.sampler["divergent"].sum()),
        "treedepth_hits": _treedepth_hits(posterior),
        "chains": int(chains),
        "draws": int(draws),
        "parameters": len(gated),
    }


Faults = tuple[list[str], list[str]]
"""Reasons against a claim, and advice."""


def _mixing(posterior: Posterior, gated: pd.DataFrame) -> Faults:
    """R-hat and effective sample sizes."""
    rhat, bulk, tail = gated["rhat"], gated["ess_bulk"], gated["ess_tail"]
    chains, draws = posterior.sampler["divergent"].shape
    reasons, advice = [], []
    if chains == 1:
        reasons.append("one chain: R-hat needs at least two")
        advice.append("run four chains (--chains 4)")
    elif (bad := gated[~(rhat < MAX_RHAT)])["parameter"].any():
        reasons.append(f"R-hat is {rhat.max():.3f} at {_first(bad, 'rhat', True)}; it must be below {MAX_RHAT}")
    for column, word in (("ess_bulk", "bulk"), ("ess_tail", "tail")):
        if (bad := gated[~(gated[column] > MIN_ESS)])["parameter"].any():
            least = gated[column].min()
            reasons.append(f"{word} ESS is {least:.0f} at {_first(bad, column, False)}; it must be above {MIN_ESS:.0f}")
    if (bulk <= MIN_ESS).any() or (tail <= MIN_ESS).any() or (rhat >= MAX_RHAT).any():
        advice.append(_more_draws(gated, draws, float(np.nanmin([bulk.min(), tail.min()]))))
        advice += _terms_to_drop(posterior, gated)
    return reasons, advice


def _sampler(posterior: Posterior, energies: Floats) -> Faults:
    """Divergences, energies [chains], and trees that were cut."""
    transitions = posterior.sampler["divergent"].size
    divergences, hits = int(posterior.sampler["divergent"].sum()), _treedepth_hits(posterior)
    reasons, advice = [], []
    if divergences:
        reasons.append(f"{divergences} of {transitions} transitions diverged; there must be none")
        advice.append(
            "raise the warm-up (twice as long); if divergences stay, leave out terms with a scale near zero or take "
            "--model rasch"
        )
    if not (energies > MIN_EBFMI).all():
        worst = int(np.nanargmin(energies)) if np.isfinite(energies).any() else 0
        reasons.append(f"E-BFMI is {energies[worst]:.2f} in chain {worst + 1}; it must be above {MIN_EBFMI}")
        advice.append("raise the warm-up (twice as long), and leave out terms that the data hardly inform")
    if hits > 0.01 * transitions:
        limit = _treedepth_limit(posterior)
        advice.append(f"{hits} trajectories reached tree depth {limit}: a longer warm-up or a higher limit saves time")
    return reasons, advice


def _misfit(off: float) -> Faults:
    """`off`: share of judge x model mean scores that lie notably off their prediction; nan if unknown."""
    if not off > MAX_MISFIT:
        return [], []
    return [f"{off:.0%} of the judge x model mean scores are far from what the model predicts"], [
        "read the misfit table first; then add the term that explains it (--with own-family, length or order; "
        "--model gmfrm), or leave out the judge that it names"
    ]


def _misfit_of_pairs(off: float) -> Faults:
    """`off`: share of pairs of models whose comparisons lie notably off their prediction; nan if unknown."""
    if not off > MAX_MISFIT:
        return [], []
    return [f"{off:.0%} of the compared pairs of models fared otherwise than the model predicts"], [
        "read the table of comparisons first: preferences in a circle (a over b over c over a) have no order of "
        "ability; then add the term that explains it (--with comparison-scale, judge-model or length)"
    ]


def _treedepth_limit(posterior: Posterior) -> int:
    return int(posterior.facts.get("max_treedepth", 10))


def _treedepth_hits(posterior: Posterior) -> int:
    return int((posterior.sampler["treedepth"] >= _treedepth_limit(posterior)).sum())


def _number(value: float) -> float | None:
    """None where JSON has no number."""
    return float(value) if np.isfinite(value) else None


def _structural(posterior: Posterior, gated: pd.DataFrame) -> Faults:
    """Reasons that no number of draws can lift."""
    reasons, advice = [], []
    if posterior.options.approx:
        reasons.append("the fit is approximate: its intervals are not calibrated")
        advice.append("fit again without --approx")
    if not posterior.facts.get("design_checked", True):
        reasons.append("the design was not checked: these ratings may be unable to tell the models apart")
        advice.append("fit again without unchecked=True")
    if why := posterior.facts.get("no_intervals"):
        reasons.append(
            why if isinstance(why, str) else "the data do not support intervals: each response has one rating"
        )
        advice.append("let a second judge rate the responses, or repeat the ratings")
    r = posterior.ratings
    if posterior.options.response_effect is False and replicated(r):
        reasons.append("responses were rated more than once and have no response effect: intervals are far too narrow")
        advice.append("fit again without --no-response-effect")
    broken = [n for n, draws in posterior.draws.items() if n not in THINNED and _partly_nan(draws)]
    if broken:
        reasons.append(f"some draws of {', '.join(broken)} are not numbers")
        advice.append("look for extreme ratings (a judge or model with one single score), then fit again")
    if not gated["parameter"].str.startswith("theta").any():
        reasons.append("no ability varies between draws: the sampler did not move, or there is one model only")
        advice.append("fit at least two models; with two or more, raise the warm-up")
    return reasons, advice


def _partly_nan(draws: Floats) -> bool:
    missing = np.isnan(draws)
    return bool((missing.any(axis=(0, 1)) & ~missing.all(axis=(0, 1))).any())


def _first(bad: pd.DataFrame, column: str, largest: bool) -> str:
    order = bad.sort_values(column, ascending=not largest, na_position="first")
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"{order['parameter'].iloc[0]}{more}"


def _more_draws(gated: pd.DataFrame, draws: int, least: float) -> str:
    if not gated["rhat"].max() < 1.05:
        return "the chains disagree: raise the warm-up first (twice as long), then the draws"
    needed = int(np.ceil(draws * MIN_ESS * 1.25 / max(least, 1.0) / 100) * 100)
    return f"more draws: about {max(needed, 2 * draws)} per chain would do"


def _terms_to_drop(posterior: Posterior, gated: pd.DataFrame) -> list[str]:
    """Which optional term the slow scales belong to, and why the data may not inform it."""
    slow = gated[(gated["ess_bulk"] <= MIN_ESS) | (gated["ess_tail"] <= MIN_ESS) | (gated["rhat"] >= MAX_RHAT)]
    names = set(slow["parameter"].str.partition("[")[0])
    ratings = posterior.ratings
    cells = len(np.unique(ratings.response * len(ratings.dimensions) + ratings.dimension))
    each = len(ratings) / cells if cells else np.inf
    advice = []
    if "s_u" in names and each < 3:
        advice.append(
            f"the response effect rests on {each:.1f} ratings per response and dimension: have responses rated more "
            "often; leaving it out (--no-response-effect) would understate every interval"
        )
    if "s_halo" in names:
        advice.append("fit without --with halo: the ratings hardly inform it")
    if {"s_alpha", "log_alpha"} & names and (len(ratings.judges) < 3 or (cells and len(ratings.scale) == 2)):
        advice.append(
            f"use --model rasch: {len(ratings.judges)} judges and {len(ratings.scale)} scores hardly inform alpha"
        )
    for name in ("own_family", "own_model", "length", "order"):
        if name in names:
            advice.append(f"fit without --with {name.replace('_', '-')}, or add ratings that vary in it")
    return advice
