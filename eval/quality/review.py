"""A sheet for people: out, a row per response and dimension in an order that tells nothing; and back, with answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.errors import DataError
from dpeer.escape import csv_cell
from dpeer.eval.elsewhere.sheets import stream
from dpeer.eval.irt.agreement import kappa_of
from dpeer.eval.irt.types import Bools, Floats, Ints
from dpeer.eval.quality.rated import Rated
from dpeer.eval.quality.reasons import FAILS, HOLDS, OPEN, judged
from dpeer.eval.quality.verify import Verification, expected
from dpeer.eval.store.parts import content_id
from dpeer.files import write_bytes

HEADER = ("id", "dimension", "meaning", "prompt", "response", "passes", "note")
YES = ("yes", "y", "1", "true", "pass", "passes", "ja")
NO = ("no", "n", "0", "false", "fail", "fails", "nein")
BLANK = ("", "?")
BOOTSTRAPS = 2000
KEYS = ["record", "response", "dimension"]


def sheet(
    found: Verification, texts: pd.DataFrame, meaning: Mapping[str, str], most: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Rows for a person to fill: HEADER, `passes` and `note` blank. Up to half of them are units that ratings leave
    open; the others are drawn at random from those with a verdict, so that agreement can be told.

    texts: record, response, prompt, text. meaning: what each dimension is, in a sentence.
    """
    units = with_texts(found.units, texts)
    units = units.assign(id=ids(units), lot=[content_id(seed=seed, id=i) for i in ids(units)]).sort_values("lot")
    undecided, decided = units[units["verdict"] == OPEN], units[units["verdict"] != OPEN]
    some = undecided.head(max(most // 2, most - len(decided)))
    chosen = pd.concat([some, decided.head(most - len(some))]).sort_values("lot")
    described = chosen["dimension"].map(lambda d: meaning.get(d, ""))
    made = chosen.assign(meaning=described, response=chosen["text"], passes="", note="")
    return made[list(HEADER)].reset_index(drop=True)


def write_sheet(rows: pd.DataFrame, path: Path) -> Path:
    """As CSV that spreadsheets open with the right letters; it replaces no file, which may be half filled."""
    if path.exists():
        raise DataError(f"{path} exists, and may hold answers; move it away or name another file")
    text = rows.map(csv_cell).to_csv(index=False)
    write_bytes(path, text.encode("utf-8-sig"))
    return path


def with_texts(units: pd.DataFrame, texts: pd.DataFrame) -> pd.DataFrame:
    """Units with `prompt` and `text` of their responses. DataError: one has none."""
    units = units.merge(texts[["record", "response", "prompt", "text"]], on=["record", "response"], how="left")
    if (lost := units["text"].isna()).any():
        first = units[lost].iloc[0]
        raise DataError(f"record {first.record} has no text of {first.response}; give the data that were rated")
    return units


def ids(units: pd.DataFrame) -> list[str]:
    """Of each unit and what is read there, as an answer holds for that text alone; an id begins with a letter, as a
    spreadsheet would take 12e45 for a number."""
    rows = units[[*KEYS, "prompt", "text"]].itertuples(index=False)
    return [
        f"u{content_id(record=str(r), response=str(a), dimension=str(d), prompt=p, text=t)[:12]}"
        for r, a, d, p, t in rows
    ]


def read_sheet(path: Path, units: pd.DataFrame) -> pd.DataFrame:
    """What a person has said: record, response, dimension, passes (bool), note; rows that are left blank are none.

    units: with their texts, see `with_texts`. Raises DataError that names file, row and column: an unknown or repeated
    id, a dimension that is not that of the id, an answer that is neither yes nor no; or when nothing is filled in.
    """
    said, others = answered(filled_in(path), units)
    if len(others):
        faults = [
            Fault(where, "id", f"{excerpt(name)} is no row of this data set's sheet")
            for name, where in others[["id", "where"]].itertuples(index=False)
        ]
        raise data_error(str(path), faults)
    return said


def answered(sheet: pd.DataFrame, units: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """record, response, dimension, passes and note of the answers of a sheet that are about these units, with their
    texts; and the rows that are about others. DataError: a dimension is not that of its id."""
    known = dict(zip(ids(units), units[KEYS].itertuples(index=False, name=None), strict=True))
    there = sheet["id"].isin(known)
    mine, others = sheet[there].reset_index(drop=True), sheet[~there]
    found = pd.DataFrame([known[name] for name in mine["id"]], columns=KEYS).astype(str)
    if (wrong := found["dimension"] != mine["dimension"]).any():
        faults = [
            Fault(row.where, "dimension", f"{excerpt(row.dimension)}, but id {row.id} is about {dimension}")
            for row, dimension in zip(mine[wrong].itertuples(), found.loc[wrong, "dimension"], strict=True)
        ]
        raise data_error("the answers", faults)
    return found.assign(passes=mine["passes"], note=mine["note"]), others


def filled_in(path: Path) -> pd.DataFrame:
    """The rows of a sheet that are answered: id, dimension, passes (bool), note, where.

    Raises DataError that names file, row and column: a repeated id, an answer that is neither yes nor no; or when
    nothing is filled in.
    """
    faults: list[Fault] = []
    seen: dict[str, str] = {}
    said = []
    for row in stream(path):
        cells = {str(k).strip().casefold(): _text(v) for k, v in row.fields.items()}
        if lacking := [c for c in ("id", "dimension", "passes") if c not in cells]:
            raise DataError(f"{path}: has no column {lacking[0]}; keep the columns of the sheet that was written")
        name, answer = cells["id"], cells["passes"].casefold()
        if name in seen:
            faults.append(Fault(row.where, "id", f"{excerpt(name)} stands in {seen[name]} too"))
        elif answer not in (*YES, *NO, *BLANK):
            faults.append(
                Fault(
                    row.where, "passes", f"{excerpt(cells['passes'])} is neither yes nor no; leave it blank if in doubt"
                )
            )
        elif answer not in BLANK:
            said.append((name, cells["dimension"], answer in YES, cells.get("note", ""), row.where))
        seen.setdefault(name, row.where)
    if faults:
        raise data_error(str(path), faults)
    if not said:
        raise DataError(f"{path}: no row is filled in; write yes or no into the column passes")
    return pd.DataFrame(said, columns=["id", "dimension", "passes", "note", "where"])


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip().removeprefix("'")


def together(answers: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Several people's answers as one: record, response, dimension, yes, people."""
    every = pd.concat(answers, ignore_index=True)
    return every.groupby(KEYS, sort=False)["passes"].agg(yes="sum", people="size").reset_index()


def with_people(found: Verification, answers: Sequence[pd.DataFrame]) -> Verification:
    """Verdicts where people have the last word: that of more than half; where they are divided, it is open."""
    said = found.units.merge(together(answers), on=KEYS, how="left")
    asked = said["people"].notna().to_numpy()
    share = (said["yes"] / said["people"]).to_numpy(float)
    person = np.where(share == 0.5, OPEN, np.where((share > 0.5) == said["passes"].to_numpy(bool), HOLDS, FAILS))
    words = [
        f"{scores}; people {yes:.0f} of {people:.0f} yes" if known else scores
        for scores, yes, people, known in zip(said["scores"], said["yes"], said["people"], asked, strict=True)
    ]
    units = found.units.assign(
        verdict=np.where(asked, person, found.units["verdict"]),
        scores=words,
        right=np.where(asked, person == HOLDS, found.units["right"]).astype(float),
        raters=np.where(asked, np.maximum(found.units["raters"], 1), found.units["raters"]),
    )
    blind = set(units["dimension"]) - set(found.verifiers.loc[found.verifiers["counts"], "dimension"])
    responses, records = judged(units, blind)
    return replace(found, units=units, responses=responses, records=records, wrong=expected(units, records))


def changed(before: Verification, after: Verification) -> pd.DataFrame:
    """record, mask, before, after, reason: records whose status people have changed."""
    both = before.records[["record", "mask", "status"]].merge(
        after.records, on=["record", "mask"], suffixes=("", "_after")
    )
    moved = both[both["status"] != both["status_after"]]
    named = moved.rename(columns={"status": "before", "status_after": "after"})
    return named[["record", "mask", "before", "after", "reason"]].reset_index(drop=True)


def agreement(
    found: Verification, answers: Sequence[pd.DataFrame], given: Rated | None = None, seed: int = 0
) -> pd.DataFrame:
    """How far people and verifiers agree on what passes: verifier ("" for all of them together; with `given`, the
    ratings that were verified, each too, which says yes above its mark), dimension ("" for all), units, exact, kappa
    (with _low, _high: bootstrap over records), lenient (share of units failed by people that verifiers pass), severe
    (the reverse).

    The sheet has more open units than the data: units are weighted by how many stand for each with the same verdict.
    Units on which people are divided, or which the verifier has not rated, are left out.
    """
    votes = {"": np.where(found.units["raters"] > 0, (found.units["p"] > 0.5).astype(float), np.nan)}
    if given is not None:
        votes |= _votes(found, given)
    said = found.units.assign(**{f"by {name}": vote for name, vote in votes.items()}).merge(together(answers), on=KEYS)
    said = said[said["yes"] * 2 != said["people"]]
    sizes, asked = found.units["verdict"].value_counts(), said["verdict"].value_counts()
    weight = said["verdict"].map(sizes / asked).to_numpy(float)
    person, record = (said["yes"] * 2 > said["people"]).to_numpy(), pd.factorize(said["record"])[0]
    rows = []
    for verifier in votes:
        vote = said[f"by {verifier}"].to_numpy(float)
        for dimension in ("", *sorted(said["dimension"].unique())):
            at = ((said["dimension"] == dimension) | (dimension == "")).to_numpy() & ~np.isnan(vote)
            if at.any():
                told = _agreed(person[at], vote[at], weight[at], record[at], seed)
                rows.append({"verifier": verifier, "dimension": dimension} | told)
    return pd.DataFrame(rows)


def _votes(found: Verification, given: Rated) -> dict[str, Floats]:
    """Of each judge, [U] 1 above its mark and 0 below, nan where it does not count or has not rated."""
    marks = found.verifiers.pivot(index="judge", columns="dimension", values="mark")
    marks = marks.loc[list(given.judges), list(given.dimensions)].to_numpy(float) - given.scale[0]
    scores, mark = given.scores()[~given.known], marks[:, given.dimension[~given.known]].T
    told = np.where(np.isnan(scores) | np.isnan(mark), np.nan, (scores > mark).astype(float))
    return dict(zip(given.judges, told.T, strict=True))


def _agreed(person: Bools, verifier: Floats, weight: Floats, record: Ints, seed: int) -> dict[str, float]:
    """From answers [N] of 0 and 1."""
    names, place = np.unique(record, return_inverse=True)
    per_record = np.zeros((len(names), 2, 2))
    np.add.at(per_record, (place, person.astype(int), verifier.astype(int)), weight)
    table = per_record.sum(axis=0)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), BOOTSTRAPS)
    cost = 1 - np.eye(2)
    kappas = kappa_of(np.tensordot(drawn.astype(float), per_record, axes=1), cost)
    known = kappas[np.isfinite(kappas)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) > BOOTSTRAPS / 2 else (np.nan, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        wrong = table / table.sum(axis=1, keepdims=True)
    return {
        "units": len(person),
        "exact": float(np.trace(table) / table.sum()),
        "kappa": float(kappa_of(table, cost)),
        "kappa_low": float(low),
        "kappa_high": float(high),
        "lenient": float(wrong[0, 1]),
        "severe": float(wrong[1, 0]),
    }
