"""Every table of a fit, as files and on a terminal, and the claims that its diagnostics allow.

Columns: every estimate x comes with x_low and x_high, its 95 % equal-tail interval; logits unless said otherwise.
ability, ranks, reliability, reversals (`irt.ability`); contrasts, rank_sets (`irt.claims`); judges (`irt.judges`);
severity, criteria, items, thresholds, item_thresholds, groups, judge_model; leniency, favours, human_ratings
(`irt.leniency`); biases (`irt.biases`); models_fit, misfit, ppc (`irt.fit_statistics`); comparisons
(`irt.comparison_fit`); effects, scales, correlation, statuses, connectivity;
without_judge, sensitivity (`irt.robustness`);
diagnostics (`irt.diagnostics`); drift (`irt.drift`); alpha, kappa, confusion (`irt.agreement`); cards (`irt.cards`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpeer.errors import ConfigError
from dpeer.eval.irt import robustness
from dpeer.eval.irt.ability import (
    MOST_REVERSALS,
    ability_table,
    estimates,
    fair_averages,
    rank_table,
    reliability_table,
    reversal_table,
)
from dpeer.eval.irt.agreement import agreement
from dpeer.eval.irt.biases import biases
from dpeer.eval.irt.cards import judge_cards
from dpeer.eval.irt.claims import Claims, claims, contrast_table, rank_sets
from dpeer.eval.irt.comparison_fit import comparison_table
from dpeer.eval.irt.comparisons import replicated
from dpeer.eval.irt.diagnostics import diagnostics, gate
from dpeer.eval.irt.drift import drift
from dpeer.eval.irt.fit_statistics import FitStatistics, fit_statistics, used_categories
from dpeer.eval.irt.judges import judge_table
from dpeer.eval.irt.leniency import leniency_tables, told
from dpeer.eval.irt.result import Result
from dpeer.eval.irt.robustness import Robustness
from dpeer.eval.irt.scope import COMPARED, CUMULATIVE, THRESHOLDS, fair_words, scope, shrinkage
from dpeer.eval.irt.stan_terms import item_shares
from dpeer.eval.irt.types import GRADED, Floats, Posterior, Ratings
from dpeer.eval.irt.weaknesses import SHOWN, names_of
from dpeer.eval.irt.without_judge import stability
from dpeer.files import write_text
from dpeer.report.table_files import write_frames

SCALES = (
    *("mu", "s_theta", "s_beta", "s_v", "s_u", "s_severity", "s_dev", "s_tau", "s_alpha", "s_halo"),
    *("s_judge_model", "s_favour", "s_judge_item", "s_group", "s_item_step"),
    *("s_position", "tie_mean", "s_tie", "comparison_scale"),
)
EVERYBODY = "all judges"
DISORDER = 0.95
"""Posterior probability from which a threshold counts as below the one before it."""

EFFECT_NOTES = {
    "own_family": "a judge on models of its family; positive = favours them",
    "own_model": "a judge on its own responses; positive = favours them",
    "length": "per sd of log response length; positive = longer scores higher",
    "order": "scale listed from the top minus from the bottom",
    "position_mean": "shown first in a comparison, mean over judges; positive = preferred",
}
SPREADS = {
    "s_halo": ("halo", "sd of what a judge adds to all dimensions of one response"),
    "s_judge_model": ("judge x model", "sd of what a judge adds to all responses of one model"),
    "s_favour": ("people x model", "sd of what people, and judges that are models, add to one model as a group"),
    "s_judge_item": ("judge x item", "sd of what a judge adds to all responses to one item"),
    "s_group": ("model x group", "sd of what a model gains or loses on one group of items"),
}
"""Terms whose effects are random: their standard deviation is reported."""


def tabulate(
    posterior: Posterior,
    base: str | None = None,
    before: Posterior | None = None,
    wanted: Claims | None = None,
    robust: Robustness | None = None,
) -> Result:
    """All tables of a fit.

    base: the model that others are compared with (default: the first). before: a fit since which drift is shown.
    wanted: what is to be claimed; default: every difference from the base, of any size. robust: what
    `irt.robustness` found about this fit; contrasts then say whether they are stable.
    Where the data support no intervals (`facts["no_intervals"]`), all measures of uncertainty are blank.
    """
    r = posterior.ratings
    base = r.models[0] if base is None else base
    if base not in r.models:
        raise ConfigError(f"base {base} was not rated; choose one of {', '.join(r.models)}")
    wanted = wanted or Claims()
    fair, statistics, converged = fair_averages(posterior), fit_statistics(posterior), diagnostics(posterior)
    found = biases(posterior, statistics)
    tables = {
        "ability": ability_table(posterior, base, fair),
        "contrasts": contrast_table(posterior, base, wanted),
        "ranks": rank_table(posterior),
        "rank_sets": rank_sets(posterior),
        "reliability": reliability_table(posterior),
        "reversals": reversal_table(posterior, fair),
        "judges": judge_table(posterior, statistics, found),
        "severity": _severity(posterior),
        "criteria": _criteria(posterior),
        "items": _items(posterior, statistics),
        "thresholds": _thresholds(posterior),
        "models_fit": statistics.models,
        "misfit": statistics.misfit,
        "ppc": statistics.ppc,
        "biases": found,
        "effects": _effects(posterior),
        "scales": _scales(posterior),
        "correlation": _correlation(posterior),
        "statuses": _statuses(r),
        "connectivity": connectivity(r),
        "diagnostics": converged,
    }
    if "group" in posterior.draws:
        tables["groups"] = _groups(posterior)
    if "judge_model" in posterior.draws:
        tables["judge_model"] = _crossed("effect", posterior.flat("judge_model"), judge=r.judges, model=r.models)
    if "item_step" in posterior.draws:
        tables["item_thresholds"] = _item_thresholds(posterior)
    if before is not None:
        tables["drift"] = drift(before, posterior)
    tables |= leniency_tables(posterior, base)
    tables |= (agreed := agreement(r))
    if "kappa" in agreed or len(r.comparisons):
        kappa = agreed.get("kappa", pd.DataFrame(columns=["judge", "other", "kappa", "units"]))
        tables["cards"] = judge_cards(r, tables["judges"], kappa, tables.get("drift"))
    if len(r.comparisons):
        tables["comparisons"] = comparison_table(posterior)
    tables |= (examined := robustness.tables(posterior, robust, base, wanted) if robust else {})
    if "without_judge" in examined:
        tables["contrasts"]["stable"] = stability(tables["contrasts"], examined["without_judge"])
    if posterior.facts.get("no_intervals"):
        tables = _without_intervals(tables)
    facts = {key: value for key, value in posterior.facts.items() if key != "u_draws"}
    options = asdict(posterior.options) | {"anchors": _anchored(posterior.options.anchors)}
    facts |= {
        "base": base,
        "smallest_effect": wanted.smallest,
        "family": list(wanted.family),
        "options": options,
        "ratings": len(r),
        "comparisons": len(r.comparisons),
        "responses": len(r.response_model),
    }
    facts |= {name: len(getattr(r, name)) for name in ("models", "items", "judges", "dimensions")}
    verdict = gate(posterior, converged, statistics.misfit, tables.get("comparisons"))
    verdict["biases"] = [f"{row.finding}: {row.advice}" for row in found.itertuples()]
    said = robustness.notes(robust, examined) if robust else []
    return Result(tables, verdict, (*said, *_notes(posterior, tables)), facts, posterior)


def _anchored(anchors: dict[str, Any] | None) -> str | None:
    kinds = ((kind, len((anchors or {}).get(kind, ()))) for kind in ("judges", "items"))
    return ", ".join(f"{n} {kind}" for kind, n in kinds if n) or None


def _crossed(name: str, draws: Floats, **axes: tuple[str, ...] | tuple[int, ...]) -> pd.DataFrame:
    """A row per cell of draws [S, *axes] that was estimated."""
    index = pd.MultiIndex.from_product(axes.values(), names=list(axes))
    return pd.DataFrame(estimates(name, draws), index=index).dropna().reset_index()


def _groups(posterior: Posterior) -> pd.DataFrame:
    """A row per model, group of items and dimension; nan where the model answered no such item."""
    r = posterior.ratings
    frame = _crossed("effect", posterior.flat("group"), model=r.models, group=r.groups, dimension=r.dimensions)
    answered = item_shares(r)[1].ravel() > 0
    columns = ["effect", "effect_low", "effect_high"]
    return frame.assign(**{c: frame[c].where(answered) for c in columns})


def _criteria(posterior: Posterior) -> pd.DataFrame:
    r = posterior.ratings
    draws = posterior.flat("delta") if "delta" in posterior.draws else np.zeros((1, len(r.criteria)))
    frame = pd.DataFrame(r.criteria, columns=["dimension", "criterion"]).assign(**estimates("difficulty", draws))
    frame = frame.assign(n=np.bincount(r.criterion, minlength=len(r.criteria)))
    return frame[frame["n"] > 0].reset_index(drop=True)


def _items(posterior: Posterior, statistics: FitStatistics) -> pd.DataFrame:
    r = posterior.ratings
    D = len(r.dimensions)
    n = np.bincount(r.item * D + r.dimension, minlength=len(r.items) * D)
    frame = _crossed("difficulty", posterior.flat("beta"), item=r.items, dimension=r.dimensions)
    counts = pd.DataFrame({"item": np.repeat(r.items, D), "dimension": np.tile(r.dimensions, len(r.items)), "n": n})
    fit = statistics.items[["item", "dimension", "infit", "outfit"]]
    keys = ["item", "dimension"]
    return frame.merge(counts, on=keys, how="left").merge(fit, on=keys, how="left")


def _thresholds(posterior: Posterior) -> pd.DataFrame:
    """step: the score that the threshold leads to, from the next lower score that is in use. Thresholds that are shared
    have rows of `EVERYBODY`.

    Where a score between is not used, the odds of the two change by the distance times the location, so that the place
    where they are even is tau over the distance. Graded: where this score or a higher one is as likely as a lower one.
    """
    r, tau = posterior.ratings, posterior.flat("tau")
    finite = np.isfinite(tau[0])
    below = np.where(used_categories(r, finite), np.arange(len(r.scale)), -1)
    distance = np.arange(1, len(r.scale)) - np.maximum.accumulate(below, axis=-1)[..., :-1]
    if posterior.options.model != GRADED:
        tau = tau / np.where(finite, distance, 1)
    judges = r.judges
    if posterior.options.thresholds == "judge":
        tau = np.where(r.judge_rated[..., None], tau, np.nan)
    else:
        tau, judges = tau[:, :1], (EVERYBODY,)
    frame = _crossed("threshold", tau, judge=judges, dimension=r.dimensions, step=tuple(r.scale[1:]))
    disordered = []
    for thresholds in np.moveaxis(tau, 0, -1).reshape(-1, len(r.scale) - 1, len(tau)):
        used = thresholds[np.isfinite(thresholds[:, 0])]
        disordered += [False] * bool(len(used)) + list((np.diff(used, axis=0) < 0).mean(axis=1) > DISORDER)
    return frame.assign(disordered=np.array(disordered, dtype=bool))


def _item_thresholds(posterior: Posterior) -> pd.DataFrame:
    """Thresholds of every item: those that are common plus its own deviation, at the draws that are kept."""
    r = posterior.ratings
    kept = np.asarray(posterior.facts["u_draws"])
    tau = posterior.flat("tau_average")[kept][:, None] + posterior.flat("item_step")
    return _crossed("threshold", tau, item=r.items, dimension=r.dimensions, step=tuple(r.scale[1:]))


def _severity(posterior: Posterior) -> pd.DataFrame:
    r = posterior.ratings
    draws = np.where(r.judge_rated, posterior.flat("severity"), np.nan)
    return _crossed("severity", draws, judge=r.judges, dimension=r.dimensions)


def _effects(posterior: Posterior) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for term, note in EFFECT_NOTES.items():
        if term in posterior.draws:
            rows += _rows(posterior, term, "term", note=note)
    for name, (term, note) in SPREADS.items():
        if name in posterior.draws:
            rows += [row | {"term": term} for row in _rows(posterior, name, "term", note=note)]
    columns = ["term", "dimension", "estimate", "estimate_low", "estimate_high", "note"]
    return pd.DataFrame(rows, columns=columns)


def _scales(posterior: Posterior) -> pd.DataFrame:
    rows = [row for name in SCALES if name in posterior.draws for row in _rows(posterior, name, "parameter")]
    return pd.DataFrame(rows, columns=["parameter", "dimension", "estimate", "estimate_low", "estimate_high"])


def _rows(posterior: Posterior, name: str, key: str, **more: str) -> list[dict[str, Any]]:
    """One row per dimension of a term [S, D]; one without dimension for a term [S]."""
    draws = posterior.flat(name)
    dimensions = posterior.ratings.dimensions if draws.ndim > 1 else ("",)
    columns = estimates("estimate", draws)
    return [
        {key: name, "dimension": d, **{c: float(v[i]) for c, v in columns.items()}, **more}
        for i, d in enumerate(dimensions)
        if np.isfinite(columns["estimate"][i])
    ]


def _correlation(posterior: Posterior) -> pd.DataFrame:
    """One row per pair of dimensions."""
    names = posterior.ratings.dimensions
    first, second = np.triu_indices(len(names), 1)
    draws = posterior.flat("correlation")[:, first, second] if len(first) else np.zeros((1, 0))
    pairs = {"dimension": [names[i] for i in first], "other": [names[i] for i in second]}
    return pd.DataFrame({**pairs, **estimates("correlation", draws)})


def _statuses(ratings: Ratings) -> pd.DataFrame:
    rows = [(j, status, count) for j, counts in ratings.status_by_judge.items() for status, count in counts.items()]
    return pd.DataFrame(rows, columns=["judge", "status", "count"])


def connectivity(ratings: Ratings) -> pd.DataFrame:
    """Ratings per judge, model and dimension, empty cells included."""
    J, M, D = len(ratings.judges), len(ratings.models), len(ratings.dimensions)
    n = np.bincount((ratings.judge * M + ratings.model) * D + ratings.dimension, minlength=J * M * D)
    axes = {"judge": ratings.judges, "model": ratings.models, "dimension": ratings.dimensions}
    index = pd.MultiIndex.from_product(axes.values(), names=list(axes))
    return pd.DataFrame({"n": n}, index=index).reset_index()


def _without_intervals(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    kept = {name: table.copy() for name, table in tables.items() if name not in ("ranks", "rank_sets", "reliability")}
    for name, table in kept.items():
        if name not in ("misfit", "ppc"):
            blank = [c for c in table if c.endswith(("_low", "_high", "_sd")) or c == "p" or c.startswith("p_")]
            table[blank] = np.nan
    kept["contrasts"]["verdict"] = "undecided"
    kept["reversals"]["why"] = kept["reversals"]["why"].str.replace(r" \(P = [\d.]+\)", "", regex=True)
    return kept


def _notes(posterior: Posterior, tables: dict[str, pd.DataFrame]) -> tuple[str, ...]:
    """What a reader must know about this fit, most important first."""
    notes = [f"{row.finding}: {row.advice}." for row in tables["biases"].itertuples()]
    notes += [str(note) for note in posterior.facts.get("notes", ())]
    odd = tables["judges"][tables["judges"]["note"] != ""]
    if len(odd) > SHOWN:
        notes.append(f"{len(odd):,} judges stand out, see the table of judges: {names_of(odd['judge'])}.")
    else:
        notes += [f"Judge {row.judge}: {row.note}." for row in odd.itertuples()]
    if len(disordered := tables["thresholds"].query("disordered")):
        judges = names_of(dict.fromkeys(disordered["judge"]))
        notes.append(
            f"Thresholds are out of order for {judges}: a score between is never the likeliest. A finding, no error."
        )
    r = posterior.ratings
    if "s_u" not in posterior.draws and replicated(r):
        notes.append("No response effect, although responses are rated more than once: all intervals are too narrow.")
    if n := len(tables["reversals"]):
        least = "at least " * (n >= MOST_REVERSALS)
        notes.append(
            f"Adjusting turns the order of raw means in {least}{n} pair{'s' * (n > 1)} of models; see reversals."
        )
    notes.append(scope(posterior))
    if len(r):
        notes.append(THRESHOLDS[posterior.options.thresholds])
    if posterior.options.model == GRADED:
        notes.append(CUMULATIVE)
    if shrunk := shrinkage(posterior):
        notes.append(shrunk)
    notes[:0] = told(posterior, tables)
    return (*notes, *[fair_words(posterior)] * bool(len(r)), *[COMPARED] * bool(len(r.comparisons)))


def write_tables(result: Result, folder: Path) -> None:
    """Every table as CSV and JSON (records; null where unknown), with gate, notes, facts and claims as JSON."""
    write_frames(result.tables, folder, ("csv", "json"))
    for name, value in (
        ("gate", result.gate),
        ("notes", result.notes),
        ("facts", result.facts),
        ("claims", claims(result)),
    ):
        write_text(folder / f"{name}.json", json.dumps(value, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    """numpy values as JSON knows them."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)
