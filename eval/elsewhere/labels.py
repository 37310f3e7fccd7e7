"""Which score a label means, and what to say of labels that mean none."""

from __future__ import annotations

import difflib
import shlex
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd

from dpeer.data.faults import excerpt
from dpeer.data.parse import Invalid
from dpeer.errors import ConfigError, DataError
from dpeer.eval.store.scores import (
    MANY,
    MOST_CATEGORIES,
    decimal,
    halves,
    missing_options,
    number,
    suspected,
    suspicion,
)

Labels = Mapping[str, int]


class ScoreError(DataError):
    """Labels that are no scores as they stand; `options` are those of a command that reads them, if one does."""

    def __init__(self, problem: str, options: Sequence[str] = ()) -> None:
        self.options = tuple(options)
        super().__init__(problem)


ALIKE = 0.8
"""An unknown label is warned of when it resembles a known one this much (difflib), or occurs in MANY rows; of
comparisons, where those lost may all be of one kind, every one is."""
SHOWN = 5


class Scale:
    """Which score a label means. `half_points`: labels are numbers, and the score is twice the number.
    `missing`: labels that mean no score."""

    def __init__(
        self,
        labels: Labels | Mapping[str, Labels] | None,
        half_points: bool = False,
        missing: Collection[str] = (),
    ) -> None:
        self.by_dimension: dict[str, dict[str, int]] | None = None
        self.common: dict[str, int] | None = None
        self.factor = 2 if half_points else 1
        self.missing = {key(str(label).strip()) for label in missing}
        self.between: Counter[Fraction] = Counter()
        """Numbers met that are no whole score."""
        if labels is None:
            return
        if half_points:
            raise ConfigError("half points are doubled, or labels say what each is worth: give one of the two")
        nested = {key: value for key, value in labels.items() if isinstance(value, Mapping)}
        if not nested:
            self.common = _scores(labels)
        elif len(nested) == len(labels):
            self.by_dimension = {str(d): _scores(inner) for d, inner in nested.items()}
        else:
            raise ConfigError("labels: give one mapping label -> score, or one per dimension, not a mixture")

    @property
    def labelled(self) -> bool:
        """Whether it was said which score each label means."""
        return self.common is not None or self.by_dimension is not None

    def known(self, dimension: str) -> dict[str, int] | None:
        """Labels of a dimension; None: any whole number."""
        return self.common if self.by_dimension is None else self.by_dimension.get(dimension, {})

    def absent(self, label: str) -> bool:
        return bool(self.missing) and key(label) in self.missing

    def score(self, label: str, dimension: str, column: str) -> int | None:
        if self.by_dimension is not None and dimension not in self.by_dimension:
            has = ", ".join(self.by_dimension)
            raise Invalid(column, f"there are no labels for dimension {dimension!r}; there are some for {has}")
        if (known := self.known(dimension)) is not None:
            return known.get(label, known.get(key(label)))
        given = number(label)
        if given is None:
            return None
        if (score := given * self.factor).denominator == 1:
            return int(score)
        self.between[given] += 1
        return None


def key(label: str) -> str:
    """Labels alike in this are one: numbers by their value ("3,5" and "3.50"), words without regard to case."""
    value = number(label)
    return label.casefold() if value is None else decimal(value)


def _scores(labels: Mapping[Any, Any]) -> dict[str, int]:
    """Label -> score, and its key -> score where that leaves no doubt."""
    if wrong := next((item for item in labels.items() if type(item[1]) is not int), None):
        raise ConfigError(f"labels: {wrong[0]!r} is mapped to {wrong[1]!r}; a score must be a whole number")
    if not labels:
        raise ConfigError("labels: the mapping is empty; give label -> score, or leave it out for whole numbers")
    exact = {str(label).strip(): score for label, score in labels.items()}
    meant: dict[str, set[int]] = {}
    for label, score in exact.items():
        meant.setdefault(key(label), set()).add(score)
    return {label: scores.pop() for label, scores in meant.items() if len(scores) == 1} | exact


