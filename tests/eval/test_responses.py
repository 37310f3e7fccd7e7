"""Which responses are judged: those that the recipe plans, and of a file every row as it is, or none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpeer.errors import DataError, DpeerError
from dpeer.eval.backends.registry import family, identity
from dpeer.eval.backends.vllm.identity import words_hash
from dpeer.eval.config import EvalConfig, Served
from dpeer.eval.plan import plan
from dpeer.eval.responses import load_responses, planned_responses, responses_folder
from dpeer.eval.store.parts import write_part
from dpeer.eval.store.schema import RESPONSES

GOOD = {"model": "x", "prompt": "p", "response": "r"}


def from_file(path: Path) -> pd.DataFrame:
    cfg = EvalConfig.model_validate({"name": "n", "output_dir": str(path.parent), "responses": str(path)})
    return load_responses(cfg)[0]


def jsonl(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def generated(cfg: EvalConfig, **values: Any) -> None:
    """The planned responses, made by hand."""
    rows = planned_responses(cfg).to_dict("records")
    made = {"response": "Yes.", "tokens": 1, "status": "ok", "error": None} | values
    write_part(responses_folder(cfg) / "model=m", [row | made for row in rows], RESPONSES)


def recipe(folder: Path, model: Path, **changes: Any) -> EvalConfig:
    (folder / "prompts.jsonl").write_text('{"prompt": "One?"}\n{"prompt": "Two?"}\n')
    values = {
        "name": "n",
        "output_dir": str(folder),
        "prompts": {"path": str(folder / "prompts.jsonl")},
        "models": [{"name": "m", "path": str(model)}],
        "judges": [{"name": "j", "path": str(model.parent / "c")}],
        "judging": {"rubric": "toyworld"},
    }
    return EvalConfig.model_validate(values | changes)


# Generated


def test_what_another_sampling_or_other_weights_gave_is_not_mixed_in(tmp_path: Path, models: Path) -> None:
    warm, cold = ({"generation": {"temperature": t, "samples": 2}} for t in (1.0, 0.0))
    model = Path(shutil.copytree(models / "a", tmp_path / "a"))
    shutil.copytree(models / "c", tmp_path / "c")
    generated(recipe(tmp_path, model, **warm), response="warm")
    generated(recipe(tmp_path, model, **cold), response="cold")
    for how, said in ((warm, "warm"), (cold, "cold")):
        kept, notes = load_responses(recipe(tmp_path, model, **how))
        assert len(kept) == 4 and set(kept["response"]) == {said}
        assert any("4 responses in " in note and "not of this recipe" in note for note in notes)
    shutil.copy(models / "b" / "model.safetensors", model / "model.safetensors")  # trained on, in the same place
    with pytest.raises(DataError, match="none of its 8 responses comes from the models, prompts and generation"):
        load_responses(recipe(tmp_path, model, **warm))
    with pytest.raises(DataError, match=r"4 responses repeat the model, item and sample.*name the models"):
        load_responses(recipe(tmp_path, model, models=[]))


def test_missing_and_cut_responses_are_said(tmp_path: Path, models: Path) -> None:
    generated(recipe(tmp_path, models / "a"), status="truncated")
    kept, notes = load_responses(recipe(tmp_path, models / "a", generation={"samples": 3}))
    assert len(kept) == 2 and any("4 of 6 planned responses are not there yet" in note for note in notes)
    assert any(note.startswith("2 responses were cut") for note in notes)


def test_responses_that_all_failed_are_no_responses(tmp_path: Path, models: Path) -> None:
    generated(recipe(tmp_path, models / "a"), status="engine_error", response=None, error="boom")
    with pytest.raises(DataError, match=r"all 2 responses failed \(the first: boom\)"):
        load_responses(recipe(tmp_path, models / "a"))


def test_a_family_that_the_recipe_corrects_counts_for_what_is_there_already(tmp_path: Path, models: Path) -> None:
    generated(recipe(tmp_path, models / "a"))
    house = recipe(tmp_path, models / "a", models=[{"name": "m", "path": str(models / "a"), "family": "house"}])
    rows = plan(house, check_design=False).rows
    assert set(rows["model_family"]) == {"house"} and len(rows) == 2 * 4
    told = recipe(tmp_path, models / "a", responses=str(jsonl(tmp_path, {**GOOD, "model": "m", "family": "qwen"})))
    told = told.model_copy(update={"models": house.models})
    assert set(plan(told, check_design=False).rows["model_family"]) == {"house"}


# A file


@pytest.mark.parametrize("text", ["None", "NA", "null", "nan", "42", "007", "2.0", "true", ""])
def test_every_text_stays_what_it_is(tmp_path: Path, text: str) -> None:
    """Readers that guess types make numbers, or nothing, of such answers."""
    frame = pd.DataFrame([GOOD | {"response": text}, GOOD | {"response": text}])
    frame.to_csv(tmp_path / "r.csv", index=False, encoding="utf-8-sig")  # a BOM, as spreadsheets write it
    frame.to_parquet(tmp_path / "r.parquet")
    for path in (tmp_path / "r.csv", tmp_path / "r.parquet", jsonl(tmp_path, *frame.to_dict("records"))):
        found = from_file(path)
        assert list(found["response"]) == [text] * 2 and list(found["sample"]) == [0, 1]
        assert found["response_id"].is_unique and list(found.columns) == RESPONSES.names


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"model": "x", "prompt": "p"}], "row 1, column response: is missing"),
        ([GOOD | {"response": 42}], "row 1, column response: must be text"),
        ([GOOD | {"response": None}], "row 1, column response: must be text"),
        ([GOOD | {"prompt": " "}], "column prompt: is empty"),
        ([GOOD | {"prompt": [{"role": "user", "content": "a"}] * 2}], "the prompt has 2 turns"),
        ([GOOD | {"model": None}], "column model: must be text or a whole number"),
        ([GOOD | {"sample": -1}], "column sample: must be a whole number from 0 up"),
        ([GOOD, GOOD | {"sample": 0}], "1 responses repeat the model, item and sample"),
        ([GOOD | {"item": 1}, GOOD | {"item": "1", "prompt": "q"}], r"row 2, column item: '1' has another prompt than"),
    ],
)
def test_faulty_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_file(jsonl(tmp_path, *rows))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.jsonl", b"{not json\n", "is not JSON"),
        ("r.jsonl", b"", "holds no records"),
        ("r.txt", b"", r"a \.txt is not read; use \.csv"),
        ("r.csv", b"model;prompt;response\nx;p;r\n", "the delimiter is not a comma"),
        ("r.csv", "model,prompt,response\nx,p,\xe9\n".encode("latin-1"), "line 2 is not UTF-8"),
        ("r.parquet", b"PAR1", "not a whole Parquet file"),
    ],
)
def test_faulty_files_are_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        from_file(tmp_path / name)


def test_a_table_that_generate_wrote_can_be_given_as_a_file(tmp_path: Path, models: Path) -> None:
    row = {**GOOD, "model_hash": identity(Served(name="j", path=str(models / "c"))), "status": "truncated"}
    failed = {**row, "response": None, "status": "engine_error", "prompt": "q"}
    found = from_file(jsonl(tmp_path, row, failed))
    assert found[["response", "status", "model_hash"]].values.tolist() == [["r", "truncated", row["model_hash"]]]


# Which model


def test_the_identity_of_a_model_sees_its_adapter_and_the_words_see_its_template(tmp_path: Path, models: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    model = Path(shutil.copytree(models / "a", tmp_path / "a"))
    served = Served(name="m", path=str(model), adapter=str(adapter))
    seen = {identity(served.model_copy(update={"adapter": None}))}
    for alpha in (16, 32):
        (adapter / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": alpha}))
        seen.add(identity(served))
    assert len(seen) == 3
    before = identity(served), words_hash(served)
    (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert identity(served) == before[0] and words_hash(served) != before[1]
    assert family(served) == "qwen"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "no such/model"}, "there is no folder no such/model"),
        ({"path": "tests/no-such-model"}, "there is no folder tests/no-such-model"),
        ({"adapter": "nowhere"}, "adapter nowhere is no folder with an adapter_config.json"),
        ({"path": "tests"}, r"tests is no model folder \(no config.json\)"),
    ],
)
def test_a_model_that_is_not_there_is_said_at_once(models: Path, change: dict[str, str], words: str) -> None:
    with pytest.raises(DpeerError, match=words):
        identity(Served.model_validate({"name": "m", "path": str(models / "a")} | change))
