"""Tables of the page; the files beside it hold every figure in full."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from dpeer.eval.prices import money
from dpeer.eval.report.data import term_words
from dpeer.eval.report.judges import notable, p_words
from dpeer.eval.report.picture import by_dimension
from dpeer.eval.report.table import FOLD_FROM, MOST_LISTED, Cell, Table, bounded, build, text
from dpeer.eval.report.words import (
    PARAMETERS,
    Frames,
    base_of,
    between,
    count,
    fit_flags,
    fixed,
    known,
    probability,
    share_words,
    signed,
)
from dpeer.report.text import percent

BIASES = {
    "favours": "favours or disfavours a model",
    "halo": "halo",
    "items": "finds other items hard",
    "missing": "leaves answers out",
    "middle": "central tendency",
}
EXTREME_ITEMS = (5, 3)
"""Of each end, with at most two dimensions and with more."""
WORST_PARAMETERS = 15
WORST_GAPS = 10


def ability(frames: Frames, claim: bool) -> Table:
    """Abilities, and with a claim also the comparison to the base model."""
    frame = frames["ability"]
    base = base_of(frame)
    compare: dict[str, Cell] = {}
    if claim and base is not None:
        compare = {
            "Difference_to_base_n": lambda r: "base" if r.model == base else bounded(r, "contrast", signed),
            "All_at_once_n": lambda r: between(r.family_low, r.family_high) if r.model != base else "",
            "P_(better)_n": lambda r: probability(r.p_better) if r.model != base else "",
        }
        if "contrast_these" in frame:
            compare["On_these_prompts_n"] = lambda r: bounded(r, "contrast_these", signed) if r.model != base else ""
        if (
            "verdict" in frame and frame["verdict"].str.contains(r"\d", na=False).any()
        ):  # a smallest effect was asked for
            compare["Verdict"] = lambda r: text(r.verdict)
    most = max(FOLD_FROM, MOST_LISTED // frame["dimension"].nunique())
    total: dict[str, Cell] = {"With_length_n": lambda r: bounded(r, "total")} if "total" in frame else {}
    rows = [
        row
        for _, part in by_dimension(frame)
        for row in part.sort_values("ability", ascending=False, kind="stable").head(most).itertuples()
    ]
    cut = f"; the first {most:,} of each dimension, all in tables/ability.csv" if len(rows) < len(frame) else ""
    return build(
        f"Abilities in logits and fair averages on the rating scale, with 95 % intervals{cut}",
        rows,
        Dimension=lambda r: str(r.dimension),
        Model=lambda r: str(r.model),
        Ability_n=lambda r: bounded(r, "ability"),
        **total,
        **compare,
        Fair_average_n=lambda r: bounded(r, "fair"),
        Raw_mean_n=lambda r: fixed(r.raw_mean),
        Ratings_n=lambda r: count(r.n),
    )


def rank_sets(frames: Frames) -> Table:
    return build(
        "Ranks that cannot be excluded, for all models and dimensions at once (95 %)",
        (row for _, part in by_dimension(frames["rank_sets"]) for row in part.itertuples()),
        Dimension=lambda r: str(r.dimension),
        Model=lambda r: str(r.model),
        Ranks_n=lambda r: str(r.best_rank) if r.best_rank == r.worst_rank else f"{r.best_rank} to {r.worst_rank}",
    )


def reliability(frames: Frames) -> Table:
    return build(
        "How well the models are told apart",
        frames["reliability"].itertuples(),
        Dimension=lambda r: str(r.dimension),
        Sd_of_abilities_n=lambda r: fixed(r.sd),
        Separation_n=lambda r: fixed(r.separation, 1),
        Reliability_n=lambda r: fixed(r.reliability),
    )


def reversals(frames: Frames) -> Table:
    return build(
        "Pairs of models whose order the adjustment turns round",
        frames["reversals"].itertuples(),
        Dimension=lambda r: str(r.dimension),
        Pair=lambda r: f"{r.model} and {r.other}",
        Raw_difference_n=lambda r: signed(r.raw_difference),
        Fair_difference_n=lambda r: signed(r.fair_difference),
        Logits_n=lambda r: bounded(r, "contrast", signed),
        P_n=lambda r: probability(r.p),
        Why=lambda r: text(r.why),
    )


def judges(frames: Frames) -> Table:
    return build(
        "Judges",
        frames["judges"].itertuples(),
        Judge=lambda r: str(r.judge),
        Severity_n=lambda r: bounded(r, "severity"),
        Discrimination_n=lambda r: bounded(r, "alpha") if r.alpha_low != r.alpha_high else "",
        Infit_n=lambda r: mean_square(r, "infit"),
        Outfit_n=lambda r: mean_square(r, "outfit"),
        Mean_score_n=lambda r: fixed(r.mean_score),
        Ratings_n=lambda r: count(r.n),
        Comparisons_n=lambda r: count(r.comparisons),
        Ties_n=lambda r: percent(r.tie_share) if known(r.tie_share) else "",
        Shown_first_n=lambda r: bounded(r, "position", signed),
        Remarks=lambda r: text(r.note) or fit_flags(r),
    )


def mean_square(row: Any, name: str) -> str:
    """Mean square above its posterior predictive p."""
    value, p = getattr(row, name), getattr(row, f"{name}_p")
    return f"{fixed(value)}\np {p_words(p)}" if known(value) and known(p) else fixed(value)


def models_fit(frames: Frames) -> Table:
    table = build(
        "Infit and outfit of the models",
        (row for _, part in by_dimension(frames["models_fit"]) for row in part.itertuples()),
        Dimension=lambda r: str(r.dimension),
        Model=lambda r: str(r.model),
        Infit_n=lambda r: mean_square(r, "infit"),
        Outfit_n=lambda r: mean_square(r, "outfit"),
        Remarks=fit_flags,
    )
    return replace(table, minor=True)


def biases(frames: Frames) -> Table:
    return build(
        "Biases found, and what helps",
        frames["biases"].itertuples(),
        Judge=lambda r: str(r.judge),
        Kind=lambda r: BIASES.get(r.kind, r.kind),
        Finding=lambda r: text(r.finding),
        What_helps=lambda r: text(r.advice),
    )


def judge_model(frames: Frames) -> Table:
    frame = frames["judge_model"]
    order = frame["effect"].abs().sort_values(ascending=False, kind="stable").index
    return build(
        "What judges add to single models, in logits; the rest of their judging is severity",
        frame.reindex(order).itertuples(),
        Judge=lambda r: str(r.judge),
        Model=lambda r: str(r.model),
        Effect_n=lambda r: bounded(r, "effect", signed),
    )


def groups(frames: Frames) -> Table:
    return build(
        "What models gain or lose on groups of items, in logits",
        (row for _, part in by_dimension(frames["groups"]) for row in part.itertuples()),
        Dimension=lambda r: str(r.dimension),
        Model=lambda r: str(r.model),
        Group=lambda r: str(r.group),
        Effect_n=lambda r: bounded(r, "effect", signed),
    )


def misfit(frames: Frames) -> Table:
    return build(
        "Largest gaps beyond chance",
        notable(frames["misfit"])[:WORST_GAPS].itertuples(),
        Dimension=lambda r: str(r.dimension),
        Judge=lambda r: str(r.judge),
        Model=lambda r: str(r.model),
        Observed_n=lambda r: fixed(r.observed),
        Expected_n=lambda r: bounded(r, "expected"),
        Gap_n=lambda r: signed(r.observed - r.expected),
        Predictive_sds_n=lambda r: signed(r.z, 1),
    )


def items(frames: Frames) -> Table:
    """Hardest and easiest items of each dimension."""
    rows: list[tuple[str, Any]] = []
    most = EXTREME_ITEMS[frames["items"]["dimension"].nunique() > 2]
    for _, part in by_dimension(frames["items"]):
        part = part[part["difficulty"].notna()].sort_values("difficulty", ascending=False, kind="stable")
        ends = min(most, len(part) // 2)
        rows += [("hardest", row) for row in part[:ends].itertuples()]
        rows += [("easiest", row) for row in part[len(part) - ends :].itertuples()]
    return build(
        "Hardest and easiest items",
        rows,
        Dimension=lambda r: str(r[1].dimension),
        End=lambda r: r[0],
        Item=lambda r: str(r[1].item),
        Difficulty_n=lambda r: bounded(r[1], "difficulty"),
        Ratings_n=lambda r: count(r[1].n),
        Infit_n=lambda r: fixed(r[1].infit),
        Outfit_n=lambda r: fixed(r[1].outfit),
        Remarks=lambda r: fit_flags(r[1]),
    )


def criteria(frames: Frames) -> Table:
    frame = frames["criteria"]
    several = frame.groupby("dimension")["criterion"].transform("nunique") > 1
    return build(
        "Criteria: difficulty within their dimension",
        frame[several].itertuples(),
        Dimension=lambda r: str(r.dimension),
        Criterion=lambda r: str(r.criterion),
        Difficulty_n=lambda r: bounded(r, "difficulty"),
        Ratings_n=lambda r: count(r.n),
    )


def effects(frames: Frames) -> Table:
    return build(
        "Effects",
        frames["effects"].itertuples(),
        Effect=term_words,
        Estimate_n=lambda r: bounded(r, "estimate"),
        Remarks=lambda r: text(r.note),
    )


def scales(frames: Frames) -> Table:
    table = build(
        "Levels and spreads of the fit",
        frames["scales"].itertuples(),
        Parameter=lambda r: PARAMETERS.get(str(r.parameter), str(r.parameter)),
        Dimension=lambda r: text(r.dimension),
        Estimate_n=lambda r: bounded(r, "estimate"),
    )
    return replace(table, minor=True)


def statuses(frames: Frames) -> Table:
    """Counts and shares per judge, one column per status."""
    frame = frames["statuses"]
    wide = frame.pivot_table(index="judge", columns="status", values="count", aggfunc="sum", fill_value=0, sort=False)
    names = [str(name) for name in wide.columns]
    head = (("Judge", False), ("All", True), *((name, True) for name in names))
    rows = tuple(
        (str(judge), f"{int(counts.sum()):,}", *(share_words(int(n), int(counts.sum())) for n in counts))
        for judge, counts in zip(wide.index, wide.to_numpy(), strict=True)
    )
    return Table("What became of every planned rating", head, rows)


def alpha(frames: Frames) -> Table:
    return build(
        "Krippendorff's alpha for ordered scores: 1 is agreement, 0 what chance gives",
        frames["alpha"].itertuples(),
        Dimension=lambda r: str(r.dimension),
        Among=lambda r: str(r.who),
        Alpha_n=lambda r: bounded(r, "alpha"),
        Responses_rated_by_several_n=lambda r: count(r.units),
    )


def kappa(frames: Frames) -> Table:
    """People against models first."""
    frame = frames["kappa"].sort_values(["dimension", "people"], key=_people_first, kind="stable")
    return build(
        "Weighted kappa of pairs (squared distances), and how often both gave the same score",
        frame.itertuples(),
        Dimension=lambda r: str(r.dimension),
        Judge=lambda r: str(r.judge),
        Other=lambda r: str(r.other),
        Pair=lambda r: {0: "two models", 1: "a person and a model", 2: "two people"}[int(r.people)],
        Kappa_n=lambda r: bounded(r, "kappa"),
        Same_score_n=lambda r: fixed(r.exact),
        Responses_n=lambda r: count(r.units),
    )


def _people_first(column: pd.Series) -> pd.Series:
    return column.map({1: 0, 2: 1, 0: 2}) if column.name == "people" else column


def cards(frames: Frames) -> Table:
    """A row per judge."""
    return build(
        "Judge cards: estimates with intervals; effects in points of the scale",
        frames["cards"].itertuples(),
        Judge=lambda r: f"{r.judge}\n{'person' if r.person is True else 'model'}",
        Severity_n=lambda r: bounded(r, "severity"),
        Discrimination_n=lambda r: bounded(r, "alpha") if r.alpha_low != r.alpha_high else "",
        Kappa_with_people_n=lambda r: fixed(r.kappa_people),
        Kappa_with_models_n=lambda r: fixed(r.kappa_models),
        Own_family_n=lambda r: bounded(r, "own_family", signed),
        Own_model_n=lambda r: bounded(r, "own_model", signed),
        Scale_from_the_top_n=lambda r: bounded(r, "position", signed),
        Longer_by_one_sd_n=lambda r: bounded(r, "length", signed),
        **{"Shown_first_(logits)_n": lambda r: bounded(r, "shown_first", signed)},
        Ties_n=lambda r: percent(r.tie_share) if known(r.tie_share) else "",
        Moved_since_earlier_fit_n=lambda r: signed(r.moved),
        Tokens_per_rating_n=lambda r: count(r.tokens),
        **{"Price_of_1,000_ratings_n": _price},
        Ratings_n=lambda r: count(r.n),
        Comparisons_n=lambda r: count(r.comparisons),
    )


def comparisons(frames: Frames) -> Table:
    return build(
        "Comparisons: mean outcome from -1 (the other is better) to 1, and the 95 % interval that the fit expects",
        frames["comparisons"].itertuples(),
        Dimension=lambda r: str(r.dimension),
        Pair=lambda r: f"{r.model} and {r.other}",
        Better_n=lambda r: count(r.better),
        Ties_n=lambda r: count(r.ties),
        Worse_n=lambda r: count(r.worse),
        Observed_n=lambda r: signed(r.observed),
        Expected_n=lambda r: bounded(r, "expected", signed),
    )


def _price(row: Any) -> str:
    """Of a model's; the pay of people is not known here."""
    if row.person is True:
        return ""
    return money(row.price, row.currency) if row.price == row.price else "unknown"


