"""What constraints a data set can support: per dimension, which tolerance its held-out records could ever prove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpeer.config import Certificate
from dpeer.data.check import Split
from dpeer.objective.bounds import provable, records_for

CARVED = 0.1
"""Share of the training prompts that is held out, and another that moves the multipliers, where no file is given."""


@dataclass(frozen=True, slots=True)
class Support:
    """Of one dimension. prompts: distinct ones with an edge, as pairs of one prompt are one piece of evidence; heldout:
    those that the certificate would have; provable: the lowest tolerance that so many could prove, of a model without
    any loss; least, likely: held-out prompts that a proof of the tolerance needs of a model without loss, and of one
    whose loss is half of the tolerance."""

    dimension: str
    edges: int
    prompts: int
    heldout: int
    provable: float
    least: int
    likely: int | None
    verdict: str


def support(splits: Sequence[Split], tolerance: float) -> list[Support]:
    """A row per dimension, from the counts of the training split and, where there is one, of the held-out split."""
    if not splits:
        return []
    train, held = splits[0], splits[1] if len(splits) > 1 else None
    rows = []
    for d, edges in train.edges.items():
        prompts = train.prompts[d]
        heldout = held.prompts[d] if held else round(CARVED * prompts)
        rows.append(_row(d, edges, prompts, heldout, tolerance))
    return rows


def _row(dimension: str, edges: int, prompts: int, heldout: int, tolerance: float) -> Support:
    certificate = Certificate()
    bound, alpha = certificate.bound, 1 - certificate.confidence
    level = tolerance / 2
    least = _least(tolerance, bound, alpha)
    likely = records_for(tolerance - level, level * min(1.0, bound - level), bound)
    best = provable(heldout, bound, alpha)
    if not edges:
        verdict = "no pairs: nothing to train or to prove"
    elif round(CARVED * prompts) < 1:
        verdict = "too few prompts to move its multiplier"
    elif heldout < least:
        verdict = f"no model can be proven to meet {tolerance:g}"
    elif likely is not None and heldout < likely:
        verdict = f"{tolerance:g} can be proven of a loss far below it"
    else:
        verdict = f"{tolerance:g} can be proven"
    return Support(dimension, edges, prompts, heldout, best, least, likely, verdict)


def needs(row: Support, tolerance: float, *, carved: bool) -> str:
    """In words: how many held-out prompts a proof needs; `carved`: they are taken from the training prompts."""
    likely = "more than can be said" if row.likely is None else f"about {row.likely:,}"
    text = (
        f"A proof of {tolerance:g} needs {row.least:,} held-out prompts per dimension of a model without loss, "
        f"{likely} of one whose loss is half of it."
    )
    if not carved:
        return text
    held = f"{CARVED:.0%} of the prompts are held out, as there is no test split"
    return f"{text} {held}; data.heldout takes another share or a file."


def _least(tolerance: float, bound: float, alpha: float) -> int:
    """Fewest records that could prove a tolerance below the bound."""
    low, high = 0, 1
    while provable(high, bound, alpha) > tolerance:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if provable(middle, bound, alpha) > tolerance else (low, middle)
    return high
