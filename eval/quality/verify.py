"""Which records hold, by judges' ratings of every response on every active dimension, adjusted for their severity.

A verifier counts on a dimension only if it rates golden above the reject of that dimension, within records, more often
than chance: one that passes everything proves nothing. What its ratings say is then measured from its own mark, see
`detect`, so that one that adds points to everything says no more than any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit

from dpeer.eval.audit.rates import Interval, share
from dpeer.eval.irt.types import Bools, Floats, Ints
from dpeer.eval.quality.detect import Detection, detect
from dpeer.eval.quality.rated import GOLDEN, Rated
from dpeer.eval.quality.reasons import FAILS, HOLDS, OPEN, judged
from dpeer.report.text import UNKNOWN, percent

SURE = 0.9
FAVOUR = 2 / 3
"""Probability, by the ratings alone, below which no claim holds however often such claims do: odds of two to one."""
CHANCE = 0.5
FEWEST = 4
"""Records of a dimension below which not even a verifier that is always right can be told from chance."""


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """Tables, one row each per

    units: record, response, mask, dimension, passes (claimed), fails (what the response claims to fail), raters, scores
        (of those that count, as text), p (that it passes, by the ratings alone), verdict, right (probability that the
        claim is)
    responses: record, response, status, reason
    records: record, mask, status, reason; of a record that holds, every response holds
    verifiers: judge, dimension, n, separates (with _low, _high), counts, mark, leniency (points by which its mark lies
        above the mean of the others), note
    kinds: claim ("golden", "reject_T"), dimension, n, passes (claimed), failing (with _low, _high): the share of such
        responses that fails

    status and verdict: `holds` (as claimed), `fails` (the contrary), `open` (the ratings do not decide it, or none
    counts). wrong: how many of the records that hold are expected not to, given the shares of wrong claims. together:
    correlation of judges' errors on a response.
    """

    units: pd.DataFrame
    responses: pd.DataFrame
    records: pd.DataFrame
    verifiers: pd.DataFrame
    kinds: pd.DataFrame
    notes: tuple[str, ...]
    wrong: float
    together: float

    @property
    def holding(self) -> int:
        return int((self.records["status"] == HOLDS).sum())

    def reasons(self) -> dict[str, dict[str, str]]:
        """Of each record that does not hold: response -> what is wrong with it, for whoever writes it again."""
        bad = self.responses[self.responses["status"] != HOLDS]
        return {
            str(r): dict(zip(b["response"], b["reason"], strict=True)) for r, b in bad.groupby("record", sort=False)
        }


def verify(given: Rated, sure: float = SURE) -> Verification:
    """Verdicts on units, responses and records. `sure`: probability from which on a verdict is given, above 1/2."""
    scores = given.scores()
    dimension = given.dimension
    gate, counts = _gate(given, scores)
    counted = np.where(counts[:, dimension].T, scores, np.nan)
    kinds, group = _kinds(given)
    sizes = (len(given.dimensions), len(kinds))
    found = detect(counted, dimension, given.passes, given.known, group, len(given.scale), sizes)
    p = expit(found.evidence)
    said, right = (np.where(given.passes, chance, 1 - chance) for chance in (p, found.passing))
    raters = (~np.isnan(counted)).sum(axis=1)
    verdict = np.select([raters == 0, (right >= sure) & (said >= FAVOUR), right < 0.5], [OPEN, HOLDS, FAILS], OPEN)
    units = given.units.assign(raters=raters, scores=_written(given, counted), p=p, verdict=verdict)
    units = units.assign(right=right)[~given.known].drop(columns="known")
    blind = {d for k, d in enumerate(given.dimensions) if not counts[:, k].any()}
    responses, records = judged(units, blind)
    verifiers = _verifiers(given, gate, counts, found)
    return Verification(
        units,
        responses,
        records,
        verifiers,
        _shares(given, kinds, group, found, raters),
        tuple(_notes(given, verifiers, blind, found)),
        expected(units, records),
        found.together,
    )


def expected(units: pd.DataFrame, records: pd.DataFrame) -> float:
    """How many of the records that hold are expected to make a wrong claim."""
    sound = units.groupby("record", sort=False)["right"].prod()
    return float((1 - sound[records.loc[records["status"] == HOLDS, "record"]]).sum())


def separation(given: Rated, scores: Floats) -> list[tuple[str, str, int, Interval]]:
    """Judge, dimension, records, and the share of records in which the judge rates golden above the reject that fails
    the dimension alone; a tie counts as half. Of all records, or of those known beyond doubt if these say more."""
    frame = given.units.assign(row=np.arange(len(given.units)))
    golden = frame[frame["fails"] == ""].groupby(["record", "dimension"])["row"].first()
    own = frame[frame["fails"] == frame["dimension"]]
    found = []
    better = golden.reindex(pd.MultiIndex.from_frame(own[["record", "dimension"]])).to_numpy(float)
    own, better = own[~np.isnan(better)], better[~np.isnan(better)].astype(np.int64)
    margin = scores[better] - scores[own["row"].to_numpy(np.int64)]
    records, known = pd.factorize(own["record"])[0], own["known"].to_numpy(bool)
    for j, judge in enumerate(given.judges):
        for d in given.dimensions:
            at = (own["dimension"] == d).to_numpy() & ~np.isnan(margin[:, j])
            told = [
                (int(some.sum()), share((np.sign(margin[some, j]) + 1) / 2, records[some])) for some in (at, at & known)
            ]
            n, interval = max(told, key=lambda t: (t[0] > 0, t[1].low))
            found.append((judge, d, n, interval))
    return found


def _gate(given: Rated, scores: Floats) -> tuple[list[tuple[str, str, int, Interval]], Bools]:
    """What separates, and [J, D] whether a judge counts on a dimension."""
    found = separation(given, scores)
    counts = np.array([n > 0 and i.low > CHANCE for _, _, n, i in found], dtype=bool)
    return found, counts.reshape(len(given.judges), len(given.dimensions))


def _kinds(given: Rated) -> tuple[list[tuple[str, str]], Ints]:
    """(claim, dimension) of units whose claims are right alike, and [U] the number of each unit's."""
    claim = np.where(given.units["fails"] == "", GOLDEN, "reject_" + given.units["fails"])
    pairs = list(zip(claim.tolist(), given.units["dimension"].tolist(), strict=True))
    names = sorted(set(pairs), key=lambda k: (k[0] != GOLDEN, *k))
    at = {name: k for k, name in enumerate(names)}
    return names, np.array([at[pair] for pair in pairs], dtype=np.int64)


