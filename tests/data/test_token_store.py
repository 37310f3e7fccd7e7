"""Records tokenised once: the same trees, splits and hashes as in memory, and never a folder that is not whole."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerFast

from dpeer.config import Config
from dpeer.data import pool, stream
from dpeer.data.packing import all_forward_tokens, all_responses, forward_tokens
from dpeer.data.token_store import TOKENS, Store, StoredSet
from dpeer.data.tokenize import TokenizedSet, tokenize
from dpeer.errors import DataError
from dpeer.estimate.throughput import ABOUT_A_RECORD, tokenising
from dpeer.model.flops import Lengths
from dpeer.training import token_place
from dpeer.training import tokens as module
from dpeer.training.prepare import split_records
from dpeer.training.tokens import tokens
from tests.data.conftest import CHATML, LLAMA3

Make = Callable[[str | None], PreTrainedTokenizerFast]
WORDS = ["plan", "good", "gap", "budget", "yet", "hear", "you", "é", "no"]


def rows(count: int, seed: int = 0, names: str = "AET") -> list[dict[str, Any]]:
    """The last name only occurs in the last row, so that most blocks do not know it."""
    rng = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(2, most)))

    def row(i: int) -> dict[str, Any]:
        mask = sorted(rng.sample(names[:-1], rng.randint(1, len(names) - 1))) + ([names[-1]] if i == count - 1 else [])
        answers = [{"text": f"{i} {text(9)}", "fails": []}, *({"text": f"{d} {text(9)}", "fails": [d]} for d in mask)]
        return {"prompt": f"{i // 2} {text(12)}" if i % 5 else f"{seed}, {i // 10}", "mask": mask, "responses": answers}

    return [row(i) for i in range(count)]


def jsonl(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def recipe(folder: Path, **data: Any) -> Config:
    fields = {"train": str(folder / "train.jsonl"), "max_tokens": 60, **data}
    evidence = {"dual": {"evidence": "batch" if fields.get("dual") == "none" else "split"}}
    return Config.model_validate(
        {
            "name": "x",
            "output_dir": folder / "runs",
            "model": {"path": "m"},
            "data": fields,
            "objective": evidence,
            "training": {"steps": 1},
        }
    )


def in_memory(config: Config, tokenizer: PreTrainedTokenizerFast) -> dict[str, TokenizedSet]:
    spec = config.data
    records = split_records(config)
    return {name: tokenize(data, tokenizer, spec.max_tokens, spec.overlong) for name, data in records.items()}


def assert_same(stored: StoredSet, data: TokenizedSet) -> None:
    assert list(stored.trees) == list(data.trees)
    assert (stored.dimensions, stored.dropped, stored.cut) == (data.dimensions, data.dropped, data.cut)
    assert (stored.sha256, stored.edges) == (data.sha256, data.edges)
    assert stored.prompts_with_edges == data.prompts_with_edges
    assert all_forward_tokens(stored.trees).tolist() == [forward_tokens(t) for t in data.trees]
    assert all_responses(stored.trees).tolist() == [len(t.responses) for t in data.trees]


@pytest.mark.parametrize(
    ("template", "data"),
    [
        pytest.param(CHATML, {}, id="shares of the training records"),
        pytest.param(LLAMA3, {"overlong": "cut_prompt", "heldout": "20%", "dual": "none"}, id="cut prompts"),
        pytest.param(
            CHATML, {"heldout": "held.csv", "dual": "dual.parquet", "max_tokens": 50}, id="files of all kinds"
        ),
        pytest.param(CHATML, {"heldout": "none", "dual": "none", "max_tokens": 10_000}, id="one split"),
    ],
)
def test_as_in_memory(
    tmp_path: Path, make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch, template: str, data: dict[str, Any]
) -> None:
    monkeypatch.setattr(stream, "BLOCK", 3000)
    monkeypatch.setattr(stream, "ROWS", 7)
    helpers = 1 if data else 2  # for each file anew, and each loads transformers
    monkeypatch.setattr(pool, "cpus", lambda: helpers)
    jsonl(tmp_path / "train.jsonl", rows(120))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(40, 1, "AE")), tmp_path / "dual.parquet")
    with (tmp_path / "held.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["mask", "prompt", "golden", "reject_A", "reject_T"])
        out.writerows([str(["T", "A"]), f"line\nbreak {i}", f"yes, {i}", "no", f'"{i}"'] for i in range(30))
    data = {k: str(tmp_path / v) if "." in str(v) else v for k, v in data.items()}
    config, tokenizer = recipe(tmp_path, **data), make_tokenizer(template)
    store, expected = tokens(config, tokenizer), in_memory(config, tokenizer)
    assert list(store.state["splits"]) == list(expected)
    for name, split in expected.items():
        assert_same(store.split(name), split)
    trees, records = store.split("train").trees, split_records(config)["train"].records
    assert [trees.question(i) for i in (0, 3)] == [records[trees[i].index].prompt[-1].content for i in (0, 3)]
    assert [t.index for t in trees[2:5]] == [trees[i].index for i in (2, 3, 4)]


def test_several_processes_make_the_same(
    tmp_path: Path, make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stream, "BLOCK", 2000)
    config, tokenizer = recipe(tmp_path), make_tokenizer(CHATML)
    jsonl(tmp_path / "train.jsonl", rows(80))
    monkeypatch.setattr(pool, "cpus", lambda: 1)
    alone = tokens(config, tokenizer)
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.setattr(pool, "cpus", lambda: 2)
    together = tokens(config, tokenizer)
    assert together.state["files"] == alone.state["files"]
    bad = rows(80)
    bad[70]["responses"][0]["text"] = "a <|im_end|>"
    jsonl(tmp_path / "train.jsonl", bad)
    with pytest.raises(DataError, match=r"train.jsonl:71, column response 1 \(golden\): the text contains"):
        tokens(config, tokenizer)
    monkeypatch.setattr(pool.sys, "executable", shutil.which("false"))
    with pytest.raises(DataError, match=r"ended early.*DPEER_TOKENIZE_CPUS"):
        tokens(config, tokenizer)
    assert capfd.readouterr().err == ""


BROKEN = {
    "a row without a golden response": lambda lines: [*lines, '{"prompt": "p", "mask": ["A"], "responses": []}'],
    "no JSON": lambda lines: [*lines, "{", lines[0]],
    "twice the same key": lambda lines: ['{"prompt": "p", "prompt": "q"}', *lines],
    "two forms": lambda lines: [*lines, '{"prompt": "p", "mask": ["A"], "golden": "g", "reject_A": "r"}'],
    "a NUL": lambda lines: [*lines, "\0"],
    "half a character": lambda lines: [*lines, "\udcff"],
    "nothing": lambda lines: [],
    "white space": lambda lines: [" ", ""],
    "names that clash": lambda lines: [
        *lines,
        '{"prompt": "p", "mask": ["A+E"], "responses": [{"text": "a", "fails": []}, {"text": "b", "fails": ["A+E"]}]}',
    ],
    "a control token": lambda lines: [*lines, lines[0].replace("plan", "<s>"), lines[1]],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_faults_are_those_of_reading_in_memory(tmp_path: Path, make_tokenizer: Make, kind: str) -> None:
    made = [*rows(6), {"prompt": "plan", "mask": ["A", "E"], "responses": rows(1)[0]["responses"]}]
    lines = [json.dumps(row) for row in made]
    text = "\n".join(BROKEN[kind]([lines[-1], *lines]))
    (tmp_path / "train.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    config, tokenizer = recipe(tmp_path, heldout="none", dual="none"), make_tokenizer(CHATML)
    with pytest.raises(DataError) as expected:
        in_memory(config, tokenizer)
    with pytest.raises(DataError) as error:
        tokens(config, tokenizer)
    assert str(error.value) == str(expected.value)
    assert not [p for p in (tmp_path / "runs" / "tokens").glob("*") if p.is_dir()]


def test_other_refusals(tmp_path: Path, make_tokenizer: Make) -> None:
    jsonl(tmp_path / "train.jsonl", rows(20))
    other = jsonl(tmp_path / "other.jsonl", rows(5, 2, "AEX"))
    for data, template, says in (
        ({"dual": str(other)}, CHATML, "unknown dimension 'X'; the training data have A, E, T"),
        ({"heldout": str(tmp_path / "lost.jsonl")}, CHATML, "no such file"),
        ({"max_tokens": 8}, CHATML, r"none of the \d+ records fits into max_tokens 8"),
        ({}, None, "has no chat template"),
    ):
        with pytest.raises(DataError, match=says):
            tokens(recipe(tmp_path, **data), make_tokenizer(template))


def test_what_the_tokens_depend_on(tmp_path: Path, make_tokenizer: Make) -> None:
    jsonl(tmp_path / "train.jsonl", rows(40))
    copy = shutil.copy(tmp_path / "train.jsonl", tmp_path / "copy.jsonl")
    tokenizer = make_tokenizer(CHATML)
    folders = [
        tokens(config, t).folder
        for config, t in (
            (recipe(tmp_path), tokenizer),
            (recipe(tmp_path, train=str(copy)), make_tokenizer(CHATML)),
            (recipe(tmp_path, dual="20%"), tokenizer),
            (recipe(tmp_path, max_tokens=90), tokenizer),
            (recipe(tmp_path), make_tokenizer(LLAMA3)),
        )
    ]
    assert len(set(folders)) == 5  # what is told of records names their file
    assert tokens(recipe(tmp_path), make_tokenizer(CHATML)).folder == folders[0]
    before = os.stat(tmp_path / "train.jsonl")
    jsonl(tmp_path / "train.jsonl", rows(40, 5))
    assert os.stat(tmp_path / "train.jsonl").st_mtime_ns != before.st_mtime_ns
    assert tokens(recipe(tmp_path), tokenizer).folder not in folders


@pytest.fixture
def made(tmp_path: Path, make_tokenizer: Make) -> tuple[Config, PreTrainedTokenizerFast, Store]:
    jsonl(tmp_path / "train.jsonl", rows(30))
    config, tokenizer = recipe(tmp_path), make_tokenizer(CHATML)
    return config, tokenizer, tokens(config, tokenizer)


@pytest.mark.parametrize("name", [TOKENS, "columns.npy", "starts.npy", "train.npy", "prompts.jsonl", "store.json"])
def test_damage_is_named_and_made_good(
    made: tuple[Config, PreTrainedTokenizerFast, Store], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    config, tokenizer, store = made
    expected = in_memory(config, tokenizer)
    whole = (store.folder / name).read_bytes()
    for damaged in (whole[:-4], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], b"", None):
        (store.folder / name).unlink()
        if damaged is not None:
            (store.folder / name).write_bytes(damaged)
        again = tokens(config, tokenizer, whole=True)
        assert f"{name} " in capsys.readouterr().out
        for split, data in expected.items():
            assert_same(again.split(split), data)
    assert [p.name for p in store.folder.parent.glob("*") if p.is_dir()] == [store.folder.name]


def test_the_plan_knows_how_much_disk_tokens_need(made: tuple[Config, PreTrainedTokenizerFast, Store]) -> None:
    _, _, store = made
    lengths = [Lengths.of(tree) for name in store.state["splits"] for tree in store.split(name).trees]
    tokens_only = tokenising(lengths)[1] - ABOUT_A_RECORD * len(lengths)
    assert tokens_only == (store.folder / TOKENS).stat().st_size


def test_a_rank_notices_a_changed_record_when_it_reads_it(made: tuple[Config, PreTrainedTokenizerFast, Store]) -> None:
    config, tokenizer, store = made
    third, fourth = (int(row) for row in store.split("train").trees.rows[3:5])
    with (store.folder / TOKENS).open("r+b") as file:
        file.seek(int(store.starts[fourth]) * 4 + 5)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))
    opened = tokens(config, tokenizer)
    good = store.tree(third, 3)
    assert opened.tree(third, 3) == good
    with pytest.raises(DataError, match=rf"{TOKENS}: record {fourth} does not match its checksum.*delete"):
        opened.tree(fourth, 4)


def test_what_is_not_whole_is_not_used(tmp_path: Path, make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "train.jsonl", rows(30))
    config, tokenizer = recipe(tmp_path), make_tokenizer(CHATML)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    place = tmp_path / "runs" / "tokens"
    with monkeypatch.context() as patch:
        patch.setattr(module.Writer, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            tokens(config, tokenizer)
        assert not [p for p in place.iterdir() if p.is_dir()]
        patch.setattr(token_place.shutil, "rmtree", lambda *_, **__: None)  # as a kill leaves it
        with pytest.raises(KeyboardInterrupt):
            tokens(config, tokenizer)
    assert [p.suffix for p in place.iterdir() if p.is_dir()] == [".part"]
    store = tokens(config, tokenizer)
    assert [p for p in place.iterdir() if p.is_dir()] == [store.folder]


def test_leftovers_go_when_their_maker_is_surely_dead(
    made: tuple[Config, PreTrainedTokenizerFast, Store],
) -> None:
    """Those of this node, whose lock is free; those of others, whose locks may not be seen, when they are silent."""
    config, tokenizer, store = made
    name, place = store.folder.name, store.folder.parent
    here, fresh, silent = (
        place / f".{name}.{node}.{kind}"
        for node, kind in ((token_place._node(), "1.part"), ("a", "2.part"), ("b", "3.damaged"))
    )
    for folder in (here, fresh, silent):
        folder.mkdir()
        (folder / TOKENS).write_bytes(b"half")
    for path in (silent, silent / TOKENS):
        os.utime(path, (1e9, 1e9))
    (store.folder / "store.json").unlink()
    tokens(config, tokenizer)
    assert {p.name for p in place.iterdir() if p.is_dir()} == {name, fresh.name}


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonl(tmp_path / "train.jsonl", rows(30))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.Writer, "_save", full)
        with pytest.raises(
            DataError, match=r"tokens cannot be written \(No space.*make room there; or .* DPEER_TOKENS"
        ):
            tokens(recipe(tmp_path), make_tokenizer(CHATML))
    assert not [p for p in (tmp_path / "runs" / "tokens").iterdir() if p.is_dir()]
    assert len(tokens(recipe(tmp_path), make_tokenizer(CHATML)).split("train").trees)


def test_a_folder_that_may_only_be_read(
    made: tuple[Config, PreTrainedTokenizerFast, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is whole there is used; what is damaged or missing is refused at once."""
    config, tokenizer, store = made

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(module, "write_json", refused)
    monkeypatch.setattr(token_place.os, "rename", refused)
    monkeypatch.setattr(token_place.Path, "mkdir", refused)
    assert tokens(config, tokenizer, whole=True).folder == store.folder
    (store.folder / "columns.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"tokens may not be written \(Read-only file system\).*DPEER_TOKENS"):
        tokens(config, tokenizer)


@pytest.mark.parametrize("locks", [True, False])
def test_two_at_once(
    tmp_path: Path,
    make_tokenizer: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    locks: bool,
) -> None:
    """With locks one makes it; without, both do, one folder stays, and both use it."""
    jsonl(tmp_path / "train.jsonl", rows(30))
    config = recipe(tmp_path)
    both, writes, said, write = threading.Barrier(2, timeout=60), [], [""], module._write

    def slowly(*arguments: Any) -> None:
        writes.append(1)
        if not locks:
            both.wait()
        while locks and "waiting for it" not in said:
            said.append(capsys.readouterr().out.partition("; ")[2].strip(".\n"))
        write(*arguments)

    def refused(*_: Any) -> None:
        raise OSError(38, "not implemented")

    monkeypatch.setattr(module, "_write", slowly)
    monkeypatch.setattr(token_place, "POLL_S", 0.01)
    if not locks:
        monkeypatch.setattr(token_place.fcntl, "flock", refused)
    found: list[Store] = []
    tokenizers = [make_tokenizer(CHATML), make_tokenizer(CHATML)]
    threads = [threading.Thread(target=lambda t=t: found.append(tokens(config, t))) for t in tokenizers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(writes) == (1 if locks else 2) and len({store.folder for store in found}) == 1
    assert list(found[0].split("train").trees) == list(found[1].split("train").trees)
    assert [p.name for p in found[0].folder.parent.iterdir() if p.is_dir()] == [found[0].folder.name]
