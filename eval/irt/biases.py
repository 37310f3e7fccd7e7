"""Which judge does what a fit did not expect: each kind of bias is looked for, and named with the option that helps.

favours       a judge scores one model off what its severity and that model's ability say, over all dimensions
halo          its residuals on the dimensions of one response go together, more than with other judges' residuals
items         its residuals on different responses to one item go together, likewise
missing       whether it gave a score goes with the scores that other judges gave
middle        its score steps lie far apart: it keeps to the middle (central tendency; Myford & Wolfe 2003)

Residuals are score minus posterior expectation, in standard deviations of a rating. The first three compare means with
their sampling error over responses, or items; all judges, and models, share a level of `LEVEL` per kind.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from dpeer.eval.irt.fit_statistics import LEAST_GAP, FitStatistics
from dpeer.eval.irt.types import Floats, Ints, Posterior, Ratings

LEVEL = 0.005
LEAST_CLUSTERS = 20
"""Responses, or items, from which on residuals are compared."""
LEAST_MISSING = 8
WIDE = 1.25
"""Span of a judge's thresholds over that of the others from which on it keeps to the middle."""
COLUMNS = ("kind", "judge", "model", "size", "z", "finding", "advice")


def biases(posterior: Posterior, statistics: FitStatistics) -> pd.DataFrame:
    """A row per bias found, in the order of the module's list.

    size: mean residual in score steps (favours), covariance of residuals (halo, items), correlation (missing), ratio of
    spans, or of end scores given to those expected (middle). z: against chance; nan for a span.
    """
    r, options = posterior.ratings, posterior.options
    if not len(r):  # comparisons only
        return pd.DataFrame(columns=list(COLUMNS))
    residual = r.category - statistics.expected
    standard = residual / np.sqrt(statistics.variance)
    rows: list[dict[str, object]] = []
    if len(r.judges) > 1:
        if not options.judge_model:
            rows += _favours(r, residual, statistics.variance)
        if not options.halo:
            rows += _halo(r, standard)
        if not options.judge_item:
            rows += _items(r, standard)
        rows += _missing(r)
        rows += _middle(posterior, statistics)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _favours(r: Ratings, residual: Floats, variance: Floats) -> Iterator[dict[str, object]]:
    """Of each model the judge whose mean residual lies furthest from zero; the others lean the other way.

    What severity and ability take up of a cell is given back: shares of its information in its judge's and its model's.
    The variance is at least that between responses, whose residuals go together under a halo.
    """
    J, M = len(r.judges), len(r.models)
    cell = r.judge * M + r.model
    total, information, n = (np.bincount(cell, w, J * M).reshape(J, M) for w in (residual, variance, np.ones(len(r))))
    pair, of_rating = np.unique(r.judge * len(r.response_model) + r.response, return_inverse=True)
    sums = np.bincount(of_rating, residual)
    where = pair // len(r.response_model) * M + r.response_model[pair % len(r.response_model)]
    k, squares = (np.bincount(where, w, J * M).reshape(J, M) for w in (np.ones(len(sums)), sums**2))
    with np.errstate(divide="ignore", invalid="ignore"):
        of_judge = 1 - information / information.sum(axis=1, keepdims=True)
        of_model = 1 - information / information.sum(axis=0, keepdims=True)
        between = (squares - total**2 / k) * k / (k - 1)
        z = total / np.sqrt(np.maximum(information * of_judge * of_model, np.where(k > 1, between, 0) * of_judge))
        mean = total / n
    z = np.where((n > 0) & (of_judge > 0) & (of_model > 0) & (np.abs(mean) > LEAST_GAP), z, 0.0)
    critical = stats.norm.isf(LEVEL / 2 / max(1, int(np.count_nonzero(n))))
    for m in np.flatnonzero(np.abs(z).max(axis=0) > critical):
        j = int(np.abs(z[:, m]).argmax())
        word = "higher" if z[j, m] > 0 else "lower"
        finding = f"{r.judges[j]} scores {r.models[m]} {abs(mean[j, m]):.2f} {word} than its severity says"
        finding += f" (z {z[j, m]:+.1f})"
        advice = "--with judge-model lets a judge favour a model, and widens the abilities that rest on few judges"
        yield _row("favours", r.judges[j], mean[j, m], z[j, m], finding, advice, r.models[m])


