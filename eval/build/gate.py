"""What all ratings of a build say together: records that a model of severity, or people, do not uphold are left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from dpeer.eval.build.spec import BuildSpec
from dpeer.eval.build.verify import KNOWN, Verdicts, rubric_of
from dpeer.eval.build.walk import Candidate, Made
from dpeer.eval.quality.rated import Rated, rated
from dpeer.eval.quality.reasons import FAILS
from dpeer.eval.quality.review import answered, with_people, with_texts
from dpeer.eval.quality.verify import Verification, verify


def rated_of(verdicts: Verdicts, responses: Iterable[Candidate], checks: bool = True) -> Rated | None:
    """Ratings of responses, a record each as its slot, and of the checks, which are known beyond doubt; by those who
    may vote. None where no response is rated."""
    rows = list(_rows(verdicts, responses))
    if not any(row["score"] is not None for row in rows):
        return None
    rows += list(_known(verdicts)) if checks else []
    return rated(pd.DataFrame(rows), rubric_of(verdicts.spec).scale)


def _rows(verdicts: Verdicts, responses: Iterable[Candidate]) -> Iterator[dict[str, Any]]:
    for one in responses:
        common = {"record": one.slot.id, "response": one.kind, "mask": one.slot.mask_name, "known": False}
        for dimension, judge in verdicts.scales:
            if dimension in one.slot.mask:
                score = verdicts.scores.get((one.id, dimension, judge))
                yield common | {"dimension": dimension, "judge": judge, "score": score}


def _known(verdicts: Verdicts) -> Iterator[dict[str, Any]]:
    names = dict(zip(KNOWN, ("golden", "reject_{}"), strict=True))
    for dimension, judge in verdicts.scales:
        for k in range(len(verdicts.spec.dimensions[dimension].checks)):
            record = f"check-{dimension}-{k}"
            for kind, name in names.items():
                score = verdicts.scores.get((f"{record}-{kind}", dimension, judge))
                told = {"record": record, "response": name.format(dimension), "mask": dimension, "known": True}
                yield told | {"dimension": dimension, "judge": judge, "score": score}


def together(
    verdicts: Verdicts, made: Sequence[Made], sheets: Sequence[pd.DataFrame] = ()
) -> tuple[Verification | None, list[int]]:
    """All ratings of these records in one model, with the answers of people (`filled_in`), who have the last word; and
    of each sheet, how many of its answers are about other texts.

    Raises DataError that names row and column of an answer that does not fit its text.
    """
    given = rated_of(verdicts, [c for one in made for c in one.responses])
    if given is None:
        return None, [len(sheet) for sheet in sheets]
    units = with_texts(given.units[~given.known], texts_of(made))
    found, said = verify(given), [answered(sheet, units) for sheet in sheets]
    there = [one for one, _ in said if len(one)]
    return with_people(found, there) if there else found, [len(others) for _, others in said]


def refused(found: Verification | None) -> Mapping[str, str]:
    """Record -> which of its responses fail what they claim, in the words that drops are counted by."""
    if found is None:
        return {}
    wrong = found.units[found.units["verdict"] == FAILS]
    kinds = {
        str(record): f"{response}: {'fails' if passes else 'does not fail'} {dimension}"
        for record, response, dimension, passes in wrong.drop_duplicates("record")[
            ["record", "response", "dimension", "passes"]
        ].itertuples(index=False, name=None)
    }
    return kinds


def first_attempts(candidates: Iterable[Candidate]) -> list[Candidate]:
    """What generators wrote at first, golden and rejects of the same record, before anything was chosen."""
    return [c for c in candidates if c.attempt == 0 and (c.golden is None or c.golden.attempt == 0)]


def texts_of(made: Iterable[Made]) -> pd.DataFrame:
    """record, response, prompt and text, for people to read."""
    rows = [(one.slot.id, c.kind, c.prompt, c.text) for one in made for c in one.responses]
    return pd.DataFrame(rows, columns=["record", "response", "prompt", "text"])


def meanings(spec: BuildSpec) -> dict[str, str]:
    return {name: trait.definition for name, trait in spec.dimensions.items()}
