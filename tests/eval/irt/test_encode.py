"""Ratings tables become index arrays: what counts is checked, and what cannot be used is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpeer.errors import DataError
from dpeer.eval.irt.design import check
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.types import Options


def table(**columns: Any) -> pd.DataFrame:
    """Three models x two items x two judges in one dimension."""
    rows = [(m, q, j) for m in "abc" for q in ("q1", "q2") for j in ("x", "y")]
    frame = pd.DataFrame(rows, columns=["model", "item", "judge"]).assign(dimension="T", status="ok")
    return frame.assign(score=[1 + i % 5 for i in range(len(frame))], **columns)


def test_rows_that_are_not_ok_are_counted_and_left_out() -> None:
    frame = table()
    frame.loc[frame["model"] == "c", ["status", "score"]] = ["truncated", None]
    frame.loc[0, ["status", "score"]] = ["unparsed", None]
    ratings = encode(frame)
    assert len(ratings) == 7 and ratings.models == ("a", "b")
    assert ratings.statuses == {"ok": 7, "truncated": 4, "unparsed": 1}
    assert ratings.status_by_judge["x"] == {"ok": 3, "truncated": 2, "unparsed": 1}
    assert ratings.unrated == {"model": ("c",)}
    texts = [str(w) for w in check(ratings, Options(model="rasch")).warnings]
    assert "model without any usable rating, left out: c" in texts


def test_a_score_of_a_row_that_is_not_ok_does_not_count() -> None:
    frame = table()
    frame.loc[3, "status"] = "low_mass"
    assert len(encode(frame)) == 11


def test_ratings_of_one_response_each_are_told_to_shrink_logits() -> None:
    frame = table()
    once = frame[(frame["judge"] == "x") == (frame["item"] == "q1")]
    kinds = {w.kind for w in check(encode(once), Options(model="rasch"), planned=True).warnings}
    assert "single_ratings" in kinds
    assert "single_ratings" not in {w.kind for w in check(encode(frame), Options(model="rasch")).warnings}


def test_the_scale_may_be_wider_than_the_scores() -> None:
    frame = table().assign(score=lambda f: f["score"].clip(2, 4))
    assert encode(frame).scale == (2, 3, 4)
    ratings = encode(frame, scale=(1, 2, 3, 4, 5))
    assert ratings.scale == (1, 2, 3, 4, 5) and set(ratings.category) == {1, 2, 3}
    with pytest.raises(DataError, match="is not on the scale 1, 2, 3"):
        encode(frame, scale=(1, 2, 3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": 2.5}, "row 1, column score: .*is not a whole number"),
        ({"status": "good"}, "column status"),
        ({"response_id": "same"}, "two models or items"),
        ({"rating_id": "same"}, "occurs twice"),
        ({"model": ""}, "row 1, column model"),
    ],
)
def test_wrong_rows_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        encode(table().assign(**change))


def test_files_give_the_same_as_the_frame(tmp_path: Path) -> None:
    frame = table(judge_family=["f", None] * 6, model_family="f")
    frame.loc[0, ["status", "score"]] = ["unparsed", None]
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    expected = encode(frame)
    assert expected.own_family.sum() == 5
    for name in ("t.csv", "t.parquet"):
        found = encode(tmp_path / name)
        assert (found.category == expected.category).all() and (found.own_family == expected.own_family).all()
        assert found.statuses == expected.statuses and found.scale == expected.scale


@pytest.mark.parametrize("content", [b"", b"model,item\n\xff\xfe\xfa,1\n", b'a,b\n1,2,3\n1\n"'])
def test_a_file_that_is_no_table_is_an_error_of_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.csv: cannot be read as CSV"):
        encode(tmp_path / "t.csv")


def test_a_ratings_folder_is_read_beside_other_files(tmp_path: Path) -> None:
    frame = table()
    for judge, own in frame.groupby("judge"):
        (tmp_path / f"judge={judge}").mkdir()
        own.to_parquet(tmp_path / f"judge={judge}" / "part-1.parquet", index=False)
    (tmp_path / "rates.json").write_text("{}")
    assert len(encode(tmp_path)) == len(frame)


@pytest.mark.parametrize(
    ("name", "source"), [("judge", "judge_hash"), ("model", "model_hash"), ("dimension", "rubric_hash")]
)
def test_two_sources_under_one_name_are_not_pooled(name: str, source: str) -> None:
    frame = table().assign(**{source: "one"})
    assert len(encode(frame)) == len(frame)
    frame.loc[0, source] = None  # ratings made elsewhere have none
    assert len(encode(frame)) == len(frame)
    last = frame[name].iloc[-1]
    frame.loc[frame.index[-1], source] = "two"
    with pytest.raises(DataError, match=f"{name} {last} stands for 2 different ones"):
        encode(frame)


def test_people_and_judges_must_mean_the_same_response() -> None:
    judged = table().assign(mode="logprob", response_id=lambda f: f["model"] + f["item"])
    people = judged[judged["judge"] == "x"].assign(judge="ann", mode="import")
    assert len(encode(pd.concat([judged, people])).response_model) == 6
    with pytest.raises(DataError, match=r"a/q1/0 .* is one response in the ratings of `dpeer judge`"):
        encode(pd.concat([judged, people.assign(response_id="other" + people["response_id"])]))


def test_the_length_of_a_response_may_stand_in_any_of_its_rows() -> None:
    frame = table(response_length=None)
    frame.loc[frame["judge"] == "y", "response_length"] = range(10, 16)
    assert encode(frame).response_length.std() == pytest.approx(1)


def test_a_folder_of_tables_with_other_columns_and_types_loses_none(tmp_path: Path) -> None:
    people = table().assign(judge="ann", score=lambda f: f["score"].astype("int8"))  # sorts first, says least
    people.to_parquet(tmp_path / "a.parquet", index=False)
    judged = table().assign(response_id="same-" + table()["model"] + table()["item"], rubric_hash=None)
    judged.to_parquet(tmp_path / "b.parquet", index=False)
    ratings = encode(tmp_path)
    assert len(ratings) == 24 and len(ratings.response_model) == 12
    table().assign(score=[[1]] * 12).to_parquet(tmp_path / "c.parquet", index=False)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        encode(tmp_path)
