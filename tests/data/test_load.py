from __future__ import annotations

import json
from pathlib import Path
from unicodedata import normalize

import datasets
import pandas
import pytest

from dpeer.data.load import load, splits
from dpeer.errors import DataError
from dpeer.toyworld.world import generate


def row(prompt: str, **fails: str) -> dict[str, object]:
    responses = [{"text": "golden", "fails": []}, *({"text": t, "fails": list(d)} for d, t in fails.items())]
    return {"prompt": prompt, "mask": sorted(fails, reverse=True), "responses": responses}


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def test_dimensions_are_sorted_whatever_the_row_order(tmp_path):
    rows = [row("q", T="t", A="a"), row("p", E="e", C="c")]
    one = load(str(write(tmp_path / "1.jsonl", *rows)))
    two = load(str(write(tmp_path / "2.jsonl", *rows[::-1])))
    assert one.dimensions == two.dimensions == ("A", "C", "E", "T")
    assert [r.mask for r in one.records] == [("A", "T"), ("C", "E")]
    assert [r.source for r in one.records] == ["1.jsonl:1", "1.jsonl:2"]


MESSAGES = [{"role": "system", "content": 'Be "brief".'}, {"role": "user", "content": "Is tea\nhealthy?"}]


@pytest.mark.parametrize("text", [json.dumps(MESSAGES), f"  {json.dumps(MESSAGES, indent=1)}\n", repr(MESSAGES)])
def test_the_text_of_messages_is_messages(tmp_path, text):
    data = load(str(write(tmp_path / "d.jsonl", row(text, A="a"))))
    assert [{"role": m.role, "content": m.content} for m in data.records[0].prompt] == MESSAGES
    table = tmp_path / "d.csv"
    pandas.DataFrame([{"mask": ["A"], "prompt": text, "golden": "g", "reject_A": "a"}]).to_csv(table, index=False)
    assert load(str(table)).records[0].prompt == data.records[0].prompt


@pytest.mark.parametrize("text", ["[1, 2] is a list", '{"content": 3} what is it?', "[{'a': 1}]", "{role: user}"])
def test_other_json_is_a_question(tmp_path, text):
    assert load(str(write(tmp_path / "d.jsonl", row(text, A="a")))).records[0].prompt[0].content == text


@pytest.mark.parametrize(
    "text", [json.dumps(MESSAGES)[:-9], '[{"role": "user", "content": "x", "name": "y"}]', '[{"role": "tool"}]']
)
def test_text_that_begins_as_messages_and_is_none_is_refused(tmp_path, text):
    with pytest.raises(DataError, match="row 1, column prompt"):
        load(str(write(tmp_path / "d.jsonl", row(text, A="a"))))


def test_a_dimension_in_two_unicode_forms_is_one(tmp_path):
    composed, decomposed = (normalize(form, "café") for form in ("NFC", "NFD"))

    def named(name: str) -> dict[str, object]:
        return {
            "prompt": name,
            "mask": [name],
            "responses": [{"text": "g", "fails": []}, {"text": "a", "fails": [name]}],
        }

    general = load(str(write(tmp_path / "d.jsonl", named(composed), named(decomposed))))
    assert general.dimensions == (composed,) and all(r.mask == (composed,) for r in general.records)
    table = tmp_path / "d.csv"
    columns = {"mask": [composed], "prompt": "q", "golden": "g", f"reject_{decomposed}": "a"}
    pandas.DataFrame([columns]).to_csv(table, index=False)
    assert load(str(table)).dimensions == (composed,)
    twice = row("q", A="a") | {"mask": [composed, decomposed]}
    with pytest.raises(DataError, match="names 'café' twice"):
        load(str(write(tmp_path / "e.jsonl", twice)))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_any_line_end(tmp_path, end, suffix):
    lines = [json.dumps(row(f"q{i}", A="a")) for i in range(3)]
    if suffix == "csv":
        lines = ["mask,prompt,golden,reject_A", *(f"\"['A']\",q{i},g,a" for i in range(3))]
    path = tmp_path / f"d.{suffix}"
    path.write_bytes(end.join(lines).encode())
    assert [r.prompt[0].content for r in load(str(path)).records] == ["q0", "q1", "q2"]


def test_heldout_follows_the_dimensions_of_training(tmp_path):
    path = str(write(tmp_path / "h.jsonl", row("q", T="t", A="a")))
    data = load(path, dimensions=("T", "E", "A"))
    assert data.dimensions == ("T", "E", "A")
    assert data.records[0].mask == ("T", "A")
    with pytest.raises(DataError, match=r"row 1, column mask: unknown dimension 'A'; the training data have T, E"):
        load(path, dimensions=("T", "E"))


def test_a_folder_has_splits(tmp_path):
    write(tmp_path / "train.jsonl", row("q", A="a"))
    assert splits(str(tmp_path)) == ("train",)
    write(tmp_path / "test.jsonl", row("p", A="a"))
    assert splits(str(tmp_path)) == ("train", "test")
    assert splits(str(tmp_path / "test.jsonl")) == ("train",)
    assert load(str(tmp_path)).records[0].prompt[0].content == "q"
    assert load(str(tmp_path), "test").records[0].prompt[0].content == "p"


