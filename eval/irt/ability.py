"""What the draws say about the models: abilities, fair averages, contrasts, ranks, reliability, and why orders turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpeer.eval.irt import link
from dpeer.eval.irt.people import favoured, people_discrimination
from dpeer.eval.irt.types import GRADED, Bools, Floats, Ints, Posterior, Ratings

MOST_RANKED, MOST_REVERSALS = 60, 500
NODES = 15
"""Gauss-Hermite nodes over the items, responses and halos that a fair average runs over."""

_DRAWS_AT_ONCE = 500


def interval(draws: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean and 95 % equal-tail bounds over the first axis."""
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return draws.mean(axis=0), low, high


def estimates(name: str, draws: Floats) -> dict[str, Floats]:
    """Columns name, name_low, name_high of draws [S, ...], flattened."""
    return {f"{name}{end}": v.ravel() for end, v in zip(("", "_low", "_high"), interval(draws), strict=True)}


def fair_averages(posterior: Posterior, worth: Sequence[float] | None = None) -> Floats:
    """Expected score of every model at every draw, on the rating scale [S, M, D]. `worth` says what each of the K
    scores counts instead: 0, 0, 1 gives the share of the highest of three.

    For a judge of average severity, thresholds and discrimination (1, or that of the people where abilities are on
    their scale, and then all three are those of people), an average criterion and covariates at zero,
    averaged over the spread of items, response effects and halos: AT an average item it would be too extreme. nan in
    dimensions without ratings. Thresholds are the common ones, also where items have their own (those are kept for few
    draws).
    """
    theta = posterior.flat("theta")
    return np.concatenate(
        [
            _fair(posterior, np.arange(s, min(s + _DRAWS_AT_ONCE, len(theta))), worth)
            for s in range(0, len(theta), _DRAWS_AT_ONCE)
        ]
    )


def _fair(posterior: Posterior, draws: Ints, worth: Sequence[float] | None = None) -> Floats:
    r = posterior.ratings
    beta = np.where(r.rated, posterior.flat("beta")[draws], 0.0)  # mu is nan where nothing was rated, so all is
    variance = np.nanvar(beta, axis=1)
    for name in ("s_u", "s_v", "s_halo", "s_judge_item"):
        if name in posterior.draws:
            scale = posterior.flat(name)[draws]
            variance += np.square(scale if scale.ndim == 2 else scale[:, None])
    centre = posterior.flat("mu")[draws] - np.nanmean(beta, axis=1) - _mean_delta(posterior, draws)
    eta = centre[:, None] + posterior.flat("theta")[draws]
    graded = posterior.options.model == GRADED
    offsets = _average_offsets(posterior, draws)
    alpha = people_discrimination(posterior, draws)[:, None]  # [S, 1, D]
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    sd = np.sqrt(variance)[:, None]
    scores = np.asarray(r.scale if worth is None else worth, dtype=float)
    fair = np.zeros(eta.shape)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        p = link.probabilities(alpha * (eta + sd * node), alpha * offsets, graded)
        fair += weight * np.tensordot(scores, p, axes=1)
    return fair


def _mean_delta(posterior: Posterior, draws: Ints) -> Floats:
    """Mean criterion difficulty per dimension [S, D]; zero without criteria."""
    r = posterior.ratings
    mean = np.zeros((len(draws), len(r.dimensions)))
    if "delta" in posterior.draws:
        delta = posterior.flat("delta")[draws]
        for d, dimension in enumerate(r.dimensions):
            own = [c for c, (where, _) in enumerate(r.criteria) if where == dimension]
            mean[:, d] = delta[:, own].mean(axis=1)
    return mean


def _average_offsets(posterior: Posterior, draws: Ints) -> Floats:
    """Offsets of `irt.link` of the average judge, broadcastable to [K, S, M, D]."""
    tau = posterior.flat("tau_average")[draws]
    r = posterior.ratings
    given = np.zeros((len(r.dimensions), len(r.scale)), bool)
    given[r.dimension, r.category] = True
    given[~r.rated, 0] = True
    return np.moveaxis(link.offsets(tau, given, posterior.options.model == GRADED), -1, 0)[:, :, None, :]