def drift(frames: Frames) -> Table:
    frame = frames["drift"]
    order = frame["difference"].abs().sort_values(ascending=False, kind="stable").index
    return build(
        "Anchors",
        frame.reindex(order).itertuples(),
        Kind=lambda r: str(r.kind),
        Name=lambda r: str(r.name),
        Dimension=lambda r: text(r.dimension),
        Before_n=lambda r: fixed(r.before),
        Now_n=lambda r: fixed(r.now),
        Difference_n=lambda r: bounded(r, "difference", signed),
        Verdict=lambda r: "drifted" if r.drifted is True or r.drifted == 1 else "stable",
    )


def diagnostics(frames: Frames) -> Table:
    """The parameters that converged worst."""
    frame = frames["diagnostics"]
    least = frame[["ess_bulk", "ess_tail"]].min(axis=1).clip(lower=1e-9)
    badness: pd.Series[float] = pd.concat([(frame["rhat"] - 1) / 0.01, 400 / least], axis=1).max(axis=1)
    order = badness.sort_values(ascending=False, kind="stable").index[:WORST_PARAMETERS]
    table = build(
        f"The {len(order)} parameters that converged worst",
        frame.reindex(order).itertuples(),
        Parameter=lambda r: str(r.parameter),
        **{"R-hat_n": lambda r: fixed(r.rhat, 3)},
        Bulk_ESS_n=lambda r: count(r.ess_bulk),
        Tail_ESS_n=lambda r: count(r.ess_tail),
    )
    return replace(table, minor=True)
