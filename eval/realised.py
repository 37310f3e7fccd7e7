"""How severe the demo's judges have become: their scores against what the oracle reads, without the IRT model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize

from dpeer.toyworld import world as toyworld

Floats = NDArray[np.float64]
READINGS = ("good", "none", "bad")


def severities(counts: Floats) -> Floats:
    """Severity [J] in logits, sum 0, of judges whose responses' quality is known up to a level.

    `counts` [J, D, L, K]: how often a judge gave each of K scores, lowest first, to responses that are at a level L
    in dimension D; expected counts will do. Maximum likelihood of the adjacent-category model (Masters 1982; with judge
    discriminations: Uto & Ueno 2020)

        log P(k) / P(k-1) = alpha_j (level_dl - severity_jd) - threshold_jk

    on the scale of the IRT fit: levels are free and common to all judges, log alpha and each dimension's severities sum
    to 0 over judges, a judge's thresholds over scores. A judge's severity is its mean over dimensions. Raises
    ValueError where a judge never gives some score, which leaves its thresholds without an estimate.
    """
    J, D, L, K = counts.shape
    if (counts.sum(axis=(1, 2)) == 0).any():
        j, k = np.argwhere(counts.sum(axis=(1, 2)) == 0)[0]
        raise ValueError(
            f"judge {j} of {J} never gives score {k + 1} of {K}, so its thresholds have no estimate; merge that score "
            "with its neighbour, or leave the judge out"
        )
    shapes = ((D, L), (J - 1, D), (J - 1, 1), (K - 2, J))
    ends = np.cumsum([np.prod(shape) for shape in shapes])

    def blocks(x: Floats) -> tuple[Floats, ...]:
        level, *free = (part.reshape(s) for part, s in zip(np.split(x, ends[:-1]), shapes, strict=True))
        return level, *(np.concatenate([z, -z.sum(axis=0, keepdims=True)]) for z in free)

    def loss(x: Floats) -> float:
        level, severity, log_alpha, threshold = blocks(x)
        latent = np.exp(log_alpha)[:, :, None] * (level - severity[:, :, None])
        logits = latent[..., None] * np.arange(K)
        logits[..., 1:] -= np.cumsum(threshold, axis=0).T[:, None, None]
        return float((counts * (np.logaddexp.reduce(logits, axis=-1, keepdims=True) - logits)).sum() / counts.sum())

    found = minimize(loss, np.zeros(ends[-1]), method="BFGS", options={"gtol": 1e-6}).x
    return np.asarray(blocks(found)[1].mean(axis=1))


def expected_counts(ratings: pd.DataFrame, responses: pd.DataFrame, judges: Sequence[str]) -> Floats:
    """Expected counts [J, D, L, K] of the scores of `judges`, with the oracle's reading of each response as its level.

    Sums the distributions from which scores were drawn (column `logprobs`), over rows of the two tables (see
    `store.schema`) with a usable score: so the chance of the draw is left out.
    """
    text = responses.set_index("response_id")["response"]
    ok = ratings[(ratings["status"] == "ok") & ratings["judge"].isin(judges)]
    reading = {i: toyworld.oracle(text[i]) for i in ok["response_id"].unique()}
    levels = [READINGS.index(reading[i][d]) for i, d in zip(ok["response_id"], ok["dimension"], strict=True)]
    given = np.exp(np.stack(ok["logprobs"].to_list()))
    place = ([judges.index(j) for j in ok["judge"]], pd.factorize(ok["dimension"])[0], levels)
    counts = np.zeros((len(judges), ok["dimension"].nunique(), len(READINGS), given.shape[1]))
    np.add.at(counts, place, given / given.sum(axis=1, keepdims=True))
    return counts