def ability_table(posterior: Posterior, base: str, fair: Floats) -> pd.DataFrame:
    """One row per model and dimension: see the contract of `dpeer.eval.irt.tables`.

    contrast is to the base on new prompts of this kind, contrast_these on those that were answered, where they differ.
    """
    r, theta = posterior.ratings, posterior.flat("theta")
    M, D = len(r.models), len(r.dimensions)
    b = r.models.index(base)
    contrast = theta - theta[:, [b]]
    columns = estimates("ability", theta) | {"ability_sd": theta.std(axis=0).ravel()} | estimates("fair", fair)
    raw, n = raw_means(r)
    columns |= {"raw_mean": raw.ravel(), "n": n.ravel()} | estimates("contrast", contrast)
    columns["p_better"] = (contrast > 0).mean(axis=0).ravel()
    of_base = ["contrast", "contrast_low", "contrast_high", "p_better"]
    if "theta_these" in posterior.draws:
        these = posterior.flat("theta_these")
        these = these - these[:, [b]]
        columns |= estimates("contrast_these", these) | {"p_better_these": (these > 0).mean(axis=0).ravel()}
        of_base += [f"contrast_these{end}" for end in ("", "_low", "_high")] + ["p_better_these"]
    if "length" in posterior.draws:
        mean_length = np.bincount(r.response_model, r.response_length, M) / np.maximum(
            np.bincount(r.response_model, minlength=M), 1
        )
        columns |= estimates("total", theta + posterior.flat("length")[:, None] * mean_length[:, None])
    frame = pd.DataFrame({"model": np.repeat(r.models, D), "dimension": np.tile(r.dimensions, M), **columns})
    frame.loc[frame["model"] == base, of_base] = np.nan
    return frame


def raw_means(ratings: Ratings) -> tuple[Floats, Ints]:
    """Mean score (nan without ratings) and number of ratings per model and dimension [M, D]."""
    M, D = len(ratings.models), len(ratings.dimensions)
    cell = ratings.model * D + ratings.dimension
    n = np.bincount(cell, minlength=M * D)
    total = np.bincount(cell, np.asarray(ratings.scale, dtype=float)[ratings.category], M * D)
    mean: Floats = np.where(n, total / np.maximum(n, 1), np.nan)
    return mean.reshape(M, D), n.reshape(M, D)


def rank_table(posterior: Posterior) -> pd.DataFrame:
    """Probability of every rank (1 = most able) of every model per dimension; of more than MOST_RANKED models the ranks
    that some draw gave."""
    r, theta = posterior.ratings, posterior.flat("theta")
    M, D = len(r.models), len(r.dimensions)
    ranks = (-theta).argsort(axis=1).argsort(axis=1)  # [S, M, D]
    cell = (np.arange(M)[:, None] * D + np.arange(D)) * M + ranks
    count = np.bincount(cell.ravel(), minlength=M * D * M)
    kept = np.flatnonzero(count) if M > MOST_RANKED else np.arange(M * D * M)
    model, dimension, rank = np.unravel_index(kept, (M, D, M))
    return pd.DataFrame(
        {
            "model": np.array(r.models, dtype=object)[model],
            "dimension": np.array(r.dimensions, dtype=object)[dimension],
            "rank": rank + 1,
            "probability": count[kept] / len(theta),
        }
    )