def judge_labels(ratings: pd.DataFrame, scale: Scale, source: str) -> None:
    """Refuse a table without a single known label, or with points between whole scores; warn of unknown labels that
    look like an oversight, and of scores that look like codes for none."""
    if scale.between:
        problem, options = _between(ratings, scale)
        raise ScoreError(f"{source}: {problem}", options)
    lost = ratings[ratings["status"] == "unparsed"]
    unknown = Counter(zip(lost["dimension"], lost["error"], strict=True))
    if len(lost) == len(ratings):
        frequent = Counter(lost["error"]).most_common(SHOWN)
        listed = "; ".join(f"{excerpt(label)} in {count} rows" for label, count in frequent)
        raise DataError(
            f"{source}: none of the {len(ratings)} labels means a score: {listed}. Give the scores of the labels, or "
            "map another column to score"
        )
    _warn_unknown(unknown, scale, source, compared=ratings["other_model"].notna().any())
    if not scale.labelled and ratings["other_model"].isna().all():
        scores, counts = np.unique(ratings["score"].dropna().to_numpy(np.int64), return_counts=True)
        given = {Fraction(s, scale.factor): n for s, n in zip(scores.tolist(), counts.tolist(), strict=True)}
        if codes := suspected(given):
            told = suspicion(codes, len(ratings))
            warnings.warn(f"{source}: {told}. If it is one: {missing_options(codes)}", stacklevel=4)


def _between(ratings: pd.DataFrame, scale: Scale) -> tuple[str, list[str]]:
    """Why points between whole scores cannot be taken as they are, how they can, and the options of the first way."""
    met = ", ".join(f"{decimal(value)} ({n})" for value, n in scale.between.most_common(SHOWN))
    whole = {Fraction(int(score), scale.factor) for score in ratings["score"].dropna().unique()}
    steps = sorted({*whole, *scale.between})
    problem = (
        f"{scale.between.total():,} of {len(ratings):,} ratings lie between whole scores: {met}. The rating model "
        f"takes ordered categories, at most {MOST_CATEGORIES}, numbered by whole scores"
    )
    ways: list[str] = []
    options: list[str] = []
    if scale.factor == 1 and halves(steps) and 2 * (steps[-1] - steps[0]) < MOST_CATEGORIES:
        ways.append(f"--half-points (doubles every score: {decimal(steps[0])} to {decimal(steps[-1])} becomes "
                    f"{decimal(2 * steps[0])} to {decimal(2 * steps[-1])})")  # fmt: skip
        options = ["--half-points"]
    if len(steps) <= MOST_CATEGORIES:
        each = [word for rank, v in enumerate(steps, start=1) for word in ("--label", f"{decimal(v)}={rank}")]
        ways.append(f"a category for each: {shlex.join(each)}")
        options = options or each
    else:
        ways.append(f"{len(steps)} different values are too many: merge them with --label VALUE=SCORE for each")
    return f"{problem}. Give {' or '.join(ways)}", options


def _warn_unknown(unknown: Counter[tuple[str, str]], scale: Scale, source: str, compared: bool) -> None:
    suspects = []
    for (dimension, label), count in unknown.most_common():
        if scale.absent(label):
            continue
        near = _resembling(label, scale.known(dimension) or {})
        if near or compared or count >= MANY:
            suspects.append(f"{excerpt(label)} in {count} rows" + (f" (like {near!r})" if near else ""))
    if suspects:
        rest = f"; and {len(suspects) - SHOWN} more" if len(suspects) > SHOWN else ""
        advice = (
            "If they say who won, give --label for every label; if they say nothing, --missing"
            if compared
            else "If they mean a score, add them to the labels"
        )
        warnings.warn(
            f"{source}: unknown labels, kept as unparsed: {'; '.join(suspects[:SHOWN])}{rest}. {advice}",
            stacklevel=5,
        )


def _resembling(label: str, known: Iterable[str]) -> str | None:
    folded = {k.casefold(): k for k in known}
    if len(label) > 2 * max(map(len, folded), default=0):
        return None
    near = difflib.get_close_matches(label.casefold(), folded, 1, ALIKE)
    return folded[near[0]] if near else None


def sampled(labels: Sequence[str]) -> tuple[list[Fraction], int]:
    """Numbers among some labels, and how many labels say anything."""
    given = [label for label in labels if label]
    return [value for label in given if (value := number(label)) is not None], len(given)
