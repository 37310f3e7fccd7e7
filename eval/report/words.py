"""The words and numbers of the page: what a fit found, and how its values are written."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, TypeGuard

import numpy as np
import pandas as pd

from dpeer.eval.irt.judges import FIT_RANGE
from dpeer.report.text import MINUS, UNKNOWN, listing, percent

Frames = Mapping[str, pd.DataFrame]

SURE = 0.95
"""Posterior probability from which a finding is stated without a reservation."""
TERMS = {
    "own_family": "own family",
    "own_model": "own model",
    "length": "length (per sd)",
    "order": "listing order",
    "halo": "halo (sd)",
    "judge x model": "judge x model (sd)",
    "judge x item": "judge x item (sd)",
    "people x model": "people x model (sd)",
    "model x group": "model x group (sd)",
    "position_mean": "shown first",
}
PARAMETERS = {
    "mu": "mean level",
    "s_theta": "sd of abilities",
    "s_beta": "sd of item difficulties",
    "s_u": "sd of response effects",
    "s_severity": "sd of judge severities",
    "s_dev": "sd of judge x dimension severities",
    "s_tau": "sd of judges' thresholds",
    "s_alpha": "sd of log discrimination",
    "s_halo": "sd of halo effects",
    "s_v": "sd of model x item effects",
    "s_judge_model": "sd of judge x model effects",
    "s_favour": "sd of people x model effects",
    "s_judge_item": "sd of judge x item effects",
    "s_group": "sd of model x group effects",
    "s_item_step": "sd of items' thresholds",
    "s_position": "sd of judges' preference for a place",
    "tie_mean": "log odds of a tie between equals",
    "s_tie": "sd of judges' log odds of a tie",
    "comparison_scale": "logits of a comparison per logit of a rating",
}


def known(value: Any) -> TypeGuard[float]:
    """True for a number that is neither missing nor infinite."""
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def fixed(value: Any, places: int = 2) -> str:
    """E.g. "1.20" or "-0.35", with a true minus sign; a dash where unknown."""
    if not known(value):
        return UNKNOWN
    text = f"{value:,.{places}f}"
    return (text.lstrip("-") if float(text.replace(",", "")) == 0 else text).replace("-", MINUS)


def signed(value: Any, places: int = 2) -> str:
    """Like `fixed`, with a plus sign."""
    text = fixed(value, places)
    return f"+{text}" if known(value) and value > 0 and float(text.replace(",", "")) > 0 else text


def between(low: Any, high: Any, places: int = 2) -> str:
    """E.g. "0.95 to 1.46"; nothing where unknown."""
    return f"{fixed(low, places)} to {fixed(high, places)}" if known(low) and known(high) else ""


def estimate(row: Any, name: str, places: int = 2) -> str:
    """A column with its 95 % interval, e.g. "1.20 [0.95 to 1.46]"."""
    bounds = between(getattr(row, f"{name}_low"), getattr(row, f"{name}_high"), places)
    return fixed(getattr(row, name), places) + (f" [{bounds}]" if bounds else "")


def probability(value: Any) -> str:
    if not known(value):
        return UNKNOWN
    return "> 0.99" if value > 0.99 else "< 0.01" if value < 0.01 else f"{value:.2f}"


def count(value: Any) -> str:
    return f"{int(value):,}" if known(value) else UNKNOWN


def plural(number: int, noun: str) -> str:
    """E.g. "1 judge", "1,200 items"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def label(name: Any, longest: int = 48) -> str:
    """A user's name as it can be drawn: no control characters, cut in the middle where it is too long."""
    text = "".join(" " if unicodedata.category(c) in {"Cc", "Cs", "Co", "Cn"} else c for c in str(name)).strip()
    keep = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[: longest - 1 - keep]}…{text[-keep:]}"


def labels(names: Iterable[Any], longest: int = 22) -> list[str]:
    """Names of one axis, short but told apart: a long beginning that all share is dropped before any is cut."""
    whole = [label(name, 1000) for name in names]
    if max(map(len, whole), default=0) > longest and len(set(whole)) > 1:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(min(whole), max(whole), strict=False))
        shared = re.sub(r"[^-/_.: ]*$", "", "".join(a for a, _ in same))
        whole = [f"…{text[len(shared) :]}" if len(shared) > 2 else text for text in whole]
    short = [label(text, longest) for text in whole]
    return [text if short.count(text) == 1 else f"{label(text, longest - 4)} ({k + 1})" for k, text in enumerate(short)]


