"""Tables as people keep them: raters in columns, other delimiters, half points, codes for missing scores, Excel."""

from __future__ import annotations

import gzip
import shlex
import subprocess
import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dpeer.errors import ConfigError, DataError
from dpeer.eval.elsewhere import import_ratings, ratings_from
from dpeer.eval.elsewhere.mapping import MappingError
from dpeer.eval.irt.design import check
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.types import Options

LONG = [(m, q, j) for m in ("m1", "m2") for q in ("q1", "q2", "q3") for j in ("ann", "bob", "cy")]
SCORES = [1, 2, 3, 4, 5, 3, 2, 4, 1, 5, 4, 2, 3, 3, 1, 2, 5, 4]
CORE = ["model", "item", "judge", "dimension", "score"]


def long(scores: list[Any] | None = None) -> pd.DataFrame:
    return pd.DataFrame(LONG, columns=["model", "item", "judge"]).assign(score=scores or SCORES)


def wide() -> pd.DataFrame:
    return long().pivot(index=["model", "item"], columns="judge", values="score").reset_index()


def core(table: pd.DataFrame) -> list[list[Any]]:
    return sorted(table[CORE].astype(str).values.tolist())


RATERS = {"model": "model", "item": "item", "ann": "judge:ann", "bob": "judge:bob", "cy": "judge:cy"}


def as_csv(frame: pd.DataFrame, path: Path, **how: Any) -> Path:
    frame.to_csv(path, index=False, **how)
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_raters_in_columns_are_the_long_table_with_any_delimiter(tmp_path: Path, mark: str) -> None:
    expected = core(ratings_from(long()))
    path = as_csv(wide(), tmp_path / "wide.csv", sep=mark)
    assert core(import_ratings(path, RATERS)) == expected
    packed = tmp_path / "wide.tsv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert core(import_ratings(packed, RATERS)) == expected


def test_an_empty_cell_of_a_rater_is_no_rating_and_a_missing_code_is_an_unusable_one() -> None:
    frame = wide().astype(object)
    frame.loc[0, "ann"], frame.loc[1, "bob"] = None, "99"
    table = ratings_from(frame, RATERS, missing=["99"])
    assert len(table) == len(LONG) - 1
    assert table.loc[table["status"] == "unparsed", ["judge", "error"]].values.tolist() == [["bob", "99"]]


