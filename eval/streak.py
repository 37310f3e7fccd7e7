"""Useless answers, one after another: the fault is then the recipe's or the judge's, not the texts'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]
GIVE_UP = 20
"""Conversations in a row without a usable answer that are borne with."""
OF_THE_TEXT = ("too_long", "filtered")
"""Ends of an answer that the text is to blame for, however many follow each other."""
REASONS, REASON = 3, 160


class Streak:
    """Holds rows back while nothing usable comes, so that a run that stops leaves them to be asked for again."""

    def __init__(self, usable: Callable[[Row], bool], conversation: Sequence[str]) -> None:
        self.usable, self.conversation = usable, conversation
        self.held: list[Row] = []
        self._conversations: set[tuple[str, ...]] = set()

    @property
    def broken(self) -> bool:
        return len(self._conversations) > GIVE_UP

    def passed(self, rows: Sequence[Row], finishes: Sequence[str]) -> list[Row]:
        """The rows that may be written now that these have come, in this order. Once broken, nothing more passes."""
        kept: list[Row] = []
        for row, finish in zip(rows, finishes, strict=True):
            if not self.broken and finish in OF_THE_TEXT:
                kept.append(row)
                continue
            self.held.append(row)
            if self.broken:
                continue
            if self.usable(row):
                kept += self.released()
            else:
                self._conversations.add(tuple(str(row[column]) for column in self.conversation))
        return kept

    def released(self) -> list[Row]:
        held, self.held = self.held, []
        self._conversations.clear()
        return held


def reasons(faults: Iterable[tuple[str, str | None]]) -> str:
    """The most frequent of (status, error), with their counts."""
    counted = Counter((status, (error or "no reason given")[:REASON]) for status, error in faults)
    kinds = Counter(status for status, _ in counted.elements())
    if len(counted) > REASONS:  # every text has its own words: then one example for each status
        examples: dict[str, str] = {}
        for (status, error), _ in counted.most_common():
            examples.setdefault(status, error)
        shown = [f"{n:,} {status}, such as: {examples[status]}" for status, n in kinds.most_common(REASONS)]
    else:
        shown = [f"{n:,} {status}: {error}" for (status, error), n in counted.most_common(REASONS)]
    return "; ".join(shown)


ADVICE = {
    "unparsed": "it does not give the JSON that is asked for",
    "low_mass": "it begins with something else: judging.mode=structured (of pairs: pairwise_read) reads JSON instead",
    "truncated": "raise judging.max_tokens, or reasoning_budget where it thinks first",
    "refused": "it declines: another judge, or another `role` in the rubric",
}


def advice(statuses: Iterable[str]) -> str:
    """What to do about the most frequent status."""
    found = Counter(statuses).most_common(1)
    return ADVICE.get(found[0][0], "put that right") if found else "put that right"