def slug(name: Any) -> str:
    """A user's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", str(name)).strip("-")[:60] or "x"


def clear(low: Any, high: Any) -> int:
    """1 if an interval lies above zero, -1 if below, 0 if it holds zero or is unknown."""
    return 1 if known(low) and low > 0 else -1 if known(high) and high < 0 else 0


def base_of(ability: pd.DataFrame) -> str | None:
    """The model that the others are compared with: the one without a contrast of its own; None without contrasts."""
    without = set(ability["model"]) - set(ability.loc[ability["contrast"].notna(), "model"])
    return str(without.pop()) if len(without) == 1 and ability["model"].nunique() > 1 else None


def finding(frames: Frames) -> str:
    """The one sentence that heads the page of a fit whose diagnostics are green."""
    ability = frames.get("ability")
    if ability is None:
        return "No ability was estimated"
    base = base_of(ability)
    return _leaders(frames) if base is None else _against(ability, base)


def _against(ability: pd.DataFrame, base: str) -> str:
    """Which model is better than the base on the most dimensions, and where."""
    others = ability[ability["model"] != base]
    better: dict[str, list[str]] = {m: [] for m in dict.fromkeys(others["model"])}
    worse: dict[str, list[str]] = {m: [] for m in better}
    for row in others.itertuples():
        side = clear(row.family_low, row.family_high)
        if side:
            (better if side > 0 else worse)[row.model].append(str(row.dimension))
    means = others.groupby("model")["contrast"].mean()
    best = max(better, key=lambda m: (len(better[m]) - len(worse[m]), len(better[m]), means[m]))
    total = ability["dimension"].nunique()
    if not better[best] and not any(worse.values()):
        return f"No model differs reliably from {base} on any dimension"
    if not better[best]:
        fallen = max(worse, key=lambda m: len(worse[m]))
        return f"No model is reliably better than {base}; {fallen} is worse on {where(worse[fallen], total)}"
    rest = f", worse on {listing(worse[best])}" if worse[best] else ""
    others_better = sum(bool(where_better) for model, where_better in better.items() if model != best)
    more = f"; {plural(others_better, 'other')} {'is' if others_better == 1 else 'are'} better on some dimension"
    sentence = f"{best} is better than {base} on {where(better[best], total)}{rest}"
    return sentence + (more if others_better and total > 1 else "")


def where(dimensions: Sequence[str], total: int) -> str:
    """E.g. "all 4 dimensions", "safe and unsafe", "9 of 12 dimensions"."""
    if len(dimensions) == total > 1:
        return "both dimensions" if total == 2 else f"all {total} dimensions"
    return listing(list(dimensions)) if len(dimensions) <= 4 else f"{len(dimensions)} of {total} dimensions"


def _leaders(frames: Frames) -> str:
    """Who is first on which dimension, for a comparison without a base model."""
    ranks = frames.get("ranks")
    leads: dict[str, list[str]] = {}
    if ranks is not None:
        first = ranks[(ranks["rank"] == 1) & (ranks["probability"] >= SURE)]
        for row in first.itertuples():
            leads.setdefault(str(row.model), []).append(str(row.dimension))
    if not leads:
        return "No model leads reliably on any dimension"
    total = frames["ability"]["dimension"].nunique()
    return "; ".join(f"{model} leads on {where(places, total)}" for model, places in leads.items())


def no_claim(gate: Mapping[str, Any]) -> str:
    reasons = [str(reason).rstrip(".") for reason in gate.get("reasons", ())]
    return f"No claim: {reasons[0]}" if len(reasons) == 1 else "No claim: the fit has not passed its checks"


def setting(frames: Frames, facts: Mapping[str, Any]) -> str:
    """What was compared, e.g. "5 models, 450 items, 4 judges, 2 dimensions; 9,000 ratings."."""
    parts = []
    for table, column, noun in (
        ("ability", "model", "model"),
        ("items", "item", "item"),
        ("judges", "judge", "judge"),
        ("ability", "dimension", "dimension"),
    ):
        if table in frames:
            parts.append(plural(frames[table][column].nunique(), noun))
    ratings = facts.get("ratings")
    if not known(ratings) and "connectivity" in frames:
        ratings = frames["connectivity"]["n"].sum()
    return f"{', '.join(parts)}{f'; {count(ratings)} ratings' if known(ratings) else ''}." if parts else ""


def fit_flag(mean_square: Any) -> str:
    """What an infit or outfit mean square says; nothing where it is productive or unknown."""
    if not known(mean_square):
        return ""
    return "noisy" if mean_square > FIT_RANGE[1] else "too regular" if mean_square < FIT_RANGE[0] else ""


def fit_flags(row: Any) -> str:
    """E.g. "noisy outfit", from infit and outfit of one row."""
    flags = {name: fit_flag(getattr(row, name)) for name in ("infit", "outfit")}
    if flags["infit"] and flags["infit"] == flags["outfit"]:
        return flags["infit"]
    return ", ".join(f"{flag} {name}" for name, flag in flags.items() if flag)


def usable(statuses: pd.DataFrame) -> float:
    """Share of ratings with status ok."""
    return float(statuses.loc[statuses["status"] == "ok", "count"].sum() / max(1, statuses["count"].sum()))


def losses(statuses: pd.DataFrame) -> str:
    """How many planned ratings can be used, and which judge loses the most."""
    total = statuses.groupby("judge", sort=False)["count"].sum()
    lost = statuses[statuses["status"] != "ok"].groupby("judge", sort=False)["count"].sum()
    share = (lost / total.clip(lower=1)).fillna(0.0).sort_values(ascending=False, kind="stable")
    everything = f"{100 * usable(statuses):.1f} % of all ratings are usable"
    if not len(share) or share.iloc[0] == 0:
        return everything
    return f"{everything}; {label(share.index[0])} loses most, {100 * share.iloc[0]:.1f} %"


def limits(earlier_origin: Sequence[str] = (), people_scale: Sequence[str] = (), graded: bool = False) -> Iterator[str]:
    """What the page cannot tell, in plain words. `earlier_origin`: dimensions on the origin of an earlier fit;
    `people_scale`: those in which abilities are what people see; graded: logits are cumulative."""
    zero = "it sums to zero over the models of this table, as severity does over the judges"
    if people_scale:
        zero += f"; in {listing([label(name) for name in people_scale])} over the people among the judges"
    if earlier_origin:
        anchored = listing([label(name) for name in earlier_origin])
        zero += f"; in {anchored} it counts from the origin of the earlier fit instead"
    yield (
        "Estimates are on the logit scale of this one model variant: a difference of 1 multiplies the odds of "
        f"{'each score or a higher one' if graded else 'the next higher score'} by 2.7 for a judge of average "
        "discrimination. Logits of other variants, other judges or "
        "other item sets are on other scales; compare fair averages there, and only with the same rubric."
    )
    shared = (
        "A leniency or a taste that all judges share cannot be seen in it. Only human ratings of some of the "
        "responses, brought in as a judge or as anchors, can show it."
    )
    if people_scale:
        shared = "What the people who rated share among each other cannot be seen in it: they are the yardstick."
    yield f"Ability is relative: {zero}. {shared}"
    yield (
        "Discrimination (alpha) says how closely a judge follows the consensus of the judges, not how valid that "
        "consensus is. Two judges that are near-copies of each other agree, and so pull the scale towards themselves."
    )
    yield (
        "Intervals are 95 % credible intervals, each for itself: with many models and dimensions some will miss. "
        "They hold for items and responses like these, and for these judges."
    )
    yield "An approximate fit, or one whose diagnostics are not green, supports no claim, whatever its figures."


def misfit_words(row: Any) -> str:
    """E.g. "keyword scores model-b 0.41 above expectation"."""
    gap = row.observed - row.expected
    side = "above" if gap > 0 else "below"
    return f"{label(row.judge)} scores {label(row.model)} {fixed(abs(gap))} {side} expectation"


def share_words(part: int, total: int) -> str:
    """E.g. "12 (2 %)"."""
    return f"{part:,} ({percent(part / total)})" if part else "0"
