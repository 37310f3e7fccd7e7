"""Tables of comparisons made elsewhere: the layouts that are about become pairwise rows."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpeer.errors import ConfigError, DataError
from dpeer.eval.elsewhere import ratings_from
from dpeer.eval.elsewhere.importer import import_ratings
from dpeer.eval.elsewhere.mapping import MappingError
from dpeer.eval.elsewhere.verdicts import outcome
from dpeer.eval.irt.encode import encode
from dpeer.eval.store.parts import write_table

ARENA = {"model_a": "model", "model_b": "other_model", "winner": "winner", "question_id": "item", "judge": "judge"}


def arena(*winners: str) -> list[dict[str, Any]]:
    names = [("x", "y"), ("y", "z"), ("z", "x")]
    return [
        {
            "question_id": 80 + k,
            "model_a": names[k % 3][0],
            "model_b": names[k % 3][1],
            "winner": winner,
            "judge": "ann",
        }
        for k, winner in enumerate(winners)
    ]


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("label", "meant"),
    [
        *((label, 1) for label in ("model_a", "Model A", "A", "[[A]]", "left", "assistant_a", "response 1", "first")),
        *((label, -1) for label in ("model_b", "b", "[[B]]", "right", "Response 2", "the second", "model_b wins")),
        *((label, 0) for label in ("tie", "tie (bothbad)", "tie (both bad)", "Tie", "[[C]]", "both_bad", "draw")),
        *((label, 0) for label in ("both (bad)", "no preference", "neither is good", "A=B", "[[A=B]]", "tied")),
        *((label, 1) for label in ("A>B", "[[A>>B]]", "B<A", "model_a > model_b", "x > y", "A is much better")),
        *((label, -1) for label in ("B>A", "[[B>>A]]", "A<B", "A<<B", "y>x")),
        *((label, None) for label in ("", "error", "model_c", "?", "3", "n/a", "A>C", "A>A")),
        *((label, None) for label in ("1", "2", "0", "-1", "-2", "1.0", "[1]", "-a")),
    ],
)
def test_who_won_is_read_in_the_words_that_are_about(label: str, meant: int | None) -> None:
    assert outcome(label, "x", "y") == meant


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ((1, -1, 0, 1), [1, -1, 0, 1]),
        ((1, -1), [1, -1]),
        (("1.0", "-1.0", "tie"), [1, -1, 0]),
        (("model_a", 0, "model_b"), [1, 0, -1]),
        ((1, 2, "tie", 1, "both (bad)"), [1, -1, 0, 1, 0]),
        (("response 1", "response-2"), [1, -1]),
    ],
)
def test_a_column_decides_what_its_numbers_mean(column: tuple[Any, ...], meant: list[int]) -> None:
    assert ratings_from(arena(*column), ARENA)["score"].tolist() == meant


@pytest.mark.parametrize(
    "column", [(0, 1, 1), (0, 0), (1, 0, "tie"), (1, 2, "model_a"), (1, 2, 3), (-2, -1, 1, 2), (0, 1, 2), (1, 2, "n/a")]
)
def test_numbers_that_leave_doubt_are_refused(column: tuple[Any, ...]) -> None:
    with pytest.raises(DataError, match=r"column winner: who won is said by numbers .*--label 1=1 --label 0=-1"):
        ratings_from(arena(*column), ARENA)


def test_labels_say_what_numbers_mean() -> None:
    assert ratings_from(arena(0, 1, 1), ARENA, {"1": 1, "0": -1})["score"].tolist() == [-1, 1, 1]
    table = ratings_from(arena(1, 2, "n/a"), ARENA, missing=["n/a"])
    assert table["score"].tolist()[:2] == [1, -1] and table["status"].tolist() == ["ok", "ok", "unparsed"]


@pytest.mark.parametrize("labels", [None, {"model_a": 1, "model_b": -1}])
def test_every_label_that_is_lost_is_warned_of(labels: dict[str, int] | None) -> None:
    with pytest.warns(UserWarning, match=r"'?unclear'? in 1 rows\. If they say who won, give --label"):
        ratings_from(arena("model_a", "unclear", "model_b"), ARENA, labels)


def test_a_models_own_name_is_a_verdict_too() -> None:
    assert [outcome(label, "llama-2", "b") for label in ("llama-2", "b", "a")] == [1, -1, 1]


def test_an_arena_table_becomes_comparisons_that_are_fitted(tmp_path: Path) -> None:
    rows = arena("model_a", "model_b", "tie", "tie (bothbad)", "model_a", "unclear")
    with pytest.warns(UserWarning, match="unknown labels, kept as unparsed: .*unclear"):
        table = ratings_from(rows, ARENA)
    assert table["score"].tolist()[:5] == [1, -1, 0, 0, 1] and table["score"].isna().tolist()[5]
    assert table["status"].tolist() == ["ok"] * 5 + ["unparsed"] and table["error"].tolist()[5] == "unclear"
    assert table["other_model"].tolist() == ["y", "z", "x"] * 2 and set(table["order"]) == {"first"}
    assert table["rating_id"].is_unique and (table["response_id"] != table["other_response_id"]).all()
    ratings = encode(write_table(tmp_path / "ratings.parquet", table))
    assert len(ratings) == 0 and ratings.comparisons.outcome.tolist() == [2, 0, 1, 1, 2]
    assert ratings.comparisons.place.tolist() == [0.5] * 5 and ratings.models == ("x", "y", "z")


def test_texts_tell_responses_apart_and_join_those_of_ratings() -> None:
    rows = [
        {
            "item": "q",
            "model": "x",
            "other_model": "y",
            "winner": w,
            "judge": "ann",
            "response": "Hi.",
            "other_response": o,
        }
        for w, o in (("a", "Hello."), ("b", "Hello!"))
    ]
    table = ratings_from(rows)
    assert table["other_response_id"].nunique() == 2 and table["other_response_length"].tolist() == [6, 6]
    rated = ratings_from([{"item": "q", "model": "y", "judge": "ann", "score": 3, "response": "Hello."}])
    assert rated["response_id"].iloc[0] == table["other_response_id"].iloc[0]
    both = encode(pd.concat([rated, ratings_from([{"item": "q", "model": "x", "judge": "bo", "score": 1}]), table]))
    assert len(both) == 2 and len(both.comparisons) == 2 and len(both.response_model) == 4


def test_own_labels_say_what_words_mean() -> None:
    rows = arena("gut", "schlecht", "gleich")
    assert ratings_from(rows, ARENA, {"gut": 1, "schlecht": -1, "gleich": 0})["score"].tolist() == [1, -1, 0]
    with pytest.raises(DataError, match="label 'gut' is mapped to 2; the outcomes of a comparison are -1, 0, 1"):
        ratings_from(rows, ARENA, {"gut": 2, "schlecht": -1, "gleich": 0})


@pytest.mark.parametrize("names", [("model_a", "model_b"), ("Left model", "Right model")])
def test_comparisons_read_as_ratings_are_refused_with_a_command_that_reads_them(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    mine, other = names if names[0] == "model_a" else ("model left", "model right")
    rows = [{mine: r["model_a"], other: r["model_b"], "prompt": r["question_id"], "rater": "j", "winner": r["winner"]}
            for r in arena("model_a", "tie", "model_b", "model_a")]  # fmt: skip
    mapping = {mine: "model", "prompt": "item", "rater": "judge", "winner": "score"}
    with pytest.raises(MappingError, match=f"each row compares {mine} with {other}") as caught:
        ratings_from(rows, mapping, {"model_a": 2, "tie": 1, "model_b": 0})
    words = list(caught.value.options)
    better = dict(words[k + 1].split("=") for k in range(0, len(words), 2))
    assert better == {mine: "model", other: "other_model", "winner": "winner", "prompt": "item", "rater": "judge"}
    path = tmp_path / "pairs.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    assert import_ratings(path, better)["score"].tolist() == [1, 0, -1, 1], shlex.join(words)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"winner": "score"}, "a comparison needs other_model"),
        ({"model_b": "rationale"}, "a comparison needs other_model"),
    ],
)
def test_half_a_comparison_is_refused(change: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ratings_from(arena("model_a", "model_b"), ARENA | change)


def test_a_model_against_itself_is_a_fault_of_its_row() -> None:
    rows = arena("model_a", "model_b")
    rows[1]["model_b"] = rows[1]["model_a"]
    with pytest.raises(DataError, match=r"row 2.*model_b.*compares 'y' with itself"):
        ratings_from(rows, ARENA)
