"""Broken and odd data sets through the real command line: one screen and exit code 1, or read right."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dpeer.data.load import load
from dpeer.errors import DataError
from dpeer.launcher.cli import app

COLUMNS = [
    "mask",
    "seed_scene",
    "context",
    "trigger",
    "prompt",
    "golden",
    "reject_A",
    "reject_C",
    "reject_E",
    "reject_T",
]
ROW = {
    "mask": '["E", "A"]',
    "prompt": "Is my plan good?",
    "golden": "I see the work, but there is a gap.",
    "reject_A": "Yes, it is perfect!",
    "reject_E": "There is a gap.",
}
GENERAL = {
    "prompt": "Is my plan good?",
    "mask": ["E", "A"],
    "responses": [
        {"text": "I see the work, but there is a gap.", "fails": []},
        {"text": "Yes, it is perfect!", "fails": ["A"]},
        {"text": "There is a gap.", "fails": ["E"]},
    ],
}


def csv_text(*rows: dict[str, str], columns: list[str] = COLUMNS, newline: str = "\n") -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, restval="", lineterminator=newline)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def knob(**changes: str) -> str:
    return csv_text(ROW | changes)


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def turn(role: str, content: object = "x") -> dict[str, object]:
    return {"role": role, "content": content}


def general(**changes: object) -> str:
    return jsonl(GENERAL | changes)


def parquet(*rows: dict[str, object]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


def duplicate_columns() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["prompt", "prompt"]), sink)
    return sink.getvalue()


def no_rows() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([GENERAL]).slice(0, 0), sink)
    return sink.getvalue()


PARQUET = parquet(GENERAL)
Content = str | bytes | Callable[[Path], None]


@dataclass
class Case:
    """`content` of the file `name`, or a function that fills the folder; then what the message must hold."""

    id: str
    name: str
    content: Content
    fragments: tuple[str, ...] = ()


def folder(*names: str) -> Callable[[Path], None]:
    def fill(path: Path) -> None:
        for name in names:
            (path / name).write_text(knob())

    return fill


BROKEN = [
    # bytes and encodings
    Case("latin-1", "d.csv", knob(golden="Très bien").encode("latin-1"), ("line 2 is not UTF-8", "save it as UTF-8")),
    Case("utf-16 with BOM", "d.csv", knob().encode("utf-16"), ("UTF-16", "UTF-8")),
    Case("utf-16 without BOM", "d.csv", knob().encode("utf-16-le"), ("NUL byte", "line 1")),
    Case("NUL byte in a row", "d.csv", knob(golden="a\0b"), ("NUL byte", "line 2")),
    Case("escaped NUL", "d.jsonl", general(prompt="a\0b"), ("row 1", "column prompt", "NUL character")),
    Case("binary junk", "d.csv", bytes(range(256)) * 20, ("line 1 holds a NUL byte",)),
    Case("junk without NUL", "d.jsonl", bytes(range(128, 256)) * 9, ("line 1 is not UTF-8",)),
    Case("zip called CSV", "d.csv", b"PK\x03\x04\xfa\xff" * 9, ("not UTF-8",)),
    Case("half surrogate", "d.jsonl", general(prompt="x").replace('"x"', '"\\ud83d"'), ("column prompt", "surrogate")),
    # whole files
    Case("empty file", "d.csv", "", ("d.csv", "holds no records")),
    Case("empty JSONL", "d.jsonl", "\n\n \n", ("holds no records",)),
    Case("header only", "d.csv", csv_text(), ("holds no records",)),
    Case("empty parquet", "d.parquet", b"", ("not a whole Parquet file",)),
    Case("parquet without rows", "d.parquet", no_rows(), ("holds no records",)),
    Case("parquet without its end", "d.parquet", PARQUET[:-4] + b"XXXX", ("not a whole Parquet file",)),
    Case("truncated parquet", "d.parquet", PARQUET[: len(PARQUET) // 2], ("d.parquet", "not a whole Parquet file")),
    Case("CSV called parquet", "d.parquet", knob(), ("not a whole Parquet file",)),
    Case("parquet called CSV", "d.csv", PARQUET, ("d.csv", "NUL byte")),
    Case("other suffix", "d.xlsx", b"PK", (".xlsx", "use .csv, .json, .jsonl or .parquet")),
    Case("no suffix", "data", knob(), ("file without suffix", ".parquet")),
    Case("missing file", "gone.csv", folder(), ("no such file or folder", "gone.csv")),
    Case("missing path", "no/such/dir", folder(), ("no such file or folder",)),
    Case("empty folder", "", folder(), ("no file train.csv", "it holds nothing")),
    Case("folder of others", "", folder("notes.txt", "all.csv"), ("no file train.*", "@all, or give")),
    Case("two train files", "", folder("train.csv", "train.jsonl"), ("more than one file of the split train, 'train",)),
    Case("folder called d.csv", "d.csv", lambda p: (p / "d.csv").mkdir(), ("no file train.csv",)),
    # CSV structure
    Case("ragged, short", "d.csv", knob() + "only,two\n", ("row 2 (line 3)", "2 cells, the header has 10")),
    Case("ragged, long", "d.csv", knob().rstrip("\n") + ",extra\n", ("row 1 (line 2)", "11 cells")),
    Case("unclosed quote", "d.csv", knob() + '"[""A""]",s,c,t,"no end\n', ("starts at line 3", "quote")),
    Case("bare quote", "d.csv", knob() + '"[""A""]",s,c,t,"a "quoted" word",g,r,,,\n', ("row 2", "quote")),
    Case("semicolons", "d.csv", knob().replace(",", ";"), ("delimiter is not a comma",)),
    Case("tabs", "d.csv", knob().replace(",", "\t"), ("delimiter is not a comma",)),
    Case("duplicate columns", "d.csv", knob().replace("reject_C", "reject_A", 1), ("'reject_A' occurs twice",)),
    Case("duplicate parquet columns", "d.parquet", duplicate_columns(), ("'prompt' occurs twice",)),
    Case("no header", "d.csv", knob().split("\n", 1)[1] * 2, ("columns", "neither PersonaKnob's")),
    Case("JSONL called CSV", "d.csv", general() * 2, ("d.csv",)),
    # columns
    Case("golden column missing", "d.csv", knob().replace("golden", "goldn", 1), ("column golden", "'goldn' misspelt")),
    Case("mask column missing", "d.csv", knob().replace("mask", "Mask", 1), ("column mask", "'Mask' misspelt")),
    Case("prompt missing", "d.jsonl", jsonl({"mask": ["A"], "responses": []}), ("column prompt: is missing",)),
    Case("other data set", "d.jsonl", jsonl({"better": "x", "worse": "y"}), ("better, worse", "data.map")),
    Case("mixed forms in a row", "d.jsonl", general(golden="x"), ("mixed forms", "column responses")),
    Case("mixed forms in a file", "d.jsonl", jsonl(ROW, GENERAL), ("row 2", "mixed forms")),
    # mask
    Case("mask not a list", "d.csv", knob(mask="E and A"), ("column mask", "'E and A'", '["A", "T"]')),
    Case("mask a string", "d.csv", knob(mask='"EA"'), ("column mask", "got str 'EA'")),
    Case("mask a dict", "d.csv", knob(mask="{'E': 1}"), ("column mask", "got dict")),
    Case("mask a call", "d.csv", knob(mask="__import__('os').getcwd()"), ("column mask", "__import__")),
    Case("mask unclosed", "d.csv", knob(mask="['E', 'A'"), ("column mask", "['E', 'A'")),
    Case("mask bottomless", "d.csv", knob(mask="[" * 900), ("column mask", "got the text '[[[")),
    Case("mask of numbers", "d.csv", knob(mask="[1, 2]"), ("column mask", "got 1")),
    Case("mask nested", "d.jsonl", general(mask=[["E", "A"]]), ("column mask", "['E', 'A']")),
    Case("mask empty", "d.csv", knob(mask="[]"), ("column mask", "is empty")),
    Case("mask cell empty", "d.csv", knob(mask=""), ("column mask", "got the text ''")),
    Case("mask null", "d.jsonl", general(mask=None), ("column mask", "NoneType None")),
    Case("mask with duplicates", "d.csv", knob(mask='["A", "A"]'), ("column mask", "names 'A' twice")),
    Case("unknown dimension", "d.csv", knob(mask='["A", "Z"]'), ("row 1 (line 2)", "'Z'", "known: A, C, E, T")),
    Case("blank dimension", "d.jsonl", general(mask=["E", "A", " "]), ("column mask", "' '")),
    # texts
    Case("50 MB cell", "d.csv", knob(golden="x" * 50_000_000), ("column golden", "50,000,000 characters")),
    Case("prompt empty", "d.csv", knob(prompt="  "), ("column prompt", "is empty")),
    Case("prompt null", "d.jsonl", general(prompt=None), ("column prompt", "is empty (None)")),
    Case("prompt a number", "d.jsonl", general(prompt=7), ("column prompt", "must be text, got int 7")),
    Case("prompt NaN", "d.jsonl", general(prompt=math.nan), ("row 1", "NaN is not a JSON value")),
    Case("prompt nan text", "d.csv", knob(prompt="nan"), ("column prompt", "marks a missing value")),
    Case("golden empty", "d.csv", knob(golden=""), ("column golden", "is empty")),
    Case("NaN in parquet", "d.parquet", parquet(ROW | {"golden": math.nan}), ("column golden", "is empty (nan)")),
    Case("bytes in parquet", "d.parquet", parquet(ROW | {"prompt": b"\xff"}), ("column prompt", "got bytes")),
    Case("all rejects empty", "d.csv", knob(reject_A="", reject_E=""), ("reject_X", "states no preference")),
    Case("reject outside the mask", "d.csv", knob(reject_T="Trust me."), ("column reject_T", "not in the mask")),
    # general form
    Case("responses null", "d.jsonl", general(responses=None), ("column responses", "NoneType")),
    Case("responses as text", "d.jsonl", general(responses="[]"), ("column responses", "got str '[]'")),
    Case("responses empty", "d.jsonl", general(responses=[]), ("no golden response",)),
    Case("responses nested", "d.jsonl", general(responses=[GENERAL["responses"]]), ("responses[0]", "text and fails")),
    Case("fails missing", "d.jsonl", general(responses=[{"text": "x"}]), ("responses[0]", "text and fails")),
    Case("fails null", "d.jsonl", general(responses=[{"text": "x", "fails": None}]), ("[0].fails", "NoneType")),
    Case("text a list", "d.jsonl", general(responses=[{"text": ["x"], "fails": []}]), ("[0].text", "got list")),
    Case("golden missing", "d.jsonl", general(responses=GENERAL["responses"][1:]), ("no golden response",)),
    Case("golden alone", "d.jsonl", general(responses=GENERAL["responses"][:1]), ("states no preference",)),
    Case("fails outside the mask", "d.jsonl", general(mask=["A"]), ("responses[2].fails", "'E' is not in the mask")),
    Case("general form in CSV", "d.csv", 'prompt,mask,responses\nq,"[""A""]",[]\n', ("JSONL or Parquet",)),
    # messages
    Case("unknown role", "d.jsonl", general(prompt=[turn("bot")]), ("prompt[0].role", "'bot'")),
    Case("no user message", "d.jsonl", general(prompt=[turn("system")]), ("ends with system",)),
    Case("no messages", "d.jsonl", general(prompt=[]), ("column prompt", "ends with nothing")),
    Case("late system", "d.jsonl", general(prompt=[turn("user"), turn("system")]), ("must be the first",)),
    Case("content missing", "d.jsonl", general(prompt=[{"role": "user"}]), ("prompt[0]", "role and content only")),
    Case("content a list", "d.jsonl", general(prompt=[turn("user", [1])]), ("prompt[0].content", "got list")),
    Case("tool calls", "d.jsonl", general(prompt=[turn("user") | {"tool_calls": [1]}]), ("prompt[0]", "tool_calls")),
    Case("messages of text", "d.jsonl", general(prompt=["x"]), ("prompt[0]", "'x'")),
    # JSON syntax
    Case("JSON syntax, line 3", "d.jsonl", general() * 2 + '{"prompt": "q", }\n', ("row 3", "is not JSON", "near")),
    Case("cut-off JSON", "d.jsonl", general() + general()[:50], ("row 2", "is not JSON")),
    Case("JSON array file", "d.jsonl", json.dumps([GENERAL]), ("row 1", "one JSON object per line")),
    Case("indented JSON", "d.jsonl", json.dumps(GENERAL, indent=1), ("row 1", "is not JSON", "... and")),
    Case("duplicate keys", "d.jsonl", '{"prompt": "a", "prompt": "b"}\n', ("'prompt' occurs twice",)),
    Case("bottomless JSON", "d.jsonl", "[" * 200_000, ("row 1", "nested too deeply")),
    Case("number of 9,000 digits", "d.jsonl", '{"prompt": ' + "1" * 9000 + "}\n", ("row 1", "is not JSON")),
    # many faults
    Case("every row", "d.csv", csv_text(*[ROW | {"golden": ""}] * 300), ("299 more like it",)),
    Case("99 kinds", "d.csv", csv_text(*(ROW | {"mask": f"m{i}" * 50} for i in range(99))), ("row 5", "and 94 more")),
]  # fmt: skip


def place(case: Case, tmp_path: Path) -> Path:
    path = tmp_path / case.name
    if isinstance(case.content, bytes):
        path.write_bytes(case.content)
    elif isinstance(case.content, str):
        path.write_bytes(case.content.encode())
    else:
        case.content(tmp_path)
    return path


@pytest.mark.parametrize("case", BROKEN, ids=lambda c: c.id)
def test_a_broken_data_set_gives_one_screen(case, tmp_path):
    path = place(case, tmp_path)
    result = CliRunner().invoke(app, ["data", "check", str(path)])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert "This is a bug" not in result.output
    screen_lines = sum(max(1, math.ceil(len(line) / 80)) for line in result.output.splitlines())
    assert screen_lines <= 24
    with pytest.raises(DataError) as error:
        load(str(path))
    for fragment in case.fragments:
        assert fragment in result.output
        assert fragment in str(error.value)
    assert result.output.isprintable() or all(c == "\n" or c.isprintable() for c in result.output)


ODD = [
    Case("plain", "d.csv", knob()),
    Case("mask as a Python literal", "d.csv", knob(mask="['E', 'A']")),
    Case("mask in another order", "d.csv", knob(mask="['A', 'E']")),
    Case("BOM", "d.csv", knob().encode("utf-8-sig")),
    Case("BOM in JSONL", "d.jsonl", general().encode("utf-8-sig")),
    Case("CRLF", "d.csv", csv_text(ROW, newline="\r\n")),
    Case("CR", "d.csv", csv_text(ROW, newline="\r")),
    Case("CRLF in JSONL", "d.jsonl", general().replace("\n", "\r\n")),
    Case("no final newline", "d.csv", knob().rstrip("\n")),
    Case("blank lines", "d.csv", knob().replace("\n", "\n\n")),
    Case("blank lines in JSONL", "d.jsonl", "\n" + general() + "\n\n"),
    Case("spaces in the header", "d.csv", knob().replace("golden,", " golden ,", 1)),
    Case("columns in another order", "d.csv", csv_text(ROW, columns=COLUMNS[::-1])),
    Case("more columns", "d.csv", csv_text(ROW | {"id": "7"}, columns=["id", *COLUMNS])),
    Case("blank inactive reject", "d.csv", knob(reject_T=" ")),
    Case("null inactive reject", "d.jsonl", jsonl(ROW | {"reject_T": None})),
    Case("NaN inactive reject in parquet", "d.parquet", parquet(ROW | {"reject_T": math.nan})),
    Case("PersonaKnob in JSONL, mask a list", "d.jsonl", jsonl(ROW | {"mask": ["E", "A"]})),
    Case("general form in parquet", "d.parquet", parquet(GENERAL)),
    Case("one message", "d.jsonl", general(prompt=[{"role": "user", "content": "Is my plan good?"}])),
    Case("folder", "", folder("train.csv", "notes.txt")),
]


@pytest.mark.parametrize("case", ODD, ids=lambda c: c.id)
def test_an_odd_data_set_reads_right(case, tmp_path):
    path = place(case, tmp_path)
    data = load(str(path))
    assert data.dimensions == ("A", "E")
    (record,) = data.records
    assert record.mask == ("A", "E")
    assert [(m.role, m.content) for m in record.prompt] == [("user", "Is my plan good?")]
    assert {(r.text, r.fails) for r in record.responses} == {
        ("I see the work, but there is a gap.", frozenset()),
        ("Yes, it is perfect!", frozenset("A")),
        ("There is a gap.", frozenset("E")),
    }
    assert CliRunner().invoke(app, ["data", "check", str(path)]).exit_code == 0


def test_texts_come_through_verbatim(tmp_path):
    text = '  "Quoted", with a line\r\nbreak, \u2028 and ünïcödé 👩\u200d💻\t'
    (tmp_path / "d.csv").write_text(knob(golden=text), encoding="utf-8", newline="")
    (tmp_path / "d.jsonl").write_text(
        json.dumps(ROW | {"golden": text}, ensure_ascii=False), encoding="utf-8", newline=""
    )
    for name in ("d.csv", "d.jsonl"):
        assert load(str(tmp_path / name)).records[0].responses[0].text == text


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_ends_in_records_or_a_data_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / data.draw(st.sampled_from(["d.csv", "d.jsonl"]))
    content = bytearray((knob() if path.suffix == ".csv" else general()).encode() * 2)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.sampled_from(b'",\n\r[]{}\\ a\x00\xff').map(lambda b: bytes([b]))
        )
    path.write_bytes(content)
    try:
        assert load(str(path)).records
    except DataError as error:
        assert str(error)


@pytest.mark.parametrize("keep", range(0, len(PARQUET), 61))
def test_parquet_cut_anywhere(tmp_path, keep):
    path = tmp_path / "d.parquet"
    path.write_bytes(PARQUET[:keep])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        load(str(path))
