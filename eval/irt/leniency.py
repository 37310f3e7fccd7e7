"""What judges that are models have in common against people, and what more ratings by people would add."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import optimize, stats

from dpeer.eval.irt.ability import estimates
from dpeer.eval.irt.fit_statistics import information
from dpeer.eval.irt.people import LEAST, by_people, is_person, judged, judgements, leniency, on_scale, unfit
from dpeer.eval.irt.types import Floats, Ints, Posterior
from dpeer.eval.irt.weaknesses import names_of

if TYPE_CHECKING:
    from dpeer.eval.irt.result import Result

Z95 = float(stats.norm.isf(0.025))
TIMES = (1, 2, 4, 8)
MOST = 1_000_000
"""Human ratings beyond which nothing is forecast."""


def leniency_tables(posterior: Posterior, base: str) -> dict[str, pd.DataFrame]:
    """Tables of a fit with people and models among its judges; none without.

    leniency: dimension, people, ratings (by people, comparisons included, each once), responses (that people judged),
    shared (those of them that models judged too), leniency with its interval (logits by which models rate higher; nan
    where one of the two did not rate), scaled (abilities are on the people's scale)
    favours: model, dimension, ratings (of the model by people, and comparisons with it), favour with its interval, of
    judges that are models against the people, beyond the leniency; ability_judges with its interval, what the ability
    would be with it
    human_ratings: dimension, ratings, half_width (mean over contrasts to the base, 95 %), halving (human ratings in all
    that would halve it; nan where no number would), least (half-width however many there are)
    """
    r = posterior.ratings
    judge, dimension, response, _ = judged(r)
    own, D = is_person(r)[judge], len(r.dimensions)
    if not own.any() or own.all():
        return {}
    rows = []
    for d in range(D):
        mine, others = (np.unique(response[(dimension == d) & kind]) for kind in (own, ~own))
        people = np.unique(judge[(dimension == d) & own])
        rows.append((len(people), len(mine), len(np.intersect1d(mine, others))))
    counts = pd.DataFrame(rows, columns=["people", "responses", "shared"])
    table = pd.DataFrame({"dimension": r.dimensions, "ratings": judgements(r)}).join(counts)
    found = {"leniency": table.assign(**estimates("leniency", leniency(posterior)), scaled=False)}
    if "favour" in posterior.draws:
        favour = posterior.flat("favour")
        where = on_scale(posterior)
        index = pd.MultiIndex.from_product([r.models, r.dimensions], names=["model", "dimension"])
        columns = {"ratings": by_people(r).ravel(), **estimates("favour", favour)}
        columns |= estimates("ability_judges", posterior.flat("theta") + favour)
        found["favours"] = pd.DataFrame(columns, index=index).dropna(subset="favour").reset_index()
        found["leniency"]["scaled"] = where
        rated = (r.judge_rated & is_person(r)[:, None]).any(axis=0)  # by comparisons alone nothing is forecast
        if len(gain := list(_gain(posterior, base, np.flatnonzero(where & rated)))):
            found["human_ratings"] = pd.DataFrame(gain)
    return found


def told(posterior: Posterior, tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """What a reader must know of people and models as judges, in sentences."""
    table = tables.get("leniency")
    if table is None:
        if not posterior.ratings.people:
            yield (
                "No person is among the judges: a leniency that all of them share, or a taste for some model, is not "
                "identified by these ratings, and no interval holds it. Some 100 to 200 ratings by people, of "
                "responses that the judges rated, show it (--human NAME)."
            )
        return
    shown = ("leniency", "leniency_low", "leniency_high")
    for row in table[np.isfinite(table["leniency"])].itertuples():
        values = (getattr(row, name) for name in shown)
        yield (
            f"In {row.dimension} the judges that are models rate higher than the people by {_logits(*values)} "
            f"({row.ratings:,} ratings by {_persons(row.people)} of {row.responses:,} responses, {row.shared:,} of "
            f"them rated by models too)."
        )
    if loose := list(table.loc[~table["scaled"].astype(bool), "dimension"]):
        why = unfit(posterior.ratings, posterior.options) or (
            "as asked for"
            if posterior.options.people_scale is False
            else f"for people judged fewer than {LEAST} times there, or one model only"
        )
        yield (
            f"Abilities in {names_of(loose)} are not on the people's scale ({why}): a taste for some model that the "
            "judges share is not identified there, and no interval holds it."
        )
    for row in table[table["scaled"].astype(bool) & (table["people"] == 1)].itertuples():
        yield (
            f"One person alone sets the scale in {row.dimension}: abilities are to that person's taste, and no "
            "interval holds how far others would differ."
        )
    if (favours := tables.get("favours")) is not None:
        yield "Abilities, contrasts and fair averages are on the people's scale" + (
            f" in {names_of(table.loc[table['scaled'].astype(bool), 'dimension'])}." if loose else "."
        )
        sure = favours[(favours["favour_low"] > 0) | (favours["favour_high"] < 0)]
        for row in sure.itertuples():
            verb = "favour" if row.favour > 0 else "disfavour"
            size = _logits(*(abs(x) for x in (row.favour, row.favour_low, row.favour_high)))
            yield f"The judges that are models, as a group, {verb} {row.model} in {row.dimension} by {size}."
        if (gain := tables.get("human_ratings")) is not None:
            yield from (_more(part.iloc[0]) for _, part in gain.groupby("dimension", sort=False))


def said(result: Result) -> list[str]:
    """The same of a result."""
    return list(told(result.posterior, result.tables)) if result.posterior else []


def _persons(n: int) -> str:
    return f"{n:,} people" if n > 1 else "one person"


def _logits(value: float, low: float, high: float) -> str:
    low, high = min(low, high), max(low, high)
    return f"{value:.2f} logits [{low:.2f} to {high:.2f}]"


def _more(now: pd.Series) -> str:
    start = f"Contrasts in {now['dimension']} have 95 % intervals of ± {now['half_width']:.2f} logits on average"
    if np.isfinite(now["halving"]):
        return f"{start}; about {now['halving'] - now['ratings']:,.0f} more ratings by people would halve them."
    return (
        f"{start}; more ratings by people of these responses, however many, would come to ± {now['least']:.2f}: it "
        "takes more items to halve them."
    )


def _gain(posterior: Posterior, base: str, where: Ints) -> Iterator[dict[str, float | str]]:
    r, n = posterior.ratings, judgements(posterior.ratings)
    b = r.models.index(base)
    for d in where:
        theta = np.delete(posterior.flat("theta")[..., d], b, axis=1) - posterior.flat("theta")[:, [b], d]
        measured, curve = float(Z95 * theta.std(axis=0).mean()), _forecast(posterior, b, int(d))
        unit = measured / curve(0.0)
        halving = np.nan
        if curve(MOST) < curve(0.0) / 2:
            halving = n[d] + optimize.brentq(_above(curve, curve(0.0) / 2), 0, MOST)
        for times in TIMES:
            yield {
                "dimension": r.dimensions[d],
                "ratings": int(n[d] * times),
                "half_width": unit * curve(n[d] * (times - 1.0)),
                "halving": halving,
                "least": unit * curve(MOST),
            }


def _above(curve: Callable[[float], float], level: float) -> Callable[[float], float]:
    return lambda x: curve(x) - level


def _forecast(posterior: Posterior, base: int, d: int) -> Callable[[float], float]:
    """Mean half-width of contrasts to the base in a dimension, of the number of further ratings by people.

    They are spread over the models, and over the responses that models rated, those first that fewest people did. What
    the ratings of a response tell (Fisher) of its place to models and to people is told of the abilities of the two,
    less what is the response's own; between these stands the estimated spread of tastes.
    """
    r, person = posterior.ratings, is_person(posterior.ratings)[posterior.ratings.judge]
    R, each = len(r.response_model), information(posterior) * (r.dimension == d)
    models, people = (np.bincount(r.response, each * kind, R) for kind in (~person, person))
    rated = np.bincount(r.response[person & (r.dimension == d)], minlength=R)
    one = people.sum() / max(rated.sum(), 1) or float(each[each > 0].mean())
    spread = {
        n: float(np.square(posterior.flat(n)).mean(axis=0)[..., d]) for n in ("s_u", "s_theta") if n in posterior.draws
    }
    taste = 2 * float(np.square(posterior.flat("s_favour")).mean())

    def variance(m: int, more: float) -> float:
        own = (r.response_model == m) & (models + people > 0)
        a, b = models[own], people[own] + one * _filled(rated[own], more)
        total = a + b + 1 / max(spread.get("s_u", 0.0), 1e-6)
        told = np.array([[np.sum(a - a * a / total), -np.sum(a * b / total)], [0.0, np.sum(b - b * b / total)]])
        told[1, 0] = told[0, 1]
        told += np.array([[1, -1], [-1, 1]]) / taste + np.diag([1 / spread["s_theta"], 0])
        return float(np.linalg.inv(told)[1, 1])

    def half_width(more: float) -> float:
        of_model = np.array([variance(m, more / len(r.models)) for m in range(len(r.models))])
        return float(Z95 * np.sqrt(np.delete(of_model, base) + of_model[base]).mean())

    return half_width


def _filled(counts: Ints, more: float) -> Floats:
    """`more` ratings over responses that have `counts`, so that those with the fewest come level."""
    if not len(counts):
        return np.zeros(0)
    order = np.sort(counts)
    level = (more + order.cumsum()) / np.arange(1, len(order) + 1)
    reached = level[np.flatnonzero(level >= order)[-1]]
    return np.asarray(np.maximum(reached - counts, 0.0))
