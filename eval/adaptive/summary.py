"""What adaptive judging asked, decided and saved: for the manifest, a terminal and the evaluation's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dpeer.escape import markup
from dpeer.eval.adaptive.decide import EQUIVALENT, HIGHER, HOPELESS, LOWER, OPEN, Look, open_contrasts
from dpeer.eval.adaptive.record import Record
from dpeer.eval.adaptive.task import Task
from dpeer.eval.prices import money

WORDS = {HIGHER: "above the base", LOWER: "below the base", EQUIVALENT: "equivalent", OPEN: "open", HOPELESS: "open"}


def decided(seen: Look) -> str:
    """E.g. "3 of 7"."""
    real = seen.limit > 0
    return f"{(real & np.isin(seen.verdict, [HIGHER, LOWER, EQUIVALENT])).sum()} of {real.sum()}"


def summary(what: Task, record: Record, ratings: int, whole: int) -> dict[str, Any]:
    """Ratings asked for and planned, a row per round, and the verdict on each contrast."""
    sizes = np.cumsum([len(ids) for ids in record.asked]).tolist()
    looks = dict(zip(record.rounds, record.looks, strict=True))  # the last one of each round
    contrasts = [
        {
            "model": what.models[m],
            "dimension": what.dimensions[d],
            "verdict": str(last.verdict[d, m]),
            "contrast": float(last.mean[d, m]),
            "half_width": float(last.half_width[d, m]),
        }
        for last in record.looks[-1:]
        for d, m in zip(*np.nonzero(last.limit > 0), strict=True)
    ]
    rounds = [
        {
            "ratings": sizes[number - 1],
            "decided": decided(seen),
            "widest": _widest(seen),
            "failure": record.failures.get(number),
        }
        for number, seen in looks.items()
    ]
    against = record.against_claims
    return {"ratings": ratings, "of": whole, "rounds": rounds, "contrasts": contrasts, "against_claims": against}


def _widest(seen: Look) -> float | None:
    left = open_contrasts(seen)
    return float(seen.half_width[left].max()) if left.any() else None


def show(facts: Mapping[str, Any], console: Console) -> None:
    table = Table(title="Rounds of adaptive judging", title_justify="left")
    for name in ("round", "ratings", "contrasts decided", "widest open interval"):
        table.add_column(name, justify="right")
    for number, row in enumerate(facts["rounds"], start=1):
        widest = "" if row["widest"] is None else f"±{row['widest']:.2f}"
        table.add_row(str(number), f"{row['ratings']:,}", row["decided"], widest)
    console.print(table)
    console.print(markup(savings(facts)), soft_wrap=True)
    for verdict in dict.fromkeys(WORDS.values()):
        named = [
            f"{c['model']} on {c['dimension']} ({c['contrast']:+.2f} ±{c['half_width']:.2f})"
            for c in facts["contrasts"]
            if WORDS[c["verdict"]] == verdict
        ]
        if named:
            words = "cannot be decided by this design" if verdict == "open" else verdict
            console.print(f"{words}: {markup(', '.join(named))}", soft_wrap=True)
    if facts["against_claims"]:
        console.print(
            f"[yellow]note:[/] no claim can be made yet: {markup('; '.join(facts['against_claims']))}", soft_wrap=True
        )


def savings(facts: Mapping[str, Any]) -> str:
    """A sentence."""
    ratings, whole = facts["ratings"], facts["of"]
    asked = f"Adaptive judging asked for {ratings:,} of {whole:,} planned ratings ({100 * ratings / whole:.0f} %)"
    if facts["provisional"]:
        return f"{asked} until {facts['provisional']}: what it has decided is provisional."
    price = facts.get("price_saved")
    saved = f", and at most about {money(price, facts['currency'])}" if price else ""
    return f"{asked}: it saved {whole - ratings:,} ratings{saved}."
