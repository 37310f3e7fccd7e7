"""Rows in the layouts that people bring -> rows of the general form, and what could not be attributed, with reasons.

A pair belongs to dimension d if its responses differ in d alone. Where ratings say so, that is: by at least `gap` in d
and by at most `tie` in every other attribute. What is better in several ways at once is no evidence about one of them.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dpeer.config_sources import NONE, Map
from dpeer.data.cells import silent
from dpeer.data.conversation import Malformed, joined_prompt, pair_of, plain
from dpeer.data.faults import Fault, excerpt
from dpeer.data.parse import Invalid, blank
from dpeer.data.read import Row

ROUNDING = 1e-9
"""Ratings such as 4.3 and 3.3 differ by 1 only up to this."""
NOT_RATED = ("", "n/a", "na", "none", "null", "nan")

EMPTY = "a response is empty"
SAME = "both responses are the same"
UNNAMED = "no dimension is named"
SEVERAL = "several dimensions are named"
UNRATED = "a rating is missing"
EQUAL = "no rating differs by more than the tie"
CLOSE = "the ratings differ by less than the gap"
MIXED = "several ratings differ at once"
OTHER = "they differ only in what is no dimension"
ALONE = "the only response to its prompt"
REPEATED = "the response repeats another one to its prompt"
TIED = "neither is preferred"
PARTED = "the conversations part before the last turn"
MALFORMED = "the conversation is malformed"

Ratings = tuple[float | None, ...]


@dataclass(slots=True)
class Tally:
    """pairs: comparisons that the source states. skipped: reason -> how many of them are no edge, and where first."""

    pairs: int = 0
    skipped: dict[str, tuple[int, str]] = field(default_factory=dict)

    def skip(self, reason: str, where: str) -> None:
        count, first = self.skipped.get(reason, (0, where))
        self.skipped[reason] = count + 1, first

    @classmethod
    def of(cls, tallies: Iterable[Tally]) -> Tally:
        """Of all the rows of these, which follow each other."""
        whole = cls()
        for tally in tallies:
            whole.pairs += tally.pairs
            for reason, (count, where) in tally.skipped.items():
                before, first = whole.skipped.get(reason, (0, where))
                whole.skipped[reason] = before + count, first
        return whole


def mapped(rows: Iterable[Row], given: Map, tally: Tally) -> Iterator[Row | Fault]:
    """Rows of the general form, in the order of what they come from, with the columns that their texts come from; or
    the fault of a row. `given` is complete (see `presets.completed`)."""
    assert given.shape is not None
    yield from _SHAPES[given.shape](rows, given, tally)


def compare(a: Ratings, b: Ratings, gap: float, tie: float) -> tuple[int, int] | str:
    """(attribute, sign) of the only one in which two responses differ, by at least `gap` and with all others within
    `tie`; sign 1 where `a` is better. Else the reason. gap > tie."""
    apart: list[tuple[int, float]] = []
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        if x is None or y is None:
            return UNRATED
        if abs(x - y) > tie + ROUNDING:
            apart.append((k, x - y))
    if not apart:
        return EQUAL
    if len(apart) > 1:
        return MIXED
    ((k, difference),) = apart
    return (k, 1 if difference > 0 else -1) if abs(difference) >= gap - ROUNDING else CLOSE


def _pairs(rows: Iterable[Row], given: Map, tally: Tally) -> Iterator[Row | Fault]:
    assert given.golden and given.reject
    for row in rows:
        tally.pairs += 1
        try:
            dimension = _dimension(row, given)
            good, bad = _cell(row, given.golden), _cell(row, given.reject)
            pair = pair_of(row.fields, given, good, bad)
        except Invalid as invalid:
            yield _fault(row, invalid)
            continue
        except Malformed:
            tally.skip(MALFORMED, row.where)
            continue
        if pair is None:
            tally.skip(PARTED, row.where)
        elif isinstance(dimension, _Reason):
            tally.skip(dimension, row.where)
        elif reason := _useless(pair.golden, pair.reject):
            tally.skip(reason, row.where)
        else:
            columns = {"prompt": pair.column, "mask": given.dimension or "data.map.constant"}
            columns |= {"responses[0]": given.golden, "responses[1]": given.reject}
            yield _general(row, given, pair.prompt, [(pair.golden, None), (pair.reject, dimension)], columns)


def _scored(rows: Iterable[Row], given: Map, tally: Tally) -> Iterator[Row | Fault]:
    assert given.score is not None
    for row in rows:
        tally.pairs += 1
        try:
            score = _number(row, given.score, _cell(row, given.score))
            dimension = _dimension(row, given)
            if score is None or abs(score) < ROUNDING:
                tally.skip(TIED, row.where)
            elif abs(score) < given.gap - ROUNDING:
                tally.skip(CLOSE, row.where)
            elif isinstance(dimension, _Reason):
                tally.skip(dimension, row.where)
            else:
                yield from _ordered(row, given, dimension, score > 0, tally)
        except Invalid as invalid:
            yield _fault(row, invalid)
        except Malformed:
            tally.skip(MALFORMED, row.where)


def _labelled(rows: Iterable[Row], given: Map, tally: Tally) -> Iterator[Row | Fault]:
    """A response that is better in one dimension alone gives its edge: where two labels disagree a row becomes two
    records, where they agree none."""
    labels = given.labels or {}
    for row in rows:
        tally.pairs += len(labels)
        try:
            second = {dimension: _second(row, column) for dimension, column in labels.items()}
            wins = Counter(second.values())
            for dimension, best in second.items():
                if best is None:
                    tally.skip(TIED, row.where)
                elif wins[best] > 1:
                    tally.skip(MIXED, row.where)
                else:
                    yield from _ordered(row, given, dimension, best, tally)
        except Invalid as invalid:
            yield _fault(row, invalid)
        except Malformed:
            for _ in labels:
                tally.skip(MALFORMED, row.where)


def _second(row: Row, column: str) -> bool | None:
    """Whether a label says that the second response is better; None where it says nothing."""
    best = _number(row, column, _cell(row, column))
    if best is None or best == -1:
        return None
    if best not in (0, 1):
        raise Invalid(column, f"must be 0 or 1, the number of the better response, got {best:g}")
    return best == 1


def _ordered(row: Row, given: Map, dimension: str, second: bool, tally: Tally) -> Iterator[Row]:
    """The record of a pair whose second response is the better one, or not."""
    assert given.responses is not None
    better, worse = given.responses[::-1] if second else given.responses
    good, bad = plain(_cell(row, better), better), plain(_cell(row, worse), worse)
    if reason := _useless(good, bad):
        tally.skip(reason, row.where)
        return
    prompt, column = joined_prompt(row.fields, given)
    columns = {"prompt": column, "responses[0]": better, "responses[1]": worse, "mask": "data.map"}
    columns["mask"] = given.dimension or columns["mask"]
    yield _general(row, given, prompt, [(good, None), (bad, dimension)], columns)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One response to a prompt. column: where its text stands."""

    row: Row
    column: str
    text: object
    ratings: Ratings


