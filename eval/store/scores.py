"""What people write as a score: whole and half points, decimal commas, codes for a missing score. No table in sight."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

CODES = frozenset({-1, -7, -8, -9, -77, -88, -98, -99, -999, -9999, 77, 88, 97, 98, 99, 888, 999, 9999})
"""Numbers that surveys write where there is no answer."""
MOST_CATEGORIES = 11
"""Ordered categories that the rating model takes: 0 to 10 is the longest scale in common use."""
MANY = 20
"""Identical rows, or unknown labels, that are no accident any more."""
_NUMBER = re.compile(r"([+-]?[0-9]{1,9})(?:\.([0-9]+)|,([0-9]{1,2}))?")


def number(text: str) -> Fraction | None:
    """ "4", "4.0", "4.5" or "4,5"; None for anything else, "4,500" (4.5 or 4500?) included."""
    match = _NUMBER.fullmatch(text)
    return None if match is None else Fraction(f"{match[1]}.{match[2] or match[3] or 0}")


def decimal(value: Fraction) -> str:
    """E.g. "3.5", "4"."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):g}"


def halves(values: Iterable[Fraction]) -> bool:
    """Whether doubling makes whole numbers of all."""
    return all((2 * value).denominator == 1 for value in values)


def suspected(counts: Mapping[int, int] | Mapping[Fraction, int]) -> dict[int, int]:
    """Scores that look like codes for a missing one, with their counts: a usual code, apart from all other scores.

    A negative code must stand beside scores from 0 up, three at least; a positive one more than a scale's length above.
    """
    scores = {Fraction(score): n for score, n in counts.items()}
    codes = {int(score): n for score, n in scores.items() if score in CODES}
    rest = sorted(set(scores) - set(codes))
    if len(rest) < 2:
        return {}
    return {
        code: n
        for code, n in codes.items()
        if (code < 0 <= rest[0] and len(rest) > 2) or (code > rest[-1] + MOST_CATEGORIES)
    }


def suspicion(codes: Mapping[int, int], total: int) -> str:
    """The sentence for `suspected` scores."""
    listed = ", ".join(f"{code} in {n:,} of {total:,} ratings" for code, n in sorted(codes.items()))
    return f"{listed} looks like a code for a missing score, and counts as a score"


def missing_options(codes: Collection[int]) -> str:
    return " ".join(f"--missing {code}" for code in sorted(codes))


def pasted(rows: NDArray[np.int64], again: NDArray[np.bool_]) -> bool:
    """Whether rows [n], equal numbers for rows equal in every column, were pasted: those that rate the same thing
    `again` are all copies, in one block and in the order of what they copy, as a paste leaves them; and they are the
    whole table, or many. Copies in any other order are second ratings that came out alike."""
    order = np.argsort(rows, kind="stable")
    equal = rows[order][1:] == rows[order][:-1]
    at, before = order[1:][equal], order[:-1][equal]
    copies = len(at)
    if not copies or copies != int(again.sum()) or not again[at].all() or copies < min(MANY, len(rows) - copies):
        return False
    return bool(np.ptp(at) == copies - 1 and np.ptp(at - before) == 0)
