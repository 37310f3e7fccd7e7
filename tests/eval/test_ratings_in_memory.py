"""Ratings in memory are checked as those of a file are, and become the same table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpeer.errors import ConfigError, DataError
from dpeer.eval.elsewhere import import_ratings, ratings_from
from dpeer.eval.irt.encode import encode
from dpeer.eval.questions.readout import read_structured
from dpeer.eval.store.schema import RATINGS

COLUMNS = ["model", "item", "judge", "dimension", "score"]
ROWS = [
    ("m1", "q1", "ann", "E", 4),
    ("m1", "q1", "bob", "E", 5),
    ("m2", "q1", "ann", "E", 2),
    ("m2", "q1", "bob", "E", 2),
]


def test_columns_with_our_names_need_no_mapping() -> None:
    table = ratings_from(pd.DataFrame(ROWS, columns=COLUMNS), humans=["ann"], families={"m1": "Qwen"})
    assert list(table.columns) == RATINGS.names
    assert table[COLUMNS].values.tolist() == [list(row) for row in ROWS]
    assert table["judge_family"].fillna("").tolist() == ["human", "", "human", ""]
    assert table["model_family"].fillna("").tolist() == ["qwen", "qwen", "", ""]
    assert table.equals(
        ratings_from([dict(zip(COLUMNS, row, strict=True)) for row in ROWS], humans=["ann"], families={"m1": "Qwen"})
    )
    assert len(encode(table)) == 4


@pytest.mark.parametrize("kind", ["int64", "float64", "Int64", "object", "string"])
def test_a_frame_and_its_file_are_the_same_table(tmp_path: Path, kind: Any) -> None:
    frame = pd.DataFrame(ROWS, columns=COLUMNS).astype({"score": kind})
    frame.to_parquet(tmp_path / "ratings.parquet")
    mapping = {name: name for name in COLUMNS}
    pd.testing.assert_frame_equal(ratings_from(frame), import_ratings(tmp_path / "ratings.parquet", mapping))


def test_missing_scores_are_rows_of_every_dtype() -> None:
    for missing in (None, float("nan"), pd.NA):
        frame = pd.DataFrame([*ROWS, ("m2", "q2", "bob", "E", missing)], columns=COLUMNS)
        for kind in ("object", "Int64", "float64"):
            last = ratings_from(frame.convert_dtypes().astype({"score": kind})).iloc[-1]
            assert (last["status"], last["error"]) == ("unparsed", "empty")


def test_judges_texts_in_memory() -> None:
    texts = ['{"rationale": "Cold.", "score": 1}', '{"rationale": "Warm.", "score": 3}', "Three, I think."]
    readings = [read_structured(text, "stop", (1, 2, 3)) for text in texts]
    rows = [
        {"model": "m", "item": k, "judge": "j", "score": r.score, "rationale": r.rationale}
        for k, r in enumerate(readings)
    ]
    table = ratings_from(rows, constants={"dimension": "warmth"})
    assert table["score"].fillna(-1).tolist() == [1, 3, -1] and table["status"].tolist() == ["ok", "ok", "unparsed"]
    assert table["rationale"].fillna("").tolist() == ["Cold.", "Warm.", ""] and set(table["dimension"]) == {"warmth"}
    assert table["item"].tolist() == ["0", "1", "2"]


def test_wide_frames_and_labels() -> None:
    frame = pd.DataFrame({"model": ["m"], "item": ["q"], "judge": ["j"], "score:A": ["yes"], "score:B": ["no"]})
    table = ratings_from(frame, labels={"yes": 1, "no": 0})
    assert dict(zip(table["dimension"], table["score"], strict=True)) == {"A": 1, "B": 0}


@pytest.mark.parametrize(
    ("table", "error", "words"),
    [
        ([], DataError, "holds no rows"),
        ([{"model": "m", "item": "q", "rater": "j", "score": 1}], ConfigError, "nothing is mapped to judge"),
        ([{"model": "m", "item": "q", "judge": "j"}], ConfigError, "nothing is mapped to score"),
        (
            [{"model": "m", "item": "", "judge": "j", "score": 1}],
            DataError,
            "row 1, column item: a name or id is needed",
        ),
        ([{"model": "m", "item": "q", "judge": "j", "score": "good"}], DataError, "none of the 1 labels means a score"),
    ],
)
def test_faults_are_those_of_the_importer(table: list[dict[str, Any]], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ratings_from(table)


def test_a_fault_names_its_row() -> None:
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    rows[2] |= {"sample": "x"}
    with pytest.raises(DataError, match="row 3, column sample"):
        ratings_from(json.loads(json.dumps(rows)), {**{name: name for name in COLUMNS}, "sample": "sample"})
