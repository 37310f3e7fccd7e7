"""Does a claim rest on one judge? Each judge left out in turn, and what becomes of the contrasts.

First from the draws of the fit itself, by Pareto smoothed importance sampling over all ratings of the judge, with each
response's own effects integrated out (`irt.marginal`); where k-hat says that these weights may not be believed, which
is usual of few judges who rate everything, the others' ratings are fitted anew.

Abilities without a judge are in the unit of the whole fit: discriminations have a mean of their own there, so that
logits are multiplied by what the fit says about the mean of the judges who are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from dpeer.eval.irt.ability import estimates
from dpeer.eval.irt.claims import Claims, in_family, simultaneous, verdict
from dpeer.eval.irt.comparisons import replicated
from dpeer.eval.irt.design import DesignError
from dpeer.eval.irt.diagnostics import convergence
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.loo import smoothed
from dpeer.eval.irt.marginal import Units, log_likelihood
from dpeer.eval.irt.types import Floats, Ints, Options, Posterior, Ratings

REFITS = 8
"""Judges at most whose ratings are left out by a fit of the others."""
SHORT: dict[str, Any] = {"chains": 2, "warmup": 500, "draws": 500}
APART = 1.05
WEIGHTS, REFIT = "weights", "refit"
STABLE, UNKNOWN = "stable", "not known"
Say = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, eq=False)
class Without:
    """What a fit says without a judge."""

    judge: str
    theta: Floats  # [S, M, D] in the unit of the whole fit; [0, M, D] where it is not known
    khat: float
    """Of the importance weights; nan where there were none."""
    how: str
    """weights, refit, or empty."""
    why: str = ""
    """Why it is not known."""


def leave_out(r: Ratings, judge: int) -> Ratings:
    """The ratings and comparisons of the other judges. Raises IrtError where a model has none of them."""
    kept, c = r.judge != judge, r.comparisons
    of_pairs = c.judge != judge
    shown = np.unique(np.concatenate([r.response[kept], c.response[of_pairs], c.other[of_pairs]]))
    models = np.unique(r.response_model[shown])
    if len(models) < len(r.models):
        lost = next(name for m, name in enumerate(r.models) if m not in models)
        raise IrtError(f"{r.judges[judge]} alone rated {lost}")
    items, item = np.unique(r.response_item[shown], return_inverse=True)

    def judges(of: Ints) -> Ints:
        return of - (of > judge)

    rows = ("dimension", "criterion", "category", "reversed", "own_family", "own_model")
    pair_rows = ("dimension", "outcome", "place", "own_family", "own_model")
    names = tuple(name for j, name in enumerate(r.judges) if j != judge)
    return replace(
        r,
        judges=names,
        items=tuple(r.items[q] for q in items),
        response_model=r.response_model[shown],
        response_item=item,
        response_length=r.response_length[shown],
        response=np.searchsorted(shown, r.response[kept]),
        judge=judges(r.judge[kept]),
        item_group=r.item_group[items] if len(r.item_group) else r.item_group,
        people=tuple(name for name in r.people if name in names),
        status_by_judge={name: counts for name, counts in r.status_by_judge.items() if name in names},
        comparisons=replace(
            c,
            response=np.searchsorted(shown, c.response[of_pairs]),
            other=np.searchsorted(shown, c.other[of_pairs]),
            judge=judges(c.judge[of_pairs]),
            **{name: getattr(c, name)[of_pairs] for name in pair_rows},
        ),
        **{name: getattr(r, name)[kept] for name in rows},
    )


def by_weights(posterior: Posterior, judge: int, draws: Ints, place: Ints, density: Floats) -> Without:
    """From the draws of the fit: `density` [U, S] of all ratings at flat `draws`."""
    r = posterior.ratings
    unit = Units.of(r).of_rating
    touched = np.zeros(len(density), bool)
    touched[unit[r.judge == judge]] = True
    rest = log_likelihood(posterior, draws, place, touched[unit] & (r.judge != judge))
    log_weights, khat = smoothed((rest[touched].sum(axis=0) - density[touched].sum(axis=0))[None])
    weights = np.exp(log_weights[0])
    at = np.minimum(np.searchsorted(np.cumsum(weights), (np.arange(len(draws)) + 0.5) / len(draws)), len(draws) - 1)
    theta = posterior.flat("theta")[draws][at]
    unit_of_rest, usual = _unit(posterior, judge)
    return Without(r.judges[judge], theta * (unit_of_rest[draws][at] / usual)[:, None, None], float(khat[0]), WEIGHTS)


def by_refit(posterior: Posterior, judge: int, khat: float, say: Say) -> Without:
    """From a shorter fit of the others' ratings; not known where these cannot be fitted."""
    r = posterior.ratings
    name, nothing = r.judges[judge], np.zeros((0, len(r.models), len(r.dimensions)))
    try:
        rest = leave_out(r, judge)
        if why := _undecidable(posterior, rest):
            return Without(name, nothing, khat, "", why)
        options = _options(posterior)
        found = fit(rest, options, lambda what, done: say(f"without {name}: {what}", done))
    except (DesignError, IrtError) as error:
        return Without(name, nothing, khat, "", f"the others' ratings alone cannot be fitted: {error}")
    draws = found.draws["theta"]
    rhat = convergence(draws.reshape(*draws.shape[:2], -1))[0]
    if not rhat.max() < APART:
        return Without(
            name, nothing, khat, "", f"a short fit of the others' ratings did not converge (R-hat {rhat.max():.2f})"
        )
    return Without(name, found.flat("theta") / _unit(posterior, judge)[1], khat, REFIT)