def test_several_raters_and_dimensions_in_a_row() -> None:
    frame = pd.DataFrame([("m", "q", 1, 2, 3)], columns=["model", "item", "a1", "a2", "b1"])
    mapping = {"a1": "judge:ann/tone", "a2": "judge:ann/facts", "b1": "judge:bob/tone/warmth"}
    with pytest.raises(ConfigError, match="two columns are mapped to the same"):
        ratings_from(frame, {"model": "model", "item": "item", "a1": "judge:ann/tone", "a2": "judge:ann/tone"})
    table = ratings_from(frame, {"model": "model", "item": "item", **mapping})
    assert table[["judge", "dimension", "criterion", "score"]].values.tolist() == [
        ["ann", "tone", "overall", 1],
        ["ann", "facts", "overall", 2],
        ["bob", "tone", "warmth", 3],
    ]


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({**RATERS, "ann": "judge:"}, "write judge:NAME"),
        ({**RATERS, "ann": "judge:ann/a/b/c"}, "write judge:NAME"),
        ({**RATERS, "ann": "judge:bob"}, "mapped to the same"),
        ({**RATERS, "ann": "score"}, "not both"),
        ({**RATERS, "ann": "judge"}, "judge is given twice"),
    ],
)
def test_mappings_of_raters_that_cannot_work(mapping: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ratings_from(wide(), mapping)


def test_the_error_of_a_wrong_command_prints_one_that_works(tmp_path: Path) -> None:
    frame = wide().rename(
        columns={"model": "System", "item": "Question no.", "ann": "Ann B.", "bob": "Bob", "cy": "Ćy"}
    )
    frame[["Ann B.", "Bob", "Ćy"]] = frame[["Ann B.", "Bob", "Ćy"]] / 2 + 0.5
    path = as_csv(frame, tmp_path / "my ratings.csv", sep=";", decimal=",")
    wrong = ["ratings", "import", str(path), "-o", str(tmp_path / "x.parquet"), "--map", "System=model"]
    for command in (wrong[:5], wrong):
        told = _run(command)
        assert told.exit_code == 1 and not (tmp_path / "x.parquet").exists()
    line = next(line for line in told.stderr.splitlines() if line.strip().startswith("dpeer ratings import"))
    assert _run(shlex.split(line)[1:]).exit_code == 0
    table = pd.read_parquet(tmp_path / "x.parquet")
    assert sorted(set(table["judge"])) == ["Ann B.", "Bob", unicodedata.normalize("NFC", "Ćy")]
    assert sorted(table["score"]) == sorted(score + 1 for score in SCORES)


def _run(command: list[str]) -> Any:
    from dpeer.launcher.cli import app

    return CliRunner().invoke(app, command)


def test_what_cannot_be_guessed_is_not_suggested() -> None:
    frame = pd.DataFrame([("x", "y", "z", 1)], columns=["one", "two", "three", "n"])
    with pytest.raises(MappingError) as caught:
        ratings_from(frame)
    assert caught.value.options == ()


@pytest.mark.parametrize("comma", [False, True])
def test_half_points_are_refused_with_both_ways_and_read_by_both(tmp_path: Path, comma: bool) -> None:
    halves = [score / 2 + 0.5 for score in SCORES]
    path = as_csv(long(halves), tmp_path / "half.csv", sep=";", decimal="," if comma else ".")
    with pytest.raises(
        DataError, match=r"8 of 18 ratings lie between.*1\.5 \(4\).*--half-points.*--label 1\.5=2"
    ) as told:
        import_ratings(path)
    doubled = import_ratings(path, half_points=True)
    assert doubled["score"].tolist() == [score + 1 for score in SCORES]
    options = shlex.split(str(told.value).partition("for each: ")[2])[1::2]
    labels = {label: int(score) for label, score in (option.split("=") for option in options)}
    assert import_ratings(path, labels=labels)["score"].tolist() == SCORES


def test_other_fractions_are_not_doubled() -> None:
    thirds = [1.25, *SCORES[1:]]
    with pytest.raises(DataError, match="1 of 18 ratings lie between") as told:
        ratings_from(long(thirds))
    assert "--half-points" not in str(told.value)
    with pytest.raises(DataError, match="1 of 18 ratings lie between"):
        ratings_from(long(thirds), half_points=True)
    with pytest.raises(ConfigError, match="one of the two"):
        ratings_from(long(), labels={"1": 1}, half_points=True)


@given(st.lists(st.integers(-9, 20), min_size=18, max_size=18))
def test_doubling_is_exact(twice: list[int]) -> None:
    table = ratings_from(long([f"{n / 2:g}".replace(".", ",") for n in twice]), half_points=True, keep_copies=True)
    assert table["score"].tolist() == twice


@pytest.mark.parametrize("code", [-1, 99, -99, 999])
def test_codes_for_missing_scores_are_told_with_counts(code: int) -> None:
    scores = [code if k % 5 == 0 else score for k, score in enumerate(SCORES)]
    with pytest.warns(UserWarning, match=rf"{code} in 4 of 18 ratings looks like a code.*--missing {code}"):
        ratings_from(long(scores))
    table = ratings_from(long(scores), missing=[str(code)])
    assert table["status"].value_counts().to_dict() == {"ok": 14, "unparsed": 4}
    if code == -1:
        (note,) = encode(long(scores).assign(dimension="d")).notes
        assert "-1 in 4 of 18" in note
    else:
        with pytest.raises(DataError, match=f"{code} in 4 of 18.*--missing"):
            encode(long(scores).assign(dimension="d"))


@pytest.mark.parametrize("scores", [[-1, 0, 1], [-2, -1, 0, 1, 2], [0, 1], [95, 96, 97, 98, 99]])
def test_scales_with_such_numbers_are_no_codes(scores: list[int]) -> None:
    table = long([scores[k % len(scores)] for k in range(18)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ratings_from(table)


def test_a_sheet_pasted_twice_gives_the_estimates_of_one() -> None:
    frame = long().assign(dimension="overall")
    once = encode(frame)
    for twice in (pd.concat([frame, frame]), pd.concat([frame, frame, frame])):
        with pytest.warns(UserWarning, match="identical in every column.*left out"):
            assert core(ratings_from(twice)) == core(ratings_from(frame))
        read = encode(twice)
        assert len(read) == len(once) and "identical in every column" in read.notes[0]
        assert any("identical in every column" in str(w) for w in check(read, Options()).warnings)
        assert len(ratings_from(twice, keep_copies=True)) == len(twice)


def test_repeats_of_a_judge_that_always_says_the_same_are_kept_and_told() -> None:
    """Side by side, or in an order of their own, they are no paste."""
    frame = long().assign(dimension="overall")
    shuffled = pd.concat([frame, frame.sample(frac=1, random_state=0)])
    for repeated in (frame.loc[frame.index.repeat(2)], shuffled):
        read = encode(repeated.reset_index(drop=True))
        assert len(read) == 2 * len(frame) and "counts as a rating of its own" in read.notes[0]
        with pytest.warns(UserWarning, match="18 of 18 repeats"):
            assert len(ratings_from(repeated)) == 2 * len(frame)


def test_codes_for_a_missing_score_are_seen_among_half_points() -> None:
    scores = [("-9", "3.5", "4", "4.5", "5")[k % 5] for k in range(18)]
    with pytest.warns(UserWarning, match="-9 in 4 of 18 ratings looks like a code.*--missing -9"):
        ratings_from(long(scores), half_points=True)


def test_second_ratings_are_kept_and_identical_ones_told() -> None:
    again = long([*SCORES[:-1], 1])
    with pytest.warns(UserWarning, match="17 of 18 repeats"):
        table = ratings_from(pd.concat([long(), again]))
    assert len(table) == 36 and table["repeat"].sum() == 18
    numbered = pd.concat([long().assign(dimension="d", round=1), long().assign(dimension="d", round=2)])
    assert len(encode(numbered)) == 36 and encode(numbered).notes == ()


FORMS: list[Callable[[str], str]] = [
    lambda name: f"{name}  ",
    lambda name: f"\u00a0{name}",
    lambda name: unicodedata.normalize("NFD", name),
]


@pytest.mark.parametrize("form", FORMS)
def test_one_name_in_several_forms_is_one_name_both_ways_in(form: Callable[[str], str]) -> None:
    frame = long().assign(dimension="tone").replace({"cy": "Zoë"})
    odd = frame.copy()
    odd.loc[odd.index % 2 == 0, "judge"] = odd["judge"].map(form)
    assert encode(odd).judges == ("Zoë", "ann", "bob")
    assert core(ratings_from(odd)) == core(ratings_from(frame))
    assert set(ratings_from(odd, humans=[form("Zoë")])["judge_family"].dropna()) == {"human"}


def test_one_text_with_blanks_at_its_end_is_one_response() -> None:
    texts = ["Café.", "Café. ", "Cafe\u0301.\n", "Café!"]
    rows = [{"model": "m", "item": "q", "judge": f"j{k}", "score": 1, "response": t} for k, t in enumerate(texts)]
    table = ratings_from(rows)
    assert table["response_id"].nunique() == 2 and table["response_length"].nunique() == 1


@pytest.mark.parametrize("names", [("model_a", "model_b"), ("Left", "Right"), ("model 1", "model 2")])
def test_comparisons_of_two_models_are_refused(names: tuple[str, str]) -> None:
    mine, other = names
    rows = [{mine: a, other: b, "prompt": "q", "judge": "j", "winner": w} for a, b, w in
            (("x", "y", "model_a"), ("y", "x", "tie"), ("x", "z", "model_b"))]  # fmt: skip
    mapping = {mine: "model", "prompt": "item", "judge": "judge", "winner": "score"}
    with pytest.raises(ConfigError, match=f"each row compares {mine} with"):
        ratings_from(rows, mapping, {"model_a": 2, "tie": 1, "model_b": 0})


def test_labels_are_known_whatever_their_case_unless_that_leaves_doubt() -> None:
    frame = long([("Good", "BAD", "ok")[k % 3] for k in range(18)])
    table = ratings_from(frame, labels={"good": 3, "bad": 1, "OK": 2})
    assert table["score"].tolist() == [3, 1, 2] * 6
    doubtful = ratings_from(long([("a", "A", "b")[k % 3] for k in range(18)]), labels={"a": 1, "A": 2, "b": 3})
    assert doubtful["score"].tolist() == [1, 2, 3] * 6


def test_eleven_categories_can_be_fitted_and_twelve_cannot() -> None:
    table = long([k % 11 for k in range(18)]).assign(dimension="d")
    assert encode(table).scale == tuple(range(11))
    with pytest.raises(DataError, match=r"2 to 11 ordered categories.*--label"):
        encode(table.assign(score=[k % 12 for k in range(18)]))


def test_excel_of_three_raters(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append([])
    sheet.append(["model", "item", "ann", "bob", "cy", None])
    for row in wide().itertuples(index=False):
        sheet.append([row[0], row[1], float(row[2]), str(row[3]), row[4], None])
        sheet.append([None, "  "])
    book.create_sheet("notes").append(["nothing to see"])
    book.save(path := tmp_path / "ratings.xlsx")
    with pytest.warns(UserWarning, match="only the sheet Sheet was read, not notes"):
        assert core(import_ratings(path, RATERS)) == core(ratings_from(long()))
    sheet.append(["m9", "q9", 1, 2, 3, "stray"])
    book.save(path)
    with pytest.raises(DataError, match=r"ratings\.xlsx, row 15: cell 6 has 'stray', but no header"):
        import_ratings(path, RATERS)
    path.write_bytes(b"PK no workbook")
    with pytest.raises(DataError, match="not a whole Excel file"):
        import_ratings(path, RATERS)


def test_excel_without_its_library_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    code = (
        "import sys; sys.modules['openpyxl'] = None\n"
        "from dpeer.eval.elsewhere import import_ratings\n"
        f"import_ratings({str(tmp_path / 'x.xlsx')!r})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'dpeer[excel]'" in ended.stderr