def _halo(r: Ratings, standard: Floats) -> Iterator[dict[str, object]]:
    if len(r.dimensions) < 2:
        return
    for j, size, z in _together(r.judge, r.response, r.dimension, standard, len(r.judges)):
        finding = f"{r.judges[j]} has a halo: its scores of one response go together over dimensions more than they "
        finding += f"should (residual correlation {size:+.2f}, z {z:.1f})"
        yield _row("halo", r.judges[j], size, z, finding, "--with halo")


def _items(r: Ratings, standard: Floats) -> Iterator[dict[str, object]]:
    """Of each response the mean over dimensions, criteria and repeats."""
    pair, of_rating = np.unique(r.judge * len(r.response_model) + r.response, return_inverse=True)
    mean = np.bincount(of_rating, standard) / np.bincount(of_rating)
    judge, response = pair // len(r.response_model), pair % len(r.response_model)
    for j, size, z in _together(judge, r.response_item[response], response, mean, len(r.judges)):
        finding = f"{r.judges[j]} finds some items harder or easier than others do, whoever answers (z {z:.1f})"
        yield _row("items", r.judges[j], size, z, finding, "--with judge-item")


def _together(judge: Ints, cluster: Ints, member: Ints, values: Floats, J: int) -> Iterator[tuple[int, float, float]]:
    """Judges whose values on different members of a cluster go together: judge, mean product beyond chance, z.

    From a judge's products within a cluster those with other judges' values are taken off, so that what all judges see
    in a response or an item (an effect that the model lacks) is nobody's bias.
    """
    units, of_unit = np.unique(np.stack([cluster, judge, member]), axis=1, return_inverse=True)
    unit = np.bincount(of_unit.ravel(), values) / np.bincount(of_unit.ravel())
    cluster, judge, member = units
    own_key = np.unique(cluster * J + judge, return_inverse=True)[1]
    member_key = np.unique(cluster * (member.max() + 1) + member, return_inverse=True)[1]

    def sums(key: Ints, weights: Floats) -> Floats:
        return np.asarray(np.bincount(key, weights)[key])

    def products(x: Floats) -> tuple[Floats, Floats]:
        """Of each unit with the judge's other members, and with other judges' other members."""
        own = sums(own_key, x) - x
        return x * own, x * (sums(cluster, x) - sums(member_key, x) - own)

    (within, across), (pairs, others) = products(unit), products(np.ones_like(unit))
    first = np.unique(own_key, return_index=True)[1]
    per_pair = [np.bincount(own_key, x) for x in (within, across, pairs, others)]
    kept = (per_pair[2] > 0) & (per_pair[3] > 0)
    excess = per_pair[0][kept] / per_pair[2][kept] - per_pair[1][kept] / per_pair[3][kept]
    of_judge = judge[first][kept]
    n, total, squares = (np.bincount(of_judge, w, J) for w in (np.ones_like(excess), excess, excess**2))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / n
        z = mean / np.sqrt((squares / n - mean**2) / (n - 1))
    tested = (n >= LEAST_CLUSTERS) & np.isfinite(z)
    critical = stats.norm.isf(LEVEL / max(1, int(tested.sum())))
    yield from ((int(j), float(mean[j]), float(z[j])) for j in np.flatnonzero(tested & (z > critical)))