def _options(posterior: Posterior) -> Options:
    """Those of the fit, with what the ratings made of them; shorter."""
    kept: dict[str, Any] = {
        name: bool(posterior.facts[name]) for name in ("response_effect", "model_item") if name in posterior.facts
    }
    return replace(posterior.options, **kept, **SHORT, threads=1)


def _undecidable(posterior: Posterior, rest: Ratings) -> str | None:
    if posterior.options.anchors:
        return "judges of a fit with anchors hold its scale in place"
    if len(rest.judges) == 1 and not replicated(rest):
        return (
            f"{rest.judges[0]} alone rated each response once, and one judge's noise cannot be told from the luck of a "
            "response: a third judge, or repeats, would decide it"
        )
    if "s_u" in posterior.draws and not replicated(rest):
        return "each response would have one rating, and the spread of responses could not be told from noise"
    return None


def _unit(posterior: Posterior, judge: int) -> tuple[Floats, float]:
    """Geometric mean of the others' discriminations at each draw [S], and what it is on the log scale's average."""
    if "log_alpha" not in posterior.draws:
        return np.ones(posterior.flat("theta").shape[0]), 1.0
    log = np.delete(posterior.flat("log_alpha"), judge, axis=1).mean(axis=1)
    return np.exp(log), float(np.exp(log.mean()))


def without_table(posterior: Posterior, found: tuple[Without, ...], base: str, wanted: Claims) -> pd.DataFrame:
    """A row per judge, model other than the base, and dimension: contrast with its own and its simultaneous interval
    without the judge, verdict, and changes: the verdict is another than with all judges, or the estimate lies outside
    the simultaneous interval (outside its own, where it is not claimed) of all judges. khat, how, why: see `Without`;
    where it is not known the rest is blank."""
    r = posterior.ratings
    b, others = r.models.index(base), [m for m, name in enumerate(r.models) if name != base]
    family = in_family(r, base, wanted)

    def contrasts(theta: Floats) -> pd.DataFrame:
        draws = (theta[:, others] - theta[:, [b]]).reshape(len(theta), -1)
        low, high = (np.full(len(family), np.nan) for _ in range(2))
        low[family], high[family] = simultaneous(draws[:, family])
        said = [verdict(*ends, wanted.smallest) for ends in zip(low, high, strict=True)]
        return pd.DataFrame({**estimates("contrast", draws), "family_low": low, "family_high": high, "verdict": said})

    whole = contrasts(posterior.flat("theta"))
    low, high = (whole[f"family_{end}"].fillna(whole[f"contrast_{end}"]) for end in ("low", "high"))
    keys = pd.DataFrame(
        {
            "model": np.repeat(np.array([r.models[m] for m in others], object), len(r.dimensions)),
            "dimension": np.tile(np.array(r.dimensions, object), len(others)),
        }
    )
    frames = []
    for one in found:
        frame = keys.assign(judge=one.judge, khat=one.khat, how=one.how, why=one.why)
        if len(one.theta):
            alone = contrasts(one.theta)
            outside = (alone["contrast"] < low) | (alone["contrast"] > high)
            frame = pd.concat([frame, alone.assign(changes=outside | (alone["verdict"] != whole["verdict"]))], axis=1)
        frames.append(frame)
    columns = ["contrast", "contrast_low", "contrast_high", "family_low", "family_high", "verdict", "changes"]
    table = pd.concat(frames, ignore_index=True)
    return table.reindex(columns=["judge", "model", "dimension", *columns, "khat", "how", "why"])


def stability(contrasts: pd.DataFrame, table: pd.DataFrame) -> pd.Series:
    """Of every contrast: `stable`, or what changes without whom; `not known` for judges of whom it is not known."""
    words = []
    for row in contrasts.itertuples():
        mine = table[(table["model"] == row.model) & (table["dimension"] == row.dimension)]
        unknown = mine[mine["how"] == ""]
        becomes: dict[str, list[str]] = {}
        for one in mine[mine["changes"].eq(True)].itertuples():
            said = one.verdict if one.verdict != row.verdict else f"{one.contrast:+.2f}, outside the interval of all"
            becomes.setdefault(f"{said} without", []).append(one.judge)
        parts = [f"{said} {_or(judges)}" for said, judges in becomes.items()]
        if not parts and len(unknown) < len(mine):
            parts.append(STABLE)
        if len(unknown):
            parts.append(f"{UNKNOWN} without {_or(list(unknown['judge']))}")
        words.append("; ".join(parts))
    return pd.Series(words, index=contrasts.index, dtype="str")


def _or(names: list[str]) -> str:
    """E.g. "a, b or c"."""
    return " or ".join([*[", ".join(names[:-1])] * (len(names) > 1), names[-1]])
