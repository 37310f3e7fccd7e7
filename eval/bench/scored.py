"""From answers and ratings to what every item says of every metric: the table of outcomes. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import pandas as pd
import pyarrow as pa

from dpeer.errors import DataError
from dpeer.eval.bench.answers import Said
from dpeer.eval.bench.benchmark import Answers, Benchmark, Item, Scores, Values
from dpeer.eval.bench.judged import text_of
from dpeer.eval.store.parts import read_sealed
from dpeer.eval.store.schema import RATINGS

COLUMNS = ("benchmark", "metric", "judge", "model", "item", "sample", "repeat", "cluster", "group", "value")
BLANK = {"": ("",)}
"""Answers where none are known: those of an item that one rating says all of."""
RULE = "rule"
"""Stands for the judge where no judge is needed, and is the family of judges that are no model."""


@dataclass(slots=True)
class Outcomes:
    """Columns of rows: COLUMNS. lost: (benchmark, judge) -> items whose ratings are not all usable, over models,
    samples and repeats."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    lost: Counter[tuple[str, str]] = field(default_factory=Counter)
    rules: set[str] = field(default_factory=set)
    """Judges that are no model: their verdicts stand beside those of the others, and in their place where there are
    none."""
    unrated: set[tuple[str, str, str, str, int]] = field(default_factory=set)
    """(benchmark, judge, model, item, sample) behind `lost`."""

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=list(COLUMNS))

    def incomplete(self) -> set[tuple[str, str, str, int]]:
        """(benchmark, model, item, sample) for which a judge has no usable ratings in any repeat. The mean over the
        others would be one of other judges than elsewhere: such an item says nothing of the judges together."""
        said = {(row[0], *row[2:6]) for row in self.rows}
        lost = (key for key in self.unrated if key not in said and key[1] not in self.rules)
        return {(benchmark, model, item, sample) for benchmark, _, model, item, sample in lost}


def ratings_in(path: Path) -> pd.DataFrame:
    """A table that `dpeer ratings` or `dpeer judge` wrote. DataError where it is none."""
    try:
        return read_sealed(path, RATINGS).to_pandas()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0][:200]
        raise DataError(
            f"{path}: is no table of ratings ({reason}). `dpeer ratings import` or `dpeer ratings xstest` makes one"
        ) from None


def by_rule(benchmark: Benchmark, items: Mapping[str, Item], said: Said, into: Outcomes) -> None:
    """Outcomes of what needs no judge: all, or those of the rule that stands beside judges."""
    judge = benchmark.rules or RULE
    into.rules.add(judge)
    for (name, model, sample), answered in said.whole.items():
        if name == benchmark.name:
            values = [
                (items[own], benchmark.score(items[own], answers, benchmark.rule(items[own], answers)))
                for own, answers in answered.items()
            ]
            _add(into, benchmark, judge, model, sample, 0, values)


def by_judges(
    benchmark: Benchmark, items: Mapping[str, Item], said: Said | None, ratings: pd.DataFrame, into: Outcomes
) -> None:
    """Outcomes of ratings, those of the farm or of a table made elsewhere (`said` is None then: its texts are named by
    the item alone). An item of which a judge left a text without a usable score is lost for this judge."""
    into.rules |= set(ratings.loc[ratings["judge_family"] == RULE, "judge"])
    columns = ["judge", "repeat", "model", "sample", "item", "dimension", "status", "score"]
    scores: dict[tuple[str, int, str, int], dict[tuple[str, str], list[int | None]]] = {}
    for judge, repeat, model, sample, text, dimension, status, score in ratings[columns].itertuples(False, None):
        usable = int(score) if status == "ok" else None
        scores.setdefault((judge, repeat, model, sample), {}).setdefault((text, dimension), []).append(usable)
    for (judge, repeat, model, sample), given in scores.items():
        values = []
        for item, answers, needed in _needed(benchmark, items, said, model, sample, given):
            found = {key: given.get(text, [None]) for key, text in needed.items()}
            whole: Scores = {
                key: mean(s for s in told if s is not None) for key, told in found.items() if None not in told
            }
            if len(whole) < len(needed):
                into.lost[benchmark.name, judge] += 1
                into.unrated.add((benchmark.name, judge, model, item.id, sample))
            else:
                values.append((item, benchmark.score(item, answers, whole)))
        _add(into, benchmark, judge, model, sample, repeat, values)


def _needed(
    benchmark: Benchmark,
    items: Mapping[str, Item],
    said: Said | None,
    model: str,
    sample: int,
    given: Mapping[tuple[str, str], list[int | None]],
) -> Iterator[tuple[Item, Answers, dict[tuple[str, str], tuple[str, str]]]]:
    """Items with the ratings that they need: key of the scorer -> text and dimension of the table."""
    if said is None:
        for text, dimension in given:
            if text not in items:
                raise DataError(
                    f"{benchmark.name}: the ratings name the item {text!r}, none of the {len(items):,} items of "
                    "the data; take both from the same release"
                )
            asked = {d for j in benchmark.judged(items[text], BLANK) for d in j.dimensions}
            if dimension not in asked:
                raise DataError(
                    f"{benchmark.name}: the ratings of the item {text!r} are of the dimension {dimension!r}; this item "
                    f"is rated on {', '.join(sorted(asked))}"
                )
            yield items[text], {}, {("", dimension): (text, dimension)}
        return
    for own, answers in said.whole.get((benchmark.name, model, sample), {}).items():
        judged = benchmark.judged(items[own], answers)
        yield (
            items[own],
            answers,
            {(j.key, d): (text_of(own, j.key), d) for j in judged for d in j.dimensions},
        )


def _add(
    into: Outcomes,
    benchmark: Benchmark,
    judge: str,
    model: str,
    sample: int,
    repeat: int,
    values: Sequence[tuple[Item, Values]],
) -> None:
    into.rows += [
        (benchmark.name, metric, judge, model, item.id, sample, repeat, item.cluster or item.id, item.group, value)
        for item, said in benchmark.together(values)
        for metric, value in said.items()
    ]
