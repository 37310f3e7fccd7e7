"""`dpeer irt fit FILE` reads what `dpeer ratings import` reads, by the same options; its errors print what works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from dpeer.eval.elsewhere.importer import import_ratings
from dpeer.eval.irt.types import Ratings

SCORES = [1, 2, 3, 2, 3, 4, 2, 2, 3, 3, 1, 4] * 3
LONG = pd.DataFrame(
    [(m, f"q{q}", j) for m in ("x", "y") for q in range(6) for j in ("ann", "bob", "cy")],
    columns=["model", "item", "judge"],
).assign(score=SCORES, dimension="tone")


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a fit is given; it is not made."""
    from dpeer.errors import DataError
    from dpeer.eval.irt.encode import encode

    given: list[Any] = []

    def only_encoded(table: Any, *args: Any, **more: Any) -> Any:
        given.append(encode(table))
        raise DataError("enough")

    monkeypatch.setattr("dpeer.eval.irt.estimation.estimate", only_encoded)
    return given


def run(*words: object) -> Any:
    from dpeer.launcher.cli import app

    return CliRunner().invoke(app, ["irt", "fit", *map(str, words)])


def command_in(told: Any) -> list[str]:
    """The command that an error prints, without its program."""
    (line,) = re.findall(r"dpeer (irt fit .*?)(?:`|$)", told.stderr, re.MULTILINE)
    return shlex.split(line)[2:]


def test_what_import_takes_fit_takes(tmp_path: Path, fitted: list[Ratings]) -> None:
    wide = LONG.pivot(index=["model", "item"], columns="judge", values="score").reset_index()
    halves = wide.assign(**{n: wide[n] / 2 for n in ("ann", "bob", "cy")})
    path = tmp_path / "my raters.csv"
    halves.astype(str).replace(r"\.", ",", regex=True).to_csv(path, index=False, sep=";")
    mapping = {"model": "model", "item": "item", **{n: f"judge:{n}" for n in ("ann", "bob", "cy")}}
    options = [word for pair in mapping.items() for word in ("--map", "=".join(pair))]
    run(path, *options, "--half-points", "--missing", "2", "--human", "ann")
    expected = import_ratings(path, mapping, half_points=True, missing=["2"])
    assert len(fitted[0]) == (expected["status"] == "ok").sum() < len(LONG) and fitted[0].people == ("ann",)
    assert fitted[0].scale == (1, 2, 3) and fitted[0].judges == ("ann", "bob", "cy")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_of_ours_in_any_form_needs_no_option(tmp_path: Path, fitted: list[Ratings], suffix: str) -> None:
    path = tmp_path / f"ratings.{suffix}"
    write = {"csv": LONG.to_csv, "tsv": LONG.to_csv, "jsonl": LONG.to_json, "parquet": LONG.to_parquet}[suffix]
    more: dict[str, dict[str, Any]] = {"tsv": {"sep": "\t"}, "jsonl": {"orient": "records", "lines": True}}
    write(path, **({} if suffix == "jsonl" else {"index": False}), **more.get(suffix, {}))
    run(path)
    assert len(fitted[0]) == len(LONG)


@pytest.mark.parametrize(
    ("change", "own"),
    [
        ({"score": [s / 2 for s in SCORES]}, True),
        ({"score": [99 if k % 9 == 0 else s for k, s in enumerate(SCORES)]}, True),
        ({"score": [s / 2 for s in SCORES]}, False),
        ({"score": SCORES}, False),
    ],
)
def test_errors_print_a_command_that_works(
    tmp_path: Path, fitted: list[Ratings], change: dict[str, Any], own: bool
) -> None:
    """Of a table with our columns and of one with other names."""
    table = LONG.assign(**change)
    path = tmp_path / "a table.csv"
    (table if own else table.rename(columns={"model": "System", "judge": "Rater"})).to_csv(path, index=False)
    told = run(path)
    assert told.exit_code == 1 and not fitted
    run(*command_in(told))
    (ratings,) = fitted
    assert len(ratings.judges) == 3 and len(ratings.scale) <= 11
    assert len(ratings) == len(LONG) - sum(s == 99 for s in table["score"])


def test_a_printed_command_keeps_what_was_typed(tmp_path: Path, fitted: list[Ratings]) -> None:
    """Without its --missing the command would count 0, "no score", as the lowest score."""
    path = tmp_path / "stars.csv"
    scores = [0 if k % 9 == 0 else s for k, s in enumerate(SCORES)]
    LONG.assign(score=scores).rename(columns={"model": "system", "judge": "rater", "score": "stars"}).to_csv(
        path, index=False
    )
    told = command_in(run(path, "--missing", "0"))
    assert told.count("--missing") == 1 and told[told.index("--missing") + 1] == "0"
    run(*told)
    assert len(fitted[0]) == sum(map(bool, scores))


@pytest.mark.parametrize("form", ["file", "folder"])
def test_people_and_families_are_told_of_a_table_of_dpeers_own(
    tmp_path: Path, fitted: list[Ratings], form: str
) -> None:
    """Nothing else that `dpeer judge` wrote is lost by it."""
    table = import_ratings(write_csv(tmp_path, LONG))
    table["order"] = pd.Series(["up", "down"] * (len(table) // 2), index=table.index)
    table.loc[table.index[0], ["status", "score"]] = ["low_mass", None]
    place = tmp_path / "kept"
    place.mkdir()
    table.to_parquet(place / "ratings.parquet", index=False)
    path = place if form == "folder" else place / "ratings.parquet"
    run(path, "--human", "ann", "--family", "x=qwen", "--family", "bob=Qwen")
    (ratings,) = fitted
    assert ratings.people == ("ann",) and ratings.statuses == {"ok": len(LONG) - 1, "low_mass": 1}
    assert ratings.reversed.sum() == len(LONG) // 2 and ratings.own_family.sum() == 6
    told = run(path, "--missing", "1")
    assert told.exit_code == 1 and "scores need no reading: --missing is for tables made elsewhere" in " ".join(
        told.stderr.split()
    )


def write_csv(folder: Path, table: pd.DataFrame) -> Path:
    table.to_csv(folder / "written.csv", index=False)
    return folder / "written.csv"


def test_a_table_with_other_names_is_fitted_to_its_page(tmp_path: Path) -> None:
    path, folder = tmp_path / "labels.csv", tmp_path / "fit"
    LONG.rename(columns={"model": "System", "judge": "Rater"}).to_csv(path, index=False)
    short = ["--chains", "2", "--warmup", "60", "--draws", "40"]
    named = {"System": "model", "Rater": "judge", **{n: n for n in ("item", "dimension", "score")}}
    more = [word for pair in named.items() for word in ("--map", "=".join(pair))]
    told = run(path, "-o", folder, *more, *short)
    assert told.exit_code == 0, told.output
    assert (folder / "report.html").stat().st_size > 10_000