def _rated_rows(rows: Iterable[Row], given: Map, tally: Tally) -> Iterator[Row | Fault]:
    """Rows of one response each; those with the same prompt are compared with each other."""
    groups: dict[str, list[_Candidate]] = defaultdict(list)
    prompts: dict[str, tuple[object, str]] = {}
    for row in rows:
        read = _rated(row, given, tally)
        if isinstance(read, Fault):
            yield read
        elif read is not None:
            prompt, column, candidates = read
            key = json.dumps(prompt, sort_keys=True, default=str)
            prompts.setdefault(key, (prompt, column))
            groups[key] += candidates
    for key, candidates in groups.items():
        yield from _stars(candidates, *prompts[key], given, tally)


def _completions(rows: Iterable[Row], given: Map, tally: Tally) -> Iterator[Row | Fault]:
    """Rows with a list of completions, which are compared with each other."""
    for row in rows:
        read = _rated(row, given, tally)
        if isinstance(read, Fault):
            yield read
        elif read is not None:
            prompt, column, candidates = read
            yield from _stars(candidates, prompt, column, given, tally)


def _rated(row: Row, given: Map, tally: Tally) -> tuple[object, str, list[_Candidate]] | Fault | None:
    """Prompt, its column, and the responses of a row; None for a malformed conversation, which is counted."""
    try:
        return *joined_prompt(row.fields, given), _candidates(row, given)
    except Invalid as invalid:
        return _fault(row, invalid)
    except Malformed:
        tally.pairs += 1
        tally.skip(MALFORMED, row.where)
        return None


def _candidates(row: Row, given: Map) -> list[_Candidate]:
    assert given.response is not None
    if given.completions is None:
        ratings = tuple(_number(row, c, _cell(row, c)) for c in given.rated.values())
        return [_Candidate(row, given.response, plain(_cell(row, given.response), given.response), ratings)]
    values = _cell(row, given.completions)
    if not isinstance(values, list):
        raise Invalid(given.completions, f"must be a list of completions, got {excerpt(values)}")
    return [_completion(row, given, k, value) for k, value in enumerate(values)]


def _completion(row: Row, given: Map, k: int, value: object) -> _Candidate:
    place = f"{given.completions}[{k}]"
    assert given.response is not None
    if not isinstance(value, dict) or given.response not in value:
        raise Invalid(place, f"must be an object with {given.response}, got {excerpt(value)}")
    ratings = tuple(_number(row, f"{place}.{path}", _inside(value, path)) for path in given.rated.values())
    column = f"{place}.{given.response}"
    return _Candidate(row, column, plain(value[given.response], column), ratings)


