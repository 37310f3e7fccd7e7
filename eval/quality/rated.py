"""Ratings of a data set's responses as index arrays: what each claims on every active dimension, and who said what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dpeer.data.faults import excerpt
from dpeer.errors import DataError
from dpeer.eval.irt.types import Bools, Floats, Ints

GOLDEN, REJECT = "golden", "reject_"
COLUMNS = ("record", "response", "mask", "dimension", "judge", "score")


@dataclass(frozen=True, slots=True, eq=False)
class Rated:
    """`units`: record, response, mask ("A+T"), dimension, passes (claimed), fails (of the response, "" for golden),
    known (beyond doubt), a row per response and active dimension, rated or not. Of the N ratings: unit, judge and
    category (0 to K - 1, whole numbers and values between; a judge's several ratings of a unit are one, their mean)."""

    units: pd.DataFrame
    unit: Ints
    judge: Ints
    category: Floats
    judges: tuple[str, ...]
    dimensions: tuple[str, ...]
    scale: tuple[int, ...]

    def scores(self) -> Floats:
        """[U, J] categories; nan where there is no rating."""
        table = np.full((len(self.units), len(self.judges)), np.nan)
        table[self.unit, self.judge] = self.category
        return table

    @property
    def dimension(self) -> Ints:
        """[U] index of each unit's dimension."""
        return np.asarray(pd.Categorical(self.units["dimension"], self.dimensions).codes, dtype=np.int64)

    @property
    def passes(self) -> Bools:
        return np.asarray(self.units["passes"], dtype=bool)

    @property
    def known(self) -> Bools:
        return np.asarray(self.units["known"], dtype=bool)


def rated(table: pd.DataFrame, scale: Sequence[int] | None = None) -> Rated:
    """Check and index ratings.

    table: record, response (`golden` or `reject_D`; several of a kind as `golden#2`; `reject_D+E` fails both), mask (a
        list of dimensions, or "A+T"), dimension, judge, score (a number on the scale; missing: no usable rating)
        With a column `known` (bool): whether what its response claims is beyond doubt, as that of a check; with a
        column `where`: how errors call the row. A response without a row is none: give one without a score.
    scale: all possible scores; default: the whole numbers from the least to the greatest

    Raises DataError that names row and column.
    """
    if missing := [c for c in COLUMNS if c not in table]:
        raise DataError(f"ratings have no column {', '.join(missing)}; needed are {', '.join(COLUMNS)}")
    if table.empty:
        raise DataError("there are no ratings; let at least one judge rate every response on every active dimension")
    known = table.get("known", pd.Series(False, index=table.index))
    where = table.get("where", pd.Series([f"ratings, row {k}" for k in range(len(table))], index=table.index))
    table = table[list(COLUMNS)].assign(known=known.fillna(False).astype(bool), where=where).reset_index(drop=True)
    for column in ("record", "response", "dimension", "judge"):
        if (blank := table[column].isna()).any():
            raise _fault(blank, table, column, "a name is needed")
        table[column] = table[column].astype(str)
    table["mask"] = [_mask(mask) for mask in table["mask"]]
    _check(table)
    category, levels = _categories(table, scale)
    heads = table.drop_duplicates(["record", "response"])
    units = pd.DataFrame(
        [
            {"record": r.record, "response": r.response, "mask": r.mask, "dimension": d, "passes": d not in fails}
            | {"fails": "+".join(sorted(fails)), "known": r.known}
            for r in heads.itertuples(index=False)
            for fails in [failing(str(r.response), str(r.mask).split("+"))]
            for d in str(r.mask).split("+")
        ]
    )
    keys = ["record", "response", "dimension"]
    place = pd.MultiIndex.from_frame(units[keys]).get_indexer(pd.MultiIndex.from_frame(table[keys]))
    judges = tuple(sorted(table["judge"].unique()))
    usable = table.assign(unit=place, category=category).dropna(subset=["category"])
    mean = usable.groupby(["unit", "judge"], sort=True)["category"].mean().reset_index()
    return Rated(
        units,
        mean["unit"].to_numpy(np.int64),
        np.asarray(pd.Categorical(mean["judge"], judges).codes, dtype=np.int64),
        mean["category"].to_numpy(np.float64),
        judges,
        tuple(sorted(units["dimension"].unique())),
        levels,
    )


def failing(response: str, mask: Sequence[str]) -> frozenset[str]:
    """What a response claims to fail: nothing for `golden`, D for `reject_D`. DataError: another name."""
    kind, mark, number = response.rpartition("#")
    name = kind if mark and number.isdecimal() else response
    if name == GOLDEN:
        return frozenset()
    failed = name.removeprefix(REJECT)
    several = failed.split("+")
    if name.startswith(REJECT) and (failed in mask or set(several) <= set(mask)):
        return frozenset([failed] if failed in mask else several)
    raise DataError(f"a response is {GOLDEN} or {REJECT}D with D one of {', '.join(mask)}, given {excerpt(response)}")


def _mask(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple | np.ndarray) else str(value)


def _check(table: pd.DataFrame) -> None:
    strange = pd.Series([d not in m.split("+") for d, m in zip(table["dimension"], table["mask"], strict=True)])
    if strange.any():
        raise _fault(strange, table, "dimension", "is not in the mask")
    two = table.groupby("record")["mask"].transform("nunique") > 1
    if two.any():
        raise _fault(two, table, "mask", "its record has another mask in another row")
    for response, mask, where in table.drop_duplicates(["response", "mask"])[["response", "mask", "where"]].to_numpy():
        try:
            failing(response, mask.split("+"))
        except DataError as error:
            raise DataError(f"{where}, column response: {error}") from None


def _categories(table: pd.DataFrame, scale: Sequence[int] | None) -> tuple[Floats, tuple[int, ...]]:
    score = pd.to_numeric(table["score"], errors="coerce").astype(float)
    wrong = (score.isna() & table["score"].notna()) | np.isinf(score)
    if wrong.any():
        raise _fault(wrong, table, "score", "a number is needed, or nothing")
    if score.isna().all():
        raise DataError("none of the ratings has a score; the column `error` of the ratings may say why")
    low, high = (min(scale), max(scale)) if scale else (int(np.floor(score.min())), int(np.ceil(score.max())))
    outside = (score < low) | (score > high)
    if outside.any():
        raise _fault(outside, table, "score", f"lies outside of the scale, {low} to {high}")
    return (score - low).to_numpy(), tuple(range(low, max(high, low + 1) + 1))


def _fault(wrong: pd.Series, table: pd.DataFrame, column: str, message: str) -> DataError:
    at = int(np.flatnonzero(wrong)[0])
    return DataError(f"{table['where'].iloc[at]}, column {column}: {excerpt(table[column].tolist()[at])}: {message}")
