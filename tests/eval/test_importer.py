"""Ratings made elsewhere become rows of the ratings table, none of them lost."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from dpeer.errors import ConfigError, DataError
from dpeer.eval.elsewhere.importer import import_ratings
from dpeer.eval.irt.encode import encode
from dpeer.eval.store.schema import RATINGS

LONG = {"system": "model", "question": "item", "rater": "judge", "aspect": "dimension", "verdict": "score"}
LABELS = {"bad": 1, "fair": 2, "good": 3}
ROWS = [
    {"system": "m1", "question": "q1", "rater": "ann", "aspect": "tone", "verdict": "good"},
    {"system": "m1", "question": "q1", "rater": "bob", "aspect": "tone", "verdict": "fair"},
    {"system": "m2", "question": "q1", "rater": "ann", "aspect": "tone", "verdict": "bad"},
    {"system": "m2", "question": "q2", "rater": "bob", "aspect": "facts", "verdict": "good"},
]


def write(folder: Path, rows: list[dict[str, Any]], suffix: str = "jsonl") -> Path:
    path = folder / f"ratings.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif suffix == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_long_form(tmp_path: Path, suffix: str) -> None:
    table = import_ratings(write(tmp_path, ROWS, suffix), LONG, LABELS, humans=["ann", "bob"])
    assert list(table.columns) == RATINGS.names
    assert list(table["score"]) == [3, 2, 1, 3]
    assert list(table["model"]) == ["m1", "m1", "m2", "m2"]
    assert list(table["dimension"]) == ["tone", "tone", "tone", "facts"]
    assert set(table["judge_family"]) == {"human"} and set(table["mode"]) == {"import"}
    assert set(table["status"]) == {"ok"} and table["rating_id"].is_unique
    assert table["response_id"].nunique() == 3, "a response is a model's answer to an item"
    stored = pa.Table.from_pandas(table, schema=RATINGS, preserve_index=False)
    assert stored.column("score").to_pylist() == [3, 2, 1, 3]


def test_the_table_can_be_fitted(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "verdict": "no idea"}]
    ratings = encode(import_ratings(write(tmp_path, rows), LONG, LABELS))
    assert len(ratings) == 4 and ratings.scale == (1, 2, 3)
    assert ratings.statuses == {"ok": 4, "unparsed": 1}
    assert not ratings.own_family.any() and not ratings.own_model.any()


def test_wide_form_gives_the_ratings_of_the_long_form(tmp_path: Path) -> None:
    wide = [
        {"model": "m1", "q": "q1", "who": "ann", "tone": "good", "facts": "bad"},
        {"model": "m2", "q": "q1", "who": "ann", "tone": "fair", "facts": "good"},
    ]
    mapping = {"model": "model", "q": "item", "who": "judge", "tone": "score:tone", "facts": "score:facts/sources"}
    table = import_ratings(write(tmp_path, wide), mapping, LABELS)
    found = table[["model", "dimension", "criterion", "score"]].values.tolist()
    assert found == [
        ["m1", "tone", "overall", 3],
        ["m1", "facts", "sources", 1],
        ["m2", "tone", "overall", 2],
        ["m2", "facts", "sources", 3],
    ]
    melted = [
        {"model": r["model"], "q": r["q"], "who": r["who"], "d": d, "c": c, "v": r[d]}
        for r in wide
        for d, c in (("tone", "overall"), ("facts", "sources"))
    ]
    path = write(tmp_path, melted, "csv")
    names = {"model": "model", "q": "item", "who": "judge", "d": "dimension", "c": "criterion", "v": "score"}
    pd.testing.assert_frame_equal(import_ratings(path, names, LABELS), table)


def test_labels_per_dimension(tmp_path: Path) -> None:
    turned = {"bad": 3, "fair": 2, "good": 1}
    path = write(tmp_path, ROWS)
    table = import_ratings(path, LONG, {"tone": LABELS, "facts": turned})
    assert list(table["score"]) == [3, 2, 1, 1]
    with pytest.raises(DataError, match=r"row 4, column verdict.*no labels for dimension 'facts'.*tone"):
        import_ratings(path, LONG, {"tone": LABELS})


def test_whole_numbers_need_no_labels(tmp_path: Path) -> None:
    values = [4, "5", 3.0, "2.0", " 1 ", None, "", "x", "4,500", True, "1e3", "٣", 10**12]
    rows = [{**ROWS[0], "question": f"q{n}", "verdict": value} for n, value in enumerate(values)]
    table = import_ratings(write(tmp_path, rows), LONG)
    assert list(table["score"].fillna(-9)) == [4, 5, 3, 2, 1] + [-9] * 8
    assert list(table["status"]) == ["ok"] * 5 + ["unparsed"] * 8
    assert list(table["error"].fillna("-"))[:9] == ["-"] * 5 + ["empty", "empty", "x", "4,500"]


def test_unknown_labels_are_kept_with_their_text(tmp_path: Path) -> None:
    said = "I'm sorry, but I can't\x00 assist \ud800"
    table = import_ratings(write(tmp_path, [*ROWS, {**ROWS[3], "verdict": said}]), LONG, LABELS)
    assert list(table["status"]) == ["ok"] * 4 + ["unparsed"]
    assert table["error"].iloc[-1] == "I'm sorry, but I can't␀ assist \ufffd"
    assert pd.isna(table["score"].iloc[-1])


def test_misspelt_and_frequent_labels_are_warned_of_with_counts(tmp_path: Path) -> None:
    rows = [*ROWS, *[{**ROWS[0], "verdict": "Goood"}] * 3, *[{**ROWS[0], "verdict": "n/a"}] * 20]
    with pytest.warns(UserWarning, match=r"'n/a' in 20 rows; 'Goood' in 3 rows \(like 'good'\)") as caught:
        table = import_ratings(write(tmp_path, rows), LONG, LABELS)
    assert len(caught) == 1 and len(table) == 27
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_ratings(write(tmp_path, [*ROWS, {**ROWS[0], "verdict": "no comment"}]), LONG, LABELS)


def test_a_table_without_any_known_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 4 labels means a score: 'good' in 2 rows.*Give the scores"):
        import_ratings(write(tmp_path, ROWS), LONG)


def test_repeats_are_numbered_and_ids_stay(tmp_path: Path) -> None:
    rows = [*ROWS, ROWS[0], {**ROWS[0], "verdict": "bad"}]
    table = import_ratings(write(tmp_path, rows), LONG, LABELS)
    assert list(table["repeat"]) == [0, 0, 0, 0, 1, 2]
    assert table["rating_id"].is_unique
    again = import_ratings(write(tmp_path, [{**row, "verdict": "fair"} for row in rows[::-1]]), LONG, LABELS)
    assert set(again["rating_id"]) == set(table["rating_id"]), "ids follow what was rated, not how or in which order"
    less = import_ratings(write(tmp_path, ROWS), LONG, LABELS)
    assert list(less["rating_id"]) == list(table["rating_id"])[:4]


def test_responses_tell_answers_apart_and_give_lengths(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "text": text, "why": "because"} for text in ("short", "longer", "short", None)]
    table = import_ratings(write(tmp_path, rows), LONG | {"text": "response", "why": "rationale"}, LABELS)
    assert table["response_id"].nunique() == 3
    assert list(table["repeat"]) == [0, 0, 1, 0]
    assert list(table["response_length"].fillna(-1)) == [5, 6, 5, -1]
    assert set(table["rationale"]) == {"because"}


def test_samples_constants_and_families(tmp_path: Path) -> None:
    rows = [{"system": "m1", "question": 7, "s": s, "verdict": 1, "fam": f} for s, f in ((0, "Llama"), (1, None))]
    mapping = {"system": "model", "question": "item", "s": "sample", "verdict": "score", "fam": "model_family"}
    constants = {"judge": "ann", "dimension": "tone", "judge_family": "human"}
    table = import_ratings(write(tmp_path, rows), mapping, constants=constants, families={"m1": "known"})
    assert list(table["sample"]) == [0, 1] and list(table["item"]) == ["7", "7"]
    assert list(table["model_family"]) == ["llama", "known"]
    assert set(table["judge"]) == {"ann"} and set(table["judge_family"]) == {"human"}
    assert set(table["dimension"]) == {"tone"} and set(table["criterion"]) == {"overall"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"system": ""}, "row 2, column system: a name or id is needed"),
        ({"system": None}, "row 2, column system"),
        ({"rater": "a\nb"}, r"row 2, column rater.*'a\\nb'"),
        ({"s": -1}, "row 2, column s: must be a whole number"),
        ({"s": "first"}, "row 2, column s: must be a whole number"),
    ],
)
def test_faults_name_file_row_and_column(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    rows = [{**ROWS[0], "s": 0}, {**ROWS[1], "s": 0, **change}]
    with pytest.raises(DataError, match=rf"ratings\.jsonl, {words}"):
        import_ratings(write(tmp_path, rows), LONG | {"s": "sample"}, LABELS)


def test_a_missing_column_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"4 faults[\s\S]*column raters: is missing.*'rater' meant.*3 more like it"):
        import_ratings(write(tmp_path, ROWS), {**{k: v for k, v in LONG.items() if k != "rater"}, "raters": "judge"})


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({**LONG, "x": "modle"}, "'modle'.*did you mean model"),
        ({**LONG, "x": "model"}, "'system' and 'x' are both mapped to model"),
        ({k: v for k, v in LONG.items() if v != "judge"}, "nothing is mapped to judge"),
        ({k: v for k, v in LONG.items() if v != "score"}, "nothing is mapped to score"),
        ({**LONG, "x": "score:tone"}, "one column to score or each"),
        ({**LONG, "x": "score"}, "one column to score or each"),
        ({**LONG, "verdict": "score:tone"}, "dimension is given twice"),
        ({**LONG, "verdict": "score:"}, "write score:DIMENSION"),
        ({"s": "model", "q": "item", "r": "judge", "a": "score:x", "b": "score:x"}, "two columns.*same score"),
        ({"s": "model", "q": "item", "r": "judge", "c": "criterion", "a": "score:x/y"}, "criterion is given twice"),
    ],
)
def test_mappings_that_cannot_work(tmp_path: Path, mapping: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        import_ratings(write(tmp_path, ROWS), mapping, LABELS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": {}}, "mapping is empty"),
        ({"labels": {"good": "3"}}, "'good' is mapped to '3'"),
        ({"labels": {"good": True}}, "'good' is mapped to True"),
        ({"labels": {"good": 1, "tone": {"good": 1}}}, "not a mixture"),
        ({"labels": LABELS, "constants": {"judge": "x"}}, "judge is given as a constant and as column 'rater'"),
        ({"labels": LABELS, "humans": ["anna"]}, "'anna' is no judge.*ann, bob"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        import_ratings(write(tmp_path, ROWS), LONG, **settings)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        import_ratings(tmp_path / "nothing.csv", LONG)
    (tmp_path / "x.ods").write_text("")
    with pytest.raises(DataError, match="is not read; use"):
        import_ratings(tmp_path / "x.ods", LONG)


def test_ids_of_responses_that_dpeer_made_are_kept(tmp_path: Path) -> None:
    rows = [{**row, "shown": f"id-{i}"} for i, row in enumerate(ROWS)]
    table = import_ratings(write(tmp_path, rows), LONG | {"shown": "response_id"}, LABELS)
    assert list(table["response_id"]) == [f"id-{i}" for i in range(len(ROWS))]
    with pytest.raises(DataError, match="shown: a name or id is needed"):
        import_ratings(write(tmp_path, [{**ROWS[0], "shown": None}]), LONG | {"shown": "response_id"}, LABELS)
