"""Rounds of adaptive judging: ask, look, ask again where it matters, until all contrasts are decided or cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from dpeer.escape import markup
from dpeer.eval.adaptive.choose import next_batch, opening
from dpeer.eval.adaptive.decide import HOPELESS, Look, confirmed, look, open_contrasts, worth_of
from dpeer.eval.adaptive.quick_fit import quick_fit
from dpeer.eval.adaptive.record import Record
from dpeer.eval.adaptive.summary import decided, summary
from dpeer.eval.adaptive.task import Task, task
from dpeer.eval.config import EvalConfig, Until
from dpeer.eval.irt.design import DiscriminationAliased
from dpeer.eval.irt.estimation import estimate
from dpeer.eval.irt.types import Floats, Options
from dpeer.eval.plan import Plan
from dpeer.eval.run import OverBudget

Make = Callable[[Plan], pd.DataFrame]
"""Makes the ratings of a plan that are missing; returns all of it."""


def first_round(cfg: EvalConfig, planned: Plan, until: Until) -> Plan:
    """The part of a plan that the first round asks."""
    what = task(cfg, planned, until)
    return _part(
        planned, what.rows(planned, opening(what.design, what.batch // 2, what.seed)), planned.todo["rating_id"]
    )


def _part(planned: Plan, rows: pd.DataFrame, missing: Any) -> Plan:
    return replace(planned, rows=rows, todo=rows[rows["rating_id"].isin(missing)])


def run(cfg: EvalConfig, planned: Plan, until: Until, make: Make, console: Console) -> tuple[Plan, dict[str, Any]]:
    """Ask in rounds; returns the plan of exactly the ratings that were asked for, and what they say in short.

    Raises OverBudget, with the contrasts that remain, where the budget does not bear a round.
    """
    what = task(cfg, planned, until)
    record = Record(cfg.folder / "rounds", what, planned, until)
    if not record.asked:
        found = set(planned.rows["rating_id"]) - set(planned.todo["rating_id"])
        record.begin([*found, *first_round(cfg, planned, until).rows["rating_id"]])
    missing = set(planned.todo["rating_id"])
    while True:
        inside = planned.rows["rating_id"].isin(record.ids).to_numpy()
        part = _part(planned, planned.rows[inside], missing)
        try:
            ratings = make(part)
        except OverBudget as error:
            raise OverBudget(f"{error} {_remaining(what, record)}") from None
        if record.ended and not len(part.todo):
            break
        missing -= record.ids
        asked = np.zeros(len(what.design.size), bool)
        asked[what.unit[inside]] = True
        fits = [quick_fit(observed) for observed in what.observed(ratings)]
        worth = [worth_of(f) for f in fits]

        def chosen(seen: Look, asked: Any = asked, worth: Any = worth) -> Any:
            return next_batch(what.design, asked, open_contrasts(seen), worth, what.batch, what.seed)

        seen = look(fits, what.design, asked, record.looks, until.contrast)
        if not (batch := chosen(seen)).any():  # then the shipped model has the last word
            mean, sd, record.against_claims = _posterior(what, ratings, planned.rubric.scale)
            seen = confirmed(seen, mean, sd, until.contrast)
            batch = chosen(seen)
        _tell(what, record, seen, len(part.rows), console)
        record.looks.append(seen)
        if not batch.any():
            record.finish()
            break
        record.begin(planned.rows["rating_id"][batch[what.unit]])
    return part, summary(what, record, len(part.rows), len(planned.rows))


def _posterior(what: Task, ratings: pd.DataFrame, scale: Sequence[int]) -> tuple[Floats, Floats, list[str]]:
    """Mean and standard deviation of the contrasts [D, M] by the fit of `dpeer irt fit`."""
    base = what.models[what.design.base]
    try:
        result = estimate(ratings, base, options=Options(), scale=scale)
    except DiscriminationAliased:
        result = estimate(ratings, base, options=Options(model="rasch"), scale=scale)
    assert result.posterior is not None
    r = result.posterior.ratings
    theta = result.posterior.flat("theta")
    contrast = theta - theta[:, [r.models.index(base)]]
    shape = (len(what.dimensions), len(what.models))
    mean, sd = np.zeros(shape), np.full(shape, np.inf)
    at = np.ix_([what.dimensions.index(d) for d in r.dimensions], [what.models.index(m) for m in r.models])
    mean[at], sd[at] = contrast.mean(axis=0).T, contrast.std(axis=0).T
    return mean, sd, list(result.gate["reasons"])


def _remaining(what: Task, record: Record) -> str:
    everything = np.ones((len(what.dimensions), len(what.models)), bool)
    everything[:, what.design.base] = False
    left = open_contrasts(record.looks[-1]) if record.looks else everything
    return f"Cannot be decided at this budget: {what.contrasts(left)}."


def _tell(what: Task, record: Record, seen: Look, ratings: int, console: Console) -> None:
    before = record.looks[-1].verdict == HOPELESS if record.looks else np.zeros(seen.verdict.shape, bool)
    left = open_contrasts(seen)
    console.print(
        f"round {len(record.asked)}: {ratings:,} ratings, {decided(seen)} contrasts decided"
        + (f"; widest interval of an open one ±{seen.half_width[left].max():.2f}" if left.any() else ""),
        soft_wrap=True,
    )
    if (given_up := (seen.verdict == HOPELESS) & ~before).any():
        console.print(
            f"[yellow]note:[/] not even the whole design is likely to decide {markup(what.contrasts(given_up))}: no "
            "more ratings for that.",
            soft_wrap=True,
        )