def _missing(r: Ratings) -> Iterator[dict[str, object]]:
    """Of responses that others rated, on items and models that the judge rated elsewhere, which did it leave out?

    Other judges' scores count from their own mean in a dimension, and from the model's mean: a judge that was asked for
    other models has not dropped poor answers.
    """
    J, D, R, M = len(r.judges), len(r.dimensions), len(r.response_model), len(r.models)
    place = r.judge * D + r.dimension
    usual = np.bincount(place, r.category, J * D) / np.maximum(np.bincount(place, minlength=J * D), 1)
    relative, found = r.category - usual[place], []
    total, count = np.bincount(r.response, relative, R), np.bincount(r.response, minlength=R)
    pair, given = np.unique(r.response * J + r.judge, return_counts=True)
    whole = np.zeros(R, np.int64)
    np.maximum.at(whole, pair // J, given)  # scores of the judge who gave most
    by_judge = np.split(np.argsort(r.judge, kind="stable"), np.cumsum(np.bincount(r.judge, minlength=J))[:-1])
    for j, mine in enumerate(by_judge):
        gave = np.bincount(r.response[mine], minlength=R)
        items, models = np.bincount(r.item[mine], minlength=len(r.items)), np.bincount(r.model[mine], minlength=M)
        asked = (count > gave) & (items[r.response_item] > 0) & (models[r.response_model] > 0)
        share = 1 - gave[asked] / whole[asked]
        if min((share > 0).sum(), (share == 0).sum()) < LEAST_MISSING:
            continue
        mean = (total - np.bincount(r.response[mine], relative[mine], R))[asked] / (count - gave)[asked]
        of_model = r.response_model[asked]
        each = np.maximum(np.bincount(of_model, minlength=M), 1)
        a, b = (x - (np.bincount(of_model, x, M) / each)[of_model] for x in (share, mean))
        spread = np.sqrt((a**2).sum() * (b**2).sum())
        if spread > 0:
            correlation = float((a * b).sum() / spread)
            z = correlation * np.sqrt(len(share) / max(1 - correlation**2, 1e-9))
            found.append((j, correlation, z, int((share > 0).sum())))
    for j, correlation, z, n in found:
        if abs(z) > stats.norm.isf(LEVEL / 2 / len(found)):
            kind = "poor" if correlation < 0 else "good"
            finding = f"{r.judges[j]} left out {kind} answers: it lacks scores on {n:,} responses, and others scored "
            finding += f"those {'low' if correlation < 0 else 'high'} (z {z:+.1f})"
            advice = f"no term mends what is missing: have them rated again, or fit with --without {r.judges[j]}"
            yield _row("missing", r.judges[j], correlation, z, finding, advice)


def _middle(posterior: Posterior, statistics: FitStatistics) -> Iterator[dict[str, object]]:
    r = posterior.ratings
    if len(r.scale) < 3:
        return
    if posterior.options.thresholds != "judge":
        yield from _ends(statistics.ppc, r)
        return
    tau = posterior.flat("tau")
    whole = np.isfinite(tau[0]).all(axis=-1) & r.judge_rated  # [J, D]
    shared = whole & (whole.sum(axis=0) > 1)
    span = np.where(shared, tau[..., -1] - tau[..., 0], 0.0)
    others = (span.sum(axis=1, keepdims=True) - span) / np.maximum(whole.sum(axis=0) - 1, 1)
    own, others = span.sum(axis=-1), np.where(shared, others, 0.0).sum(axis=-1)  # [S, J]
    sure = ((own > WIDE * others) & (others > 0)).mean(axis=0)
    for j in np.flatnonzero(sure > 1 - LEVEL / len(r.judges)):
        name, ratio = r.judges[j], float(own[:, j].mean() / others[:, j].mean())
        finding = f"{name} keeps to the middle of the scale: its score steps span {ratio:.1f} times those of the "
        finding += "other judges, so that its discrimination is no sign of agreement"
        advice = "--model rasch gives it no more weight than others; ask it to use the whole scale"
        yield _row("middle", name, ratio, np.nan, finding, advice)


def _ends(ppc: pd.DataFrame, r: Ratings) -> Iterator[dict[str, object]]:
    """Judges who give the lowest and the highest score less often than thresholds that are not theirs say."""
    ends = ppc[ppc["score"].isin([r.scale[0], r.scale[-1]])].assign(
        variance=lambda f: ((f["expected_high"] - f["expected_low"]) / 3.92) ** 2
    )
    for name, sums in ends.groupby("judge", sort=False)[["observed", "expected", "variance"]].sum().iterrows():
        z = (sums["observed"] - sums["expected"]) / np.sqrt(max(sums["variance"], 1e-9))
        ratio = sums["observed"] / max(sums["expected"], 1e-9)
        if z < -stats.norm.isf(LEVEL / len(r.judges)) and ratio < 1 / WIDE:
            finding = f"{name} keeps to the middle of the scale: it gives its ends {ratio:.2f} times as often as the "
            finding += f"thresholds say (z {z:+.1f})"
            yield _row("middle", str(name), ratio, z, finding, "--thresholds judge gives each judge its own steps")


def _row(kind: str, judge: str, size: float, z: float, finding: str, advice: str, model: str = "") -> dict[str, object]:
    values = (kind, judge, model, float(size), float(z), finding, advice)
    return dict(zip(COLUMNS, values, strict=True))
