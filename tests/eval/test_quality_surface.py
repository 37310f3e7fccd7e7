"""What responses' surface gives away, near repeats, and sheets for people: planted answers come out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from typer.testing import CliRunner

from dpeer.data.duplicates import ALIKE, jaccard, runs
from dpeer.data.load import load
from dpeer.data.schema import DataSet
from dpeer.errors import DataError
from dpeer.eval.audit import rates
from dpeer.eval.quality.given import all_texts, from_file, needed
from dpeer.eval.quality.quality import quality
from dpeer.eval.quality.rated import rated
from dpeer.eval.quality.repeats import Text, counted, prompts_of, repeats, responses_of
from dpeer.eval.quality.review import agreement, changed, ids, read_sheet, sheet, with_people, with_texts, write_sheet
from dpeer.eval.quality.surface import (
    FORM,
    NAMES,
    STYLE,
    Surface,
    easiest,
    features,
    held_out,
    logistic,
    sentence,
    surface,
)
from dpeer.eval.quality.verify import Verification, verify
from dpeer.launcher.cli import app
from tests.eval import quality_world as world


@pytest.fixture(autouse=True)
def short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "BURN_IN", 200)
    monkeypatch.setattr(rates, "DRAWS", 400)


WORDS = [f"word{k}" for k in range(400)]
SAMPLE = Path(__file__).parents[2] / "dpeer/data/sample"


def said(rng: np.random.Generator, length: int) -> list[str]:
    return rng.choice(WORDS, length).tolist()


def pairs(rng: np.random.Generator, n: int, longer: float, dimension: str = "T") -> pd.DataFrame:
    """`longer`: share of pairs whose better response is 1.5 times as long as the worse one, else the reverse."""
    rows = []
    for k in range(n):
        short, long = (" ".join(said(rng, size)) + "." for size in (40, 60))
        better, worse = (long, short) if rng.random() < longer else (short, long)
        rows.append((dimension, f"p{k}", f"f:{k}", better, worse))
    return pd.DataFrame(rows, columns=["dimension", "prompt", "row", "better", "worse"])


def by_form(table: pd.DataFrame) -> Surface:
    return next(s for s in surface(table) if s.sees == FORM)


def test_a_planted_length_is_found_with_its_share_and_named() -> None:
    rng = np.random.default_rng(0)
    found = by_form(pairs(rng, 200, 0.83))
    assert found.told and 0.75 < found.accuracy.rate < 0.9 and found.accuracy.low < 0.83 < found.accuracy.high
    assert found.longer.rate == pytest.approx(found.accuracy.rate, abs=0.05)
    assert found.length.low < 1.5**0.66 < found.length.high
    assert "tells golden from reject_T in" in sentence(found) and "training may learn this" in sentence(found)
    assert {u.feature for u in found.used[:3]} & {"characters", "words", "varied words"}


def test_a_surface_without_signal_is_told_at_chance() -> None:
    rng = np.random.default_rng(1)
    found = [by_form(pairs(rng, 60, 0.5)) for _ in range(20)]
    assert sum(s.told for s in found) <= 1 and abs(np.mean([s.accuracy.rate for s in found]) - 0.5) < 0.05
    assert sentence(found[0]).endswith("no more than chance.")
    assert "too few to say" in sentence(by_form(pairs(rng, 5, 1.0)))


def test_pairs_of_one_prompt_stay_in_a_fold() -> None:
    rng = np.random.default_rng(2)
    x, prompts = rng.normal(size=(300, 4)), np.repeat(np.arange(15), 20)
    signs = rng.choice([-1.0, 1.0], (15, 4))[prompts]
    odds = held_out(np.abs(x) * signs, prompts)  # a prompt's pairs go one way: seen ones would give the others away
    assert abs((odds > 0).mean() - 0.5) < 0.35
    assert ((np.abs(x) * signs) @ logistic(np.abs(x) * signs) > 0).mean() > 0.5
    alone = held_out(np.abs(x) * signs, np.arange(300))
    assert (alone > 0).mean() > (odds > 0).mean()


def test_weights_are_those_of_an_optimiser() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0.3, 1, (80, 5))
    best = minimize(lambda w: np.logaddexp(0, -x @ w).sum() + 0.5 * w @ w, np.zeros(5), tol=1e-12).x
    np.testing.assert_allclose(logistic(x), best, atol=1e-4)


def test_features_by_hand() -> None:
    text = "Perhaps you can: (a) wait!\n\n- one\n- two\n\n# Plan\n**I** think so?"
    told = dict(zip(NAMES, features(text), strict=True))
    counts = {name: round(np.expm1(told[name])) for name in NAMES if " per " not in name and name != "varied words"}
    expected = {"list items": 2, "headings": 1, "bold or italics": 1, "question marks": 1, "exclamation marks": 1}
    expected |= {"hedging words": 1, "words of the second person": 1, "words of the first person": 1, "brackets": 2}
    expected |= {"characters": len(text), "paragraphs": 2, "digits": 0, "emoji": 0, "words": 11, "commas": 1}
    assert {name: counts[name] for name in expected} == expected


def test_words_that_carry_a_dimension_are_told_apart_from_form() -> None:
    rng = np.random.default_rng(4)
    table = pairs(rng, 100, 0.5)
    table["worse"] = "perhaps maybe " + table["worse"].str.partition(" ")[2].str.partition(" ")[2]
    form, style = (next(s for s in surface(table) if s.sees == sees) for sees in (FORM, STYLE))
    assert style.accuracy.rate > 0.95 and style.used[0].feature == "hedging words" and style.used[0].weight < 0
    assert form.accuracy.rate < style.accuracy.rate


def test_leaving_the_easiest_out_leaves_the_surface_without_signal() -> None:
    table = pairs(np.random.default_rng(5), 150, 0.75)
    out = easiest(table)
    assert 30 < out.sum() <= 76 and by_form(table[~out]).accuracy.rate < 0.65


def text(split: str, owner: str, words: list[str]) -> Text:
    return Text(split, owner, f"{split}:{owner}", tuple(words))


def test_near_repeats_are_those_of_an_exact_comparison() -> None:
    rng = np.random.default_rng(6)
    first = [["as", "your", "assistant", *said(rng, 60)] for _ in range(150)]
    edited = []
    for k in range(150):
        words = list(first[k])
        for at in rng.choice(60, rng.integers(0, 9), replace=False):
            words[at] = "new"
        edited.append(words)
    texts = [text("train", f"a{k}", w) for k, w in enumerate(first)]
    texts += [text("test", f"b{k}", w) for k, w in enumerate(edited)]
    truth = {f"train:a{k}" for k in range(150) if jaccard(runs(first[k]), runs(edited[k])) >= ALIKE}
    found = repeats(texts)
    assert 40 < len(truth) < 140 and len({r.copy.source for r in found} ^ truth) <= 2
    assert all(r.first.split == "test" and r.copy.split == "train" for r in found)  # the test split keeps it
    assert counted(found).to_dict("records") == [{"kept": "test", "repeated": "train", "texts": len(found)}]
    assert {r.copy.split for r in repeats(texts, keeps=("train", "test"))} == {"test"}


def test_one_text_written_thirty_times_is_counted_as_29_repeats() -> None:
    rng = np.random.default_rng(7)
    words = said(rng, 80)
    copies = [text("train", f"{k}", [*words[:k], "x", *words[k + 1 :]]) for k in range(30)]
    others = [text("train", f"o{k}", said(rng, 80)) for k in range(50)]
    found = repeats([*copies, *others])
    assert {r.first.owner for r in found} == {"0"} and len(found) == 29
    same = [text("train", "p", words), text("train", "p", words), text("test", "p", words), text("train", "q", ["so"])]
    assert [(r.first.split, r.copy.split) for r in repeats(same)] == [("test", "train"), ("test", "train")]


@pytest.fixture(scope="module")
def sample() -> dict[str, DataSet]:
    return {name: load(str(SAMPLE), name) for name in ("train", "test")}


def test_a_response_that_leaks_into_another_split_is_found(sample: dict[str, DataSet]) -> None:
    assert not repeats(prompts_of(sample)) and not repeats(responses_of(sample))
    both = {"train": sample["train"], "test": DataSet(sample["train"].dimensions, sample["train"].records[:3])}
    assert len(repeats(prompts_of(both))) == 3
    assert len(repeats(responses_of(both))) == sum(len(r.responses) for r in sample["train"].records[:3])


@pytest.fixture(scope="module")
def verified() -> tuple[pd.DataFrame, Verification, pd.DataFrame]:
    """The truth, what verifiers say of it, and texts."""
    rng = np.random.default_rng(8)
    made = world.truth(6, rng, extra=0.1, weak=0.05, poor=0.05)
    found = verify(rated(world.ratings(made, world.HONEST, rng), range(5)))
    heads = made[["record", "response"]].drop_duplicates()
    return made, found, heads.assign(prompt="Is it?", text="=Said " + heads["record"])


def filled(path: Path, rows: pd.DataFrame, passes: list[str]) -> Path:
    rows.assign(passes=passes).to_csv(path, index=False, sep=";")
    return path


def test_people_fill_a_blind_sheet_and_have_the_last_word(
    verified: tuple[pd.DataFrame, Verification, pd.DataFrame], tmp_path: Path
) -> None:
    made, found, texts = verified
    rows = sheet(found, texts, {"A": "does not flatter"}, most=150)
    assert len(rows) == 150 and not rows.astype(str).apply(lambda c: c.str.contains("reject|golden")).any().any()
    out = write_sheet(rows, tmp_path / "sheet.csv")
    assert out.read_bytes().startswith(b"\xef\xbb\xbf") and ",'=Said " in out.read_text("utf-8-sig")
    with pytest.raises(DataError, match="may hold answers"):
        write_sheet(rows, out)
    units = with_texts(found.units, texts)
    truth = dict(zip(ids(with_texts(made, texts)), ~made["fails"], strict=True))
    honest = ["Yes" if truth[i] else "no" for i in rows["id"]]
    answers = [read_sheet(filled(tmp_path / "a.csv", rows, honest), units)]
    told = agreement(found, answers).set_index("dimension")
    assert told.loc["", "units"] == 150 and told.loc["", "kappa_low"] > 0.8
    after = with_people(found, answers)
    moved = changed(found, after)
    assert (
        set(moved["before"]) <= {"open", "holds", "fails"}
        and (after.units["verdict"] == "open").sum() < (found.units["verdict"] == "open").sum()
    )
    contrary = ["no" if h == "Yes" else "yes" for h in honest]
    other = read_sheet(filled(tmp_path / "b.csv", rows, contrary), units)
    assert agreement(found, [other]).iloc[0]["kappa"] < -0.5
    divided = with_people(found, [*answers, other])
    assert (divided.units["verdict"] == "open").sum() >= 150


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passes": "perhaps"}, r"row 2 \(line 3\), column passes: 'perhaps' is neither yes nor no"),
        ({"id": "u1"}, "column id: 'u1' is no row of this data set's sheet"),
        ({"dimension": "Z"}, "column dimension: 'Z', but id .* is about"),
        ({"id": None}, r"column id: .* stands in .*row 1 \(line 2\) too"),
    ],
)
def test_a_sheet_with_a_fault_is_refused_by_row_and_column(
    verified: tuple[pd.DataFrame, Verification, pd.DataFrame], tmp_path: Path, change: dict[str, str], message: str
) -> None:
    _, found, texts = verified
    rows = sheet(found, texts, {}, most=4).assign(passes="yes")
    for column, value in change.items():
        rows.loc[1, column] = value if value is not None else rows.loc[0, column]
    if change.get("id", "") is None:
        rows.loc[1, "dimension"] = rows.loc[0, "dimension"]
    rows.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match=message):
        read_sheet(tmp_path / "bad.csv", with_texts(found.units, texts))
    rows.assign(passes="").to_csv(tmp_path / "bad.csv", index=False)
    if not change.keys() - {"passes"}:
        with pytest.raises(DataError, match="no row is filled in"):
            read_sheet(tmp_path / "bad.csv", with_texts(found.units, texts))


def test_the_command_reads_ratings_writes_a_sheet_and_takes_it_back(sample: dict[str, DataSet], tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    units = needed(all_texts(sample), sample["train"].dimensions)
    rows = dict(zip(all_texts(sample)["record"], all_texts(sample)["row"], strict=True))
    bad = units["response"] == "reject_" + units["dimension"]
    broken = units["record"].eq(units["record"].iloc[0]) & units["response"].eq("golden")
    ratings = [
        units.assign(
            record=units["record"].map(rows),
            judge=judge,
            score=np.where(bad | broken, 1, 4) + rng.integers(0, 2, len(units)),
        )
        for judge in ("ana", "ben")
    ]
    pd.concat(ratings)[["record", "response", "dimension", "judge", "score"]].to_csv(tmp_path / "r.csv", index=False)
    given = ["data", "quality", str(SAMPLE), "--ratings", str(tmp_path / "r.csv"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*given, "--review", str(tmp_path / "sheet.csv"), "--rows", "20"])
    assert done.exit_code == 0, done.output
    assert "54 of 55 records hold; 1 fail" in done.output and "train.jsonl:1 golden fails" in done.output
    filled_in = pd.read_csv(tmp_path / "sheet.csv").assign(passes="yes")
    filled_in.to_csv(tmp_path / "filled.csv", index=False)
    done = CliRunner().invoke(app, [*given, "--answers", str(tmp_path / "filled.csv"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "out/quality.json").read_text())
    assert told["statuses"]["fails"] > 1 and told["tables"]["agreement"][0]["units"] == 20
    page = (tmp_path / "out/quality.html").read_text()
    assert "Golden above reject" in page and "What the surface alone gives away" in page
    done = CliRunner().invoke(app, [*given[:3], "--review", str(tmp_path / "s.csv")])
    assert done.exit_code == 1 and "give --judges or --ratings" in done.output


def test_what_nobody_has_rated_is_open_and_not_forgotten(sample: dict[str, DataSet], tmp_path: Path) -> None:
    made = all_texts(sample)
    units = needed(made, sample["train"].dimensions)
    rows = units.assign(judge="ana", score=np.where(units["response"] == "reject_" + units["dimension"], 1, 4))
    lost = rows["record"].eq(rows["record"].iloc[0]) & rows["response"].ne("golden")
    rows = rows[~lost & rows["record"].isin(rows["record"].unique()[:30])]
    rows[["record", "response", "dimension", "judge", "score"]].to_csv(tmp_path / "r.csv", index=False)
    found = verify(from_file(tmp_path / "r.csv", made))
    first = found.records.set_index("record").loc[units["record"].iloc[0]]
    assert len(found.records) == 30 and first["status"] == "open" and "has no rating that counts" in first["reason"]
    (tmp_path / "bad.csv").write_text("record,response,dimension,judge,score\ntrain.jsonl:1,reject_Z,A,ana,1\n")
    with pytest.raises(DataError, match=r"row 1 \(line 2\), column response: 'reject_Z' is none of golden, "):
        from_file(tmp_path / "bad.csv", made)
    assert set(needed(made, ["A", "E"])["mask"]) == {"A", "E", "A+E"}
    assert not needed(made, ["A", "E"])["response"].str.contains("_C|_T").any()


def test_without_ratings_surface_and_repeats_are_told(sample: dict[str, DataSet]) -> None:
    found = quality("sample", sample)
    assert found.verified is None and "golden from reject_E" in found.finding()
    few = {"train": DataSet(sample["train"].dimensions, sample["train"].records[:5])}
    assert quality("sample", few).finding() == "Too few prompts to say what the surface of responses gives away"
    assert set(found.frames()) == {"surface", "repeats"} and len(found.frames()["surface"]) == 10