def _inside(value: object, path: str) -> object:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _stars(
    candidates: Sequence[_Candidate], prompt: object, column: str, given: Map, tally: Tally
) -> Iterator[Row | Fault]:
    """All pairs of responses to one prompt; a record per response that is better than others in one dimension each."""
    names = tuple(given.rated)
    candidates = _distinct(candidates, tally)
    if len(candidates) == 1:
        tally.pairs += 1
        tally.skip(ALONE, candidates[0].row.where)
    worse: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for i, a in enumerate(candidates):
        for j, b in enumerate(candidates[i + 1 :], i + 1):
            tally.pairs += 1
            found = _useless(a.text, b.text) or compare(a.ratings, b.ratings, given.gap, given.tie)
            if not isinstance(found, str) and given.dimensions is not None and names[found[0]] not in given.dimensions:
                found = OTHER
            if isinstance(found, str):
                tally.skip(found, b.row.where)
            else:
                better, other = (i, j) if found[1] > 0 else (j, i)
                worse[better].append((other, names[found[0]]))
    for better in sorted(worse):
        rejects = sorted(worse[better])
        responses = [(candidates[better].text, None), *((candidates[j].text, d) for j, d in rejects)]
        columns = {f"responses[{n}]": candidates[j].column for n, j in enumerate([better, *(j for j, _ in rejects)])}
        yield _general(candidates[better].row, given, prompt, responses, columns | {"prompt": column})


def _distinct(candidates: Sequence[_Candidate], tally: Tally) -> list[_Candidate]:
    """One of each text, as a second one would count its edges twice; its ratings are the means of all that it got."""
    alike: dict[object, list[_Candidate]] = defaultdict(list)
    for candidate in candidates:
        text = _said(candidate.text)
        if alike[text]:
            tally.pairs += 1
            tally.skip(REPEATED, candidate.row.where)
        alike[text].append(candidate)
    return [replace(same[0], ratings=_means([c.ratings for c in same])) for same in alike.values()]


def _means(ratings: Sequence[Ratings]) -> Ratings:
    """By attribute, of the ratings that there are; the same in any order."""
    given = ([x for x in column if x is not None] for column in zip(*ratings, strict=True))
    return tuple(math.fsum(xs) / len(xs) if xs else None for xs in given)


class _Reason(str):
    """Why a pair has no dimension."""


def _dimension(row: Row, given: Map) -> str | _Reason:
    if given.dimension is None:
        assert given.constant is not None
        return given.constant
    value = row.fields.get(given.dimension)
    if isinstance(value, str) and value.strip().startswith("["):
        value = _listed(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list) and len(value) > 1:
        return _Reason(SEVERAL)
    if blank(value) or value == []:
        return _Reason(UNNAMED)
    if not isinstance(value, str):
        raise Invalid(given.dimension, f"must be the name of a dimension, got {excerpt(value)}")
    return value.strip()


def _listed(text: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, list) else text


def _general(
    row: Row,
    given: Map,
    prompt: object,
    responses: Sequence[tuple[object, str | None]],
    columns: Mapping[str, str],
) -> Row:
    dimensions = sorted({d for _, d in responses if d is not None})
    fields: dict[str, object] = {
        "prompt": prompt,
        "mask": dimensions,
        "responses": [{"text": text, "fails": [d] if d is not None else []} for text, d in responses],
    }
    own = {"weight": given.weight, "tools": given.tools}
    fields |= {key: row.fields[column] for key, column in own.items() if column in row.fields and column != NONE}
    return Row(row.source, row.where, fields, dict(columns) | own)


def _cell(row: Row, column: str) -> object:
    if column not in row.fields:
        raise Invalid(column, f"is missing; the row has {excerpt(', '.join(map(str, row.fields)), 100)}")
    return row.fields[column]


def _number(row: Row, column: str, value: object) -> float | None:
    """A rating; None where there is none ("N/A" included)."""
    if value is None or (isinstance(value, str) and value.strip().lower() in NOT_RATED):
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise Invalid(column, f"must be a number, got {excerpt(value)}") from None
    if math.isinf(number):
        raise Invalid(column, f"must be a finite number, got {excerpt(value)}")
    return None if math.isnan(number) else number


def _useless(good: object, bad: object) -> str | None:
    if silent(good) or silent(bad):
        return EMPTY
    return SAME if _said(good) == _said(bad) else None


def _said(response: object) -> str:
    return response.strip() if isinstance(response, str) else json.dumps(response, sort_keys=True, default=str)


def _fault(row: Row, invalid: Invalid) -> Fault:
    return Fault(row.where, invalid.column, invalid.message)


_SHAPES: dict[str, Callable[[Iterable[Row], Map, Tally], Iterator[Row | Fault]]] = {
    "pair": _pairs,
    "scored pair": _scored,
    "labelled pair": _labelled,
    "rated rows": _rated_rows,
    "rated completions": _completions,
}