def _written(given: Rated, scores: Floats) -> list[str]:
    low = given.scale[0]
    return [", ".join(UNKNOWN if np.isnan(s) else f"{s + low:.3g}" for s in row) for row in scores]


def _verifiers(
    given: Rated, gate: Sequence[tuple[str, str, int, Interval]], counts: Bools, found: Detection
) -> pd.DataFrame:
    mark = np.where(counts, found.mark + given.scale[0], np.nan)
    others = counts.sum(axis=0) - counts
    rest = np.nansum(mark, axis=0) - np.nan_to_num(mark)
    with np.errstate(invalid="ignore", divide="ignore"):
        leniency = np.where(others > 0, mark - rest / others, np.nan)
    rows = []
    for k, (judge, dimension, n, separates) in enumerate(gate):
        at = divmod(k, len(given.dimensions))
        rows.append(
            {
                "judge": judge,
                "dimension": dimension,
                "n": n,
                "separates": separates.rate,
                "separates_low": separates.low,
                "separates_high": separates.high,
                "counts": bool(counts[at]),
                "mark": mark[at],
                "leniency": leniency[at],
                "note": "" if counts[at] else _why_not(n, separates),
            }
        )
    return pd.DataFrame(rows)


def _why_not(n: int, separates: Interval) -> str:
    if n < FEWEST:
        return f"too few records to tell ({n})"
    if separates.high < CHANCE:
        return "rates rejects above golden"
    return "does not separate"


def _shares(
    given: Rated, kinds: Sequence[tuple[str, str]], group: Ints, found: Detection, raters: Ints
) -> pd.DataFrame:
    records = pd.factorize(given.units["record"])[0]
    rows = []
    for g, (claim, dimension) in enumerate(kinds):
        at = (group == g) & (raters > 0) & ~given.known
        failing = share(1 - found.passing[at], records[at])
        passes = bool(given.passes[group == g][0])
        rows.append(
            {"claim": claim, "dimension": dimension, "n": int(at.sum()), "passes": passes, "failing": failing.rate}
            | {"failing_low": failing.low, "failing_high": failing.high}
        )
    return pd.DataFrame(rows)


def _notes(given: Rated, verifiers: pd.DataFrame, blind: set[str], found: Detection) -> Iterator[str]:
    for judge, mine in verifiers.groupby("judge", sort=False):
        out = mine[~mine["counts"]]
        for note, rows in out.groupby("note", sort=False):
            seen = ", ".join(_seen(r) for r in rows.itertuples())
            yield f"Verifier {judge} {note} on {seen}: its ratings there count for nothing."
    for d in sorted(blind):
        yield (
            f"No verifier tells golden from reject_{d} on {d}, so no record with {d} is verified: either these rejects "
            "do not fail it, or the verifiers do not see it. Read some, and ask another verifier or sharpen the rubric."
        )
    if not found.converged:
        yield "The verifiers' marks have not settled: verdicts near the border may change with more ratings."
    if len(given.judges) == 1:
        yield (
            "One verifier: what it gets wrong in the same way for golden and rejects cannot be seen. A second one, or "
            "people (see the review file), would show it."
        )


def _seen(row: Mapping[str, object]) -> str:
    return f"{row.dimension} (golden above reject in {percent(row.separates)} of {row.n})"  # type: ignore[attr-defined]