def test_every_fault_is_counted_and_alike_ones_share_a_line(tmp_path):
    rows = [row("q", A="a") | {"mask": [k]} for k in range(40)] + [{"prompt": "q", "golden": "x"}] * 9
    with pytest.raises(DataError) as error:
        load(str(write(tmp_path / "d.jsonl", *rows)))
    lines = str(error.value).splitlines()
    assert lines[0].endswith("d.jsonl: 49 faults")
    assert len(lines) == 7
    assert lines[-1].strip() == "... and 44 more"
    with pytest.raises(DataError, match=r"row 1, column mask: is missing.* \(and 8 more like it\)"):
        load(str(write(tmp_path / "d.jsonl", *rows[40:])))


def test_hub_rows_read_like_files(monkeypatch, tmp_path):
    asked = []

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        row = {"mask": "['T', 'A']", "prompt": "q", "golden": "g", "reject_A": "a", "reject_E": None, "reject_T": "t"}
        return datasets.Dataset.from_list([row])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["validation", "test", "train"])
    (record,) = load("someone/PersonaKnob", "test").records
    assert asked == [("someone/PersonaKnob", "test")]
    assert record.mask == ("A", "T")
    assert [(r.text, sorted(r.fails)) for r in record.responses] == [("g", []), ("a", ["A"]), ("t", ["T"])]
    assert record.source == "someone/PersonaKnob/test:1"
    assert splits("someone/PersonaKnob") == ("train", "test")


def test_subset_and_split_of_a_hub_data_set(monkeypatch, tmp_path):
    asked = []

    def load_dataset(*name: str, split: str) -> datasets.Dataset:
        asked.append((*name, split))
        return datasets.Dataset.from_list([row("q", A="a")])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *name: asked.append(name) or ["train", "test"])
    (record,) = load("someone/set:pairs@validation", "test").records
    assert record.source == "someone/set:pairs/validation:1"
    assert splits("someone/set:pairs@validation") == ("train",) and splits("someone/set:pairs") == ("train", "test")
    load("someone/set@dev")
    assert asked == [
        ("someone/set", "pairs", "validation"),
        ("someone/set", "pairs"),
        ("someone/set", "dev"),
    ]


@pytest.mark.parametrize(
    "problem",
    [
        ConnectionError("Couldn't reach the Hub"),
        datasets.exceptions.DatasetNotFoundError("no such data set"),
        ValueError("Unknown split"),
        RuntimeError("Dataset scripts are no longer supported"),
    ],
    ids=lambda p: type(p).__name__,
)
def test_an_unreachable_hub_says_what_to_do(monkeypatch, tmp_path, problem):
    def fail(*args: object, **kwargs: object) -> None:
        raise problem

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    for ask in (load, splits):
        with pytest.raises(DataError) as error:
            ask("someone/PersonaKnob")
        for fragment in ("no such file or folder", str(problem)[:15], "hf download someone/PersonaKnob", "give DIR"):
            assert fragment in str(error.value)


def test_a_local_path_wins_over_a_hub_id(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "data").mkdir()
    write(tmp_path / "someone" / "data" / "train.jsonl", row("q", A="a"))
    assert len(load("someone/data").records) == 1


def test_a_record_written_in_either_form_has_the_same_key(tmp_path):
    persona = {"mask": '["A"]', "prompt": "q", "golden": "golden", "reject_A": "a"}
    one = load(str(write(tmp_path / "1.jsonl", persona))).records[0]
    two = load(str(write(tmp_path / "2.jsonl", row("q", A="a")))).records[0]
    assert one.key == two.key


def test_toy_world_records_survive_the_general_form(tmp_path):
    data = generate(30, seed=1)
    rows = [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in r.prompt],
            "mask": list(r.mask),
            "responses": [{"text": x.text, "fails": sorted(x.fails)} for x in r.responses],
        }
        for r in data.records
    ]
    again = load(str(write(tmp_path / "toy.jsonl", *rows)), dimensions=data.dimensions)
    assert again.sha256 == data.sha256


def general(tmp_path: Path, *masks: list[str]) -> Path:
    rows = [
        {
            "prompt": f"Question {k}?",
            "mask": mask,
            "responses": [{"text": "Good.", "fails": []}, *({"text": f"No {d}.", "fails": [d]} for d in mask)],
        }
        for k, mask in enumerate(masks)
    ]
    path = tmp_path / "names.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("masks", "row", "said"),
    [
        ([["A+B"], ["A", "B"]], 2, "would be called 'A+B', as a dimension is"),
        ([["A+B", "C"], ["A"], ["A", "B+C"]], 3, "would be called 'A+B+C', as ['A+B', 'C'] joined is"),
        ([["A"], ["B"], ["A over B"]], 3, "would be called 'A over B', as a dimension is"),
        ([["A", "B"], ["C", "A over B"], ["B over C"]], 3, "would be called 'A over B over C'"),
    ],
)
def test_names_that_clash_with_joined_names_are_refused(
    tmp_path: Path, masks: list[list[str]], row: int, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        load(str(general(tmp_path, *masks)))
    lines = [line for line in str(caught.value).splitlines() if said in line]
    assert lines and f"row {row}" in lines[0] and "column mask" in lines[0], str(caught.value)


def test_joiners_in_names_that_clash_with_nothing_are_taken(tmp_path: Path) -> None:
    masks = ["A+B"], ["tone [/formal]", "A"], ["calm over time", "A"]
    assert load(str(general(tmp_path, *masks))).dimensions == ("A", "A+B", "calm over time", "tone [/formal]")
