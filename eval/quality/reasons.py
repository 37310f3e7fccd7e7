"""From verdicts on units to those on responses and records, with reasons that whoever writes them again can use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from dpeer.report.text import listing

HOLDS, FAILS, OPEN = "holds", "fails", "open"
COLUMNS = ["record", "response", "dimension", "passes", "fails", "raters", "scores", "verdict"]


class Unit(NamedTuple):
    """A response on a dimension, of which it claims that it `passes`; `fails`: what the response claims to fail."""

    record: str
    response: str
    dimension: str
    passes: bool
    fails: str
    raters: int
    scores: str
    verdict: str


def judged(units: pd.DataFrame, blind: Collection[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of responses (record, response, status, reason) and of records (record, mask, status, reason). `blind`:
    dimensions on which no verifier counts."""
    masks = dict(zip(units["record"], units["mask"], strict=True))
    mine: dict[tuple[str, str], list[Unit]] = defaultdict(list)
    for row in units[COLUMNS].itertuples(index=False):
        mine[row.record, row.response].append(Unit(*row))
    responses: list[tuple[str, str, str, str]] = []
    of_record: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for (record, response), theirs in mine.items():
        status, said = _worst([u.verdict for u in theirs]), list(reasons(response, theirs, blind))
        responses.append((record, response, status, "; ".join(said)))
        of_record[record].append((status, said))
    records = [
        (
            record,
            masks[record],
            _worst([s for s, _ in theirs]),
            "; ".join(dict.fromkeys(r for _, rs in theirs for r in rs)),
        )
        for record, theirs in of_record.items()
    ]
    return (
        pd.DataFrame(responses, columns=["record", "response", "status", "reason"]),
        pd.DataFrame(records, columns=["record", "mask", "status", "reason"]),
    )


def _worst(verdicts: Sequence[str]) -> str:
    return next((v for v in (FAILS, OPEN) if v in verdicts), HOLDS)


def reasons(response: str, units: Sequence[Unit], blind: Collection[str]) -> Iterator[str]:
    """E.g. "golden fails A", "reject_A does not fail A", "reject_T also fails E"."""
    also = " also" if units[0].fails else ""
    for passes, verb in ((False, " does not fail "), (True, f"{also} fails ")):
        if wrong := [u.dimension for u in units if u.verdict == FAILS and u.passes == passes]:
            yield f"{response}{verb}{listing(wrong)}"
    unknown = [u for u in units if u.verdict == OPEN]
    if unseen := [u.dimension for u in unknown if u.dimension in blind]:
        yield f"no verifier tells golden from reject on {listing(unseen)}"
    for u in unknown:
        if u.dimension in blind:
            continue
        if not u.raters:
            yield f"{response} has no rating that counts on {u.dimension}"
        else:
            what = f"{'also ' * bool(also)}fails" if u.passes else "does not fail"
            yield f"{response} perhaps {what} {u.dimension} (scores {u.scores})"
