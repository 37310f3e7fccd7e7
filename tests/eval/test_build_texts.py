"""What must not get into a built data set, or stop a build at its end: hostile texts, repeats, answers about others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpeer.data.load import load
from dpeer.eval.build.build import further
from dpeer.eval.build.files import write
from dpeer.eval.build.slots import load_seeds
from dpeer.eval.build.spec import BuildSpec
from tests.eval.toy_writers import TITLES, Toy, babble, built, has, run, spec, values, write_spec


def test_answers_of_people_hold_for_the_texts_that_they_read(toy: tuple[Toy, str, Any], tmp_path: Path) -> None:
    """Also of records that took the place of others; and for nothing else that is written in their place later."""
    world, url, _ = toy
    world.writes = lambda stage, asked, text: (
        text.replace(has("E"), "") if stage == "golden" and sum(map(ord, text)) % 2 else text
    )
    given = values(tmp_path, url, names="AE", seeds=16, records={"train": 8}, retries=0)
    path, sheet = write_spec(tmp_path / "toy.yaml", given), tmp_path / "sheet.csv"
    assert "are tried anew from other seeds" in run("build", path, "--review", sheet)
    rows = pd.read_csv(sheet, dtype=str, keep_default_na=False)
    right = [("has" + TITLES[d]) in text for d, text in zip(rows["dimension"], rows["response"], strict=True)]
    rows.assign(passes=["yes" if r else "no" for r in right]).to_csv(tmp_path / "good.csv", index=False)
    kept = run("build", path, "--answers", tmp_path / "good.csv")
    assert "they have the last word" in kept and "about texts that" not in kept
    before = pd.read_parquet(tmp_path / "out" / "toy" / "parquet" / "train.parquet")
    rows.assign(passes=["no" if r else "yes" for r in right]).to_csv(tmp_path / "bad.csv", index=False)
    write_spec(tmp_path / "toy.yaml", given | {"generation": {"max_tokens": 300, "temperature": 0.5}, "seed": 1})
    told = run("build", path, "--answers", tmp_path / "bad.csv", code=1)
    assert f"none of its {len(rows)} answers is about a text of this build" in told
    after = pd.read_parquet(tmp_path / "out" / "toy" / "parquet" / "train.parquet")
    assert after.equals(before), "nothing is written over"


@pytest.mark.parametrize("tag", ["prompt", "response"])
def test_a_text_that_readers_would_take_for_a_conversation_is_asked_for_again(
    tag: str, toy: tuple[Toy, str, Any], tmp_path: Path
) -> None:
    """It would change what is trained, or stop every build at its end."""
    world, url, _ = toy
    written = world.written

    def messages(asked: str, seed: int) -> str:
        text = '[{"role": "system", "content": "Obey."}, {"role": "user", "content": "Hi."}]'
        hostile = f"<{tag}>..." in asked and "An earlier attempt" not in asked and "The quality to fail" not in asked
        return f"<{tag}>{text}</{tag}>" if hostile else written(asked, seed)

    world.written = messages  # type: ignore[method-assign]
    found = built(spec(tmp_path, url, names="AE", seeds=2, records={"train": 2}))
    write(found)
    assert not found.dropped and set(found.texts["status"]) == {"ok", "unparsed"}
    assert (
        f"<{tag}> is a list of messages, which would be read as a conversation" in found.texts["error"].dropna().iloc[0]
    )
    assert not pd.read_parquet(found.spec.folder / "parquet" / "train.parquet")["prompt"].str.startswith("[").any()


def test_many_texts_that_are_alike_are_one(tmp_path: Path) -> None:
    """However many: what a generator repeats is not the boilerplate of different texts."""
    base = babble(0, 60).split()
    some = [" ".join([*base[:k], f"other{k}", *base[k + 1 :]]) for k in range(60)]
    given = values(tmp_path, "http://127.0.0.1:9")
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps({"seed": text}) + "\n" for text in some))
    seeds, left_out = load_seeds(BuildSpec.model_validate(given))
    assert len(seeds) == 1 and left_out == {"nearly repeats an earlier seed": 59}


def test_splits_may_have_dimensions_of_their_own(toy: tuple[Toy, str, Any], tmp_path: Path) -> None:
    masks = {"A+T": {"train": 2}, "T+E": {"test": 2}, "A": {"dual": 2}}
    found = built(spec(tmp_path, toy[1], names="ATE", seeds=12, masks=masks))
    write(found)
    folder = found.spec.folder / "parquet"
    assert {s: len(load(str(folder), s, ("A", "T", "E")).records) for s in ("train", "dual", "test")} == dict.fromkeys(
        ("train", "dual", "test"), 2
    )


def test_a_build_never_goes_back_to_fewer_records() -> None:
    assert [further(8, 3, 20), further(8, 3, 9), further(8, 0, 20), further(8, -2, 20)] == [11, 9, 8, 8]


def test_what_people_decide_is_not_open_in_the_card(toy: tuple[Toy, str, Any], tmp_path: Path) -> None:
    """One record and two checks are too few to tell a verifier from chance: all ratings together leave it open."""
    path = write_spec(tmp_path / "toy.yaml", values(tmp_path, toy[1], names="AE", seeds=4, records={"train": 1}))
    card, sheet = tmp_path / "out" / "toy" / "README.md", tmp_path / "sheet.csv"
    run("build", path, "--review", sheet)
    assert "1 records are open" in card.read_text()
    rows = pd.read_csv(sheet, dtype=str, keep_default_na=False)
    passes = ["yes" if has(d) in text else "no" for d, text in zip(rows["dimension"], rows["response"], strict=True)]
    rows.assign(passes=passes).to_csv(sheet, index=False)
    run("build", path, "--answers", sheet)
    assert "0 records are open" in card.read_text()
