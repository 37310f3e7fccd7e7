"""Rounds of adaptive judging: ask, look, ask again where it matters, until all contrasts are decided or cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from dpeer.errors import DataError
from dpeer.escape import markup
from dpeer.eval.adaptive.choose import next_batch, opening
from dpeer.eval.adaptive.confirm import posterior
from dpeer.eval.adaptive.decide import (
    EQUIVALENT,
    HIGHER,
    HOPELESS,
    LOWER,
    Look,
    confirmed,
    look,
    open_contrasts,
    undecided,
    worth_of,
)
from dpeer.eval.adaptive.quick_fit import QuickFit, quick_fit
from dpeer.eval.adaptive.record import Record
from dpeer.eval.adaptive.summary import decided, summary
from dpeer.eval.adaptive.task import Task, task
from dpeer.eval.config import EvalConfig, Until
from dpeer.eval.irt.cmdstan import compile_model
from dpeer.eval.irt.design import DesignError
from dpeer.eval.irt.errors import IrtError, SamplerError
from dpeer.eval.plan import Plan, ratings_folder
from dpeer.eval.run import OverBudget
from dpeer.eval.store.parts import done_ids

Make = Callable[[Plan], pd.DataFrame]
"""Makes the ratings of a plan that are missing; returns all of it."""
Keep = Callable[[Plan, dict[str, Any]], None]
"""Notes what was asked, and the facts of the rounds."""


def first_round(cfg: EvalConfig, planned: Plan, until: Until) -> Plan:
    """The part of a plan that the first round asks."""
    what = task(cfg, planned, until)
    return _part(
        planned, what.rows(planned, opening(what.design, what.batch // 2, what.seed)), planned.todo["rating_id"]
    )


def _part(planned: Plan, rows: pd.DataFrame, missing: Any) -> Plan:
    return replace(planned, rows=rows, todo=rows[rows["rating_id"].isin(missing)])


def run(cfg: EvalConfig, planned: Plan, until: Until, make: Make, keep: Keep, console: Console) -> None:
    """Ask in rounds, and keep the plan of exactly the ratings that were asked for, and what they say in short.

    Raises OverBudget, with the contrasts that remain, where the budget does not bear a round; what was answered until
    then is made a table of, and kept. Raises a DesignError, DataError or IrtError where the last model cannot be fitted
    to all ratings of the design either.
    """
    what = task(cfg, planned, until)
    record = Record(cfg.folder / "rounds", what, planned, until)
    if not record.asked:
        if record.others:
            console.print(
                "[yellow]note:[/] this evaluation had rounds with other ratings or another base. These are new ones, "
                "and may call one in twenty equal models different once more.",
                soft_wrap=True,
            )
        found = set(planned.rows["rating_id"]) - set(planned.todo["rating_id"])
        record.begin([*found, *first_round(cfg, planned, until).rows["rating_id"]])
    missing = set(planned.todo["rating_id"])

    def kept(part: Plan, provisional: str | None = None) -> None:
        keep(part, summary(what, record, len(part.rows), len(planned.rows)) | {"provisional": provisional})

    provisional: str | None = None
    while True:
        inside = planned.rows["rating_id"].isin(record.ids).to_numpy()
        part = _part(planned, planned.rows[inside], missing)
        try:
            ratings = make(part)
        except OverBudget as error:
            answered = part.rows["rating_id"].isin(done_ids(ratings_folder(cfg)))
            if answered.any():
                made = _part(planned, part.rows[answered], ())
                make(made)
                kept(made, "the budget ended")
            raise OverBudget(f"{error} {_remaining(what, record)}") from None
        if record.ended(ratings):
            break
        missing -= record.ids
        asked = np.zeros(len(what.design.size), bool)
        asked[what.unit[inside]] = True
        fits = [quick_fit(observed) for observed in what.observed(ratings)]
        worth = [worth_of(f) for f in fits]

        def chosen(seen: Look, asked: Any = asked, worth: Any = worth) -> Any:
            return next_batch(what.design, asked, open_contrasts(seen), worth, what.batch, what.seed)

        seen, failure, sampled = look(fits, what.design, asked, record.looks, until.contrast), None, True
        if not (batch := chosen(seen)).any():  # then the shipped model has the last word
            compile_model(lambda _: None)  # a machine that cannot fit is not helped by more ratings
            try:
                last = posterior(what, ratings, planned.rubric.scale, record.folder, len(record.asked))
                record.against_claims, sampled = last.against_claims, last.sampled
                seen = confirmed(seen, last.mean, last.sd, what.design, asked, record.looks, until.contrast)
            except SamplerError:  # nor by less memory or a full disk
                kept(part, "the last fit failed")
                raise
            except (DesignError, DataError, IrtError) as error:
                seen, failure = undecided(seen), error
                record.failures[len(record.asked)] = str(error)
            batch = chosen(seen)
        _tell(what, record, seen, fits, len(part.rows), console)
        record.add(seen)
        if failure and not batch.any():
            kept(part, "the last fit failed")
            raise failure
        if not batch.any():
            if sampled:
                record.finish(ratings)
            else:
                provisional = "the last fit, whose chains did not pass their diagnostics"
                why = markup("; ".join(record.against_claims))
                console.print(f"[yellow]note:[/] what {provisional} ({why}), decides is provisional.", soft_wrap=True)
            break
        if failure:
            console.print(
                f"[yellow]note:[/] the ratings do not bear the last fit yet, so more are asked for: {markup(failure)}",
                soft_wrap=True,
            )
        record.begin(planned.rows["rating_id"][batch[what.unit]])
    kept(part, provisional)


def _remaining(what: Task, record: Record) -> str:
    """Sentences: which contrasts are not decided, and which only the quick fit has."""
    real = np.ones((len(what.dimensions), len(what.models)), bool)
    real[:, what.design.base] = False
    done = (
        np.isin(record.looks[-1].verdict, [HIGHER, LOWER, EQUIVALENT]) & real if record.looks else np.zeros_like(real)
    )
    said = [f"Cannot be decided at this budget: {what.contrasts(real & ~done)}."] if (real & ~done).any() else []
    if done.any():
        said.append(f"Decided provisionally, before the last fit: {what.contrasts(done)}.")
    return " ".join(said)


def _tell(what: Task, record: Record, seen: Look, fits: Sequence[QuickFit], ratings: int, console: Console) -> None:
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
    if vague := [d for d, fit in zip(what.dimensions, fits, strict=True) if not fit.converged]:
        console.print(
            f"[yellow]note:[/] the fit between rounds did not converge on {markup(', '.join(vague))}: nothing is "
            "decided there yet, and the whole design is asked if that stays so.",
            soft_wrap=True,
        )