def reliability_table(posterior: Posterior) -> pd.DataFrame:
    """How well the models are told apart per dimension.

    sd: spread of the abilities; reliability: share of its variance that is not uncertainty; separation: the certain
    spread over the root mean square error, sqrt(reliability / (1 - reliability)) (Wright & Masters, 1982).
    """
    theta = posterior.flat("theta")
    theta = theta - theta.mean(axis=1, keepdims=True)  # where they are all moved by an anchor tells none of them apart
    explained, error = theta.mean(axis=0).var(axis=0, ddof=1), theta.var(axis=0).mean(axis=0)
    reliability = explained / (explained + error)
    return pd.DataFrame(
        {
            "dimension": posterior.ratings.dimensions,
            "separation": np.sqrt(explained / error),
            "reliability": reliability,
            "sd": np.sqrt(explained + error),
        }
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A term of the linear predictor: what a model met on average, and the words for the model that it favours."""

    met: Floats  # [M, D] in logits; more is easier
    words: str


def reversal_table(posterior: Posterior, fair: Floats) -> pd.DataFrame:
    """Pairs of models whose raw order is not the adjusted order, and why; `model` has the higher raw mean.

    Of each dimension at most MOST_REVERSALS, those whose abilities are furthest apart.
    """
    r, theta = posterior.ratings, posterior.flat("theta")
    raw, _ = raw_means(r)
    ability, fair_mean, parts = theta.mean(axis=0), fair.mean(axis=0), _parts(posterior)
    rows = []
    for d, dimension in enumerate(r.dimensions):
        first, second = np.nonzero((raw[:, None, d] > raw[None, :, d]) & (ability[:, None, d] < ability[None, :, d]))
        if len(first) > MOST_REVERSALS:
            widest = np.argsort(ability[first, d] - ability[second, d], kind="stable")[:MOST_REVERSALS]
            first, second = first[np.sort(widest)], second[np.sort(widest)]
        for a, b in zip(first, second, strict=True):
            contrast = theta[:, a, d] - theta[:, b, d]
            mean, low, high = interval(contrast)
            p = float((contrast < 0).mean())
            rows.append(
                {
                    "dimension": dimension,
                    "model": r.models[a],
                    "other": r.models[b],
                    "raw_difference": raw[a, d] - raw[b, d],
                    "fair_difference": fair_mean[a, d] - fair_mean[b, d],
                    "contrast": mean,
                    "contrast_low": low,
                    "contrast_high": high,
                    "p": p,
                    "why": _why(posterior, parts, int(a), int(b), d, p),
                }
            )
    columns = [
        "dimension",
        "model",
        "other",
        "raw_difference",
        "fair_difference",
        "contrast",
        "contrast_low",
        "contrast_high",
    ]
    return pd.DataFrame(rows, columns=[*columns, "p", "why"])


def _parts(posterior: Posterior) -> list[_Part]:
    """Mean of each term over the ratings of a model in a dimension, at posterior means."""
    r = posterior.ratings
    D = len(r.dimensions)
    cell = r.model * D + r.dimension

    def mean(name: str) -> Floats:
        return np.asarray(posterior.flat(name).mean(axis=0))

    def met(values: Floats) -> Floats:
        n = np.bincount(cell, minlength=len(r.models) * D)
        total = np.bincount(cell, values, len(r.models) * D)
        return np.asarray(total / np.maximum(n, 1)).reshape(-1, D)

    parts = [
        _Part(met(-mean("severity")[r.judge, r.dimension]), "was rated more often by lenient judges"),
        _Part(met(-mean("beta")[r.item, r.dimension]), "was rated on easier items"),
    ]
    if "delta" in posterior.draws:
        parts.append(_Part(met(-mean("delta")[r.criterion]), "was rated on easier criteria"))
    if "length" in posterior.draws:
        length = mean("length")[r.dimension] * r.response_length[r.response]
        parts.append(_Part(met(length), "gains from the length of its responses, which judges reward"))
    if "favour" in posterior.draws:
        met_favour = met(favoured(r, mean("favour")[..., None], r.judge, r.dimension, r.model)[:, 0])
        parts.append(_Part(met_favour, "is favoured more by judges that are models, against the people,"))
    covariates = (
        ("order", r.reversed - 0.5, "was shown more often with the scale order that raises scores"),
        ("own_family", r.own_family, "was rated more often by judges of a family that favours its own"),
        ("own_model", r.own_model, "was rated more often by itself"),
    )
    parts += [_Part(met(where * mean(name)), words) for name, where, words in covariates if name in posterior.draws]
    return parts


def _why(posterior: Posterior, parts: list[_Part], a: int, b: int, d: int, p: float) -> str:
    """One sentence: the terms that favoured a, largest first, or what else can turn an order."""
    r = posterior.ratings
    gains = sorted(((part.met[a, d] - part.met[b, d], part.words) for part in parts), reverse=True)
    total = sum(gain for gain, _ in gains if gain > 0)
    reasons = [f"{words} ({gain:+.2f} logits)" for gain, words in gains if gain > 0.02 and gain > 0.2 * total]
    why = f"{r.models[a]} {' and '.join(reasons)} than {r.models[b]}" if reasons else _weights(posterior, a, b, d)
    unsure = "" if p > 0.975 else f"; the adjusted order is not certain (P = {p:.2f})"
    return f"{why}{unsure}."


def _weights(posterior: Posterior, a: int, b: int, d: int) -> str:
    """Both met the same judges and items: which judge pulled the adjusted order, if discrimination did."""
    r = posterior.ratings
    same = f"{r.models[a]} and {r.models[b]} met the same judges and items on average"
    if "log_alpha" not in posterior.draws:
        return f"{same}, and their raw means hardly differ"
    alpha = np.exp(posterior.flat("log_alpha")).mean(axis=0)
    here = r.dimension == d
    mean_a, mean_b = (_judge_means(r, here & (r.model == m)) for m in (a, b))
    against = np.flatnonzero(mean_a < mean_b)
    if not len(against):
        return f"{same}, and their raw means hardly differ"
    judge = int(against[np.argmax(alpha[against])])
    return f"{same}, but {r.judges[judge]} (alpha {alpha[judge]:.1f}) prefers {r.models[b]}, and judges weigh by alpha"


def _judge_means(ratings: Ratings, chosen: Bools) -> NDArray[np.float64]:
    """Mean category per judge of the chosen ratings; nan without any."""
    J = len(ratings.judges)
    n = np.bincount(ratings.judge[chosen], minlength=J)
    total = np.bincount(ratings.judge[chosen], ratings.category[chosen], J)
    return np.where(n, total / np.maximum(n, 1), np.nan)
