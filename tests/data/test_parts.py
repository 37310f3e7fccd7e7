"""Thoughts, calls and tools in every layout of a file, and back into the general form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from dpeer.config_sources import Map
from dpeer.data.check import check
from dpeer.data.convert import general_form
from dpeer.data.load import load, load_with_faults
from dpeer.data.schema import Record
from dpeer.errors import DataError

FUNCTION = {"name": "get_weather", "arguments": {"city": "Rome"}}
CALLS = [{"type": "function", "id": "c1", "function": FUNCTION}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
USER = {"role": "user", "content": "How warm is it?"}
TALK = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "c1", "content": "18"},
]
GOOD = {"role": "assistant", "content": "It is mild.", "reasoning_content": "Eighteen."}
BAD = {"role": "assistant", "content": "Look outside."}


def read(tmp_path: Path, row: dict[str, Any]) -> Record:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (record,) = load(str(path)).records
    return record


def general(**given: Any) -> dict[str, Any]:
    golden = {"text": "It is mild.", "reasoning": "Eighteen.", "fails": []}
    reject = {"text": "Look outside.", "fails": ["preference"]}
    return {"prompt": TALK, "mask": ["preference"], "tools": TOOLS, "responses": [golden, reject]} | given


LAYOUTS = {
    "general form": general(),
    "an object as text": general(
        responses=[
            {"text": {"thinking": "Eighteen.", "text": "It is mild."}, "fails": []},
            {"text": "Look outside.", "fails": ["preference"]},
        ]
    ),
    "tools as JSON": general(tools=json.dumps(TOOLS)),
    "bare schemas": general(tools=[TOOLS[0]["function"]]),
    "arguments as JSON": json.loads(json.dumps(general()).replace('{"city": "Rome"}', '"{\\"city\\": \\"Rome\\"}"')),
    "conversations": {"chosen": [*TALK, GOOD], "rejected": [*TALK, BAD], "tools": TOOLS},
    "prompt beside": {"prompt": TALK, "chosen": [GOOD], "rejected": [BAD], "tools": TOOLS},
    "responses as objects": {
        "prompt": TALK, "chosen": {"reasoning": "Eighteen.", "text": "It is mild."}, "rejected": "Look outside.",
        "tools": TOOLS,
    },
    "PersonaKnob columns": {
        "mask": ["preference"], "prompt": TALK, "tools": TOOLS,
        "golden": {"reasoning": "Eighteen.", "text": "It is mild."}, "reject_preference": "Look outside.",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_layouts_say_the_same(tmp_path: Path, name: str) -> None:
    record = read(tmp_path, LAYOUTS[name])
    assert [(m.role, m.content, m.more) for m in record.prompt] == [
        ("user", "How warm is it?", {}),
        ("assistant", "", {"tool_calls": CALLS}),
        ("tool", "18", {"tool_call_id": "c1"}),
    ]
    assert [(r.text, r.more) for r in record.responses] == [
        ("It is mild.", {"reasoning": "Eighteen."}),
        ("Look outside.", {}),
    ]
    assert json.loads(record.tools) == TOOLS
    assert record.key == read(tmp_path, general()).key
    assert read(tmp_path, general_form(record)) == record


def test_a_table_s_nulls_are_no_arguments(tmp_path: Path) -> None:
    """Parquet gives every call the keys of all others."""
    paths = tmp_path / "d.parquet"
    other = [{"type": "function", "id": "c2", "function": {"name": "paint", "arguments": {"colour": "red"}}}]
    call = [{"text": "", "tool_calls": c, "fails": []} for c in (CALLS, other)]
    bad = {"text": "No.", "tool_calls": None, "fails": ["A"]}
    rows = [{"prompt": f"{i}?", "mask": ["A"], "responses": [c, bad]} for i, c in enumerate(call)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), paths)
    first, second = load(str(paths)).records
    assert first.responses[0].more["tool_calls"] == CALLS and second.responses[0].more["tool_calls"] == other
    assert first.responses[0].text == "" and first.responses[1].more == {}


def test_two_calls_are_two_responses(tmp_path: Path) -> None:
    """Neither `data check` nor a pair of calls takes them for the same text."""
    call = {"role": "assistant", "content": "", "tool_calls": CALLS}
    other = json.loads(json.dumps(call).replace("Rome", "Oslo"))
    path = tmp_path / "d.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"{i}?", "chosen": [call], "rejected": [other]}) + "\n" for i in (1, 2))
    )
    assert len(load(str(path)).records) == 2 and check(str(path)).errors == ()
    path.write_text(json.dumps({"prompt": "1?", "chosen": [call], "rejected": [call]}) + "\n")
    with pytest.raises(Exception, match="both responses are the same"):
        load(str(path))


OWN = general(prompt="How warm is it?")
PAIR = {"prompt": "How warm is it?", "chosen": "It is mild.", "rejected": "Look outside."}


@pytest.mark.parametrize("row", [OWN, PAIR], ids=["own form", "pair"])
def test_the_map_says_which_column_holds_tools_if_any_does(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row | {"tools": "calculator", "functions": TOOLS}) + "\n")
    with pytest.raises(DataError, match=r"column tools: must be a list or its JSON.*--map tools=none"):
        load(str(path))
    unused, functions = (load(str(path), map=Map(tools=name)).records for name in ("none", "functions"))
    assert [r.tools for r in unused] == [""] and [json.loads(r.tools) for r in functions] == [TOOLS]
    with pytest.raises(DataError, match="names the column 'gone', which is not there"):
        load(str(path), map=Map(tools="gone"))
    path.write_text(json.dumps(row | {"tools": TOOLS, "functions": "calculator"}) + "\n")
    with pytest.raises(DataError, match="column functions: must be a list"):
        load(str(path), map=Map(tools="functions"))


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        (general(tools="x"), "tools", "a list or its JSON"),
        (general(tools=[{"f": 1}]), "tools[0]", "schema of a function"),
        (general(prompt=[USER, BAD | {"tool_calls": [{"name": "f", "arguments": "["}]}, USER]),
         "prompt[1].tool_calls[0].arguments", "an object or its JSON"),
        (general(prompt=[USER | {"tool_calls": CALLS}]), "prompt[0]", "role and content only"),
        (general(prompt=[*TALK, GOOD]), "prompt", "must end with a user message (or a tool's)"),
        (general(responses=[{"text": "", "reasoning": "Hm.", "fails": []}]), "responses[0].text", "is empty"),
        (general(responses=[{"text": {"text": "a", "mood": 1}, "fails": []}]), "responses[0].text", "not 'mood'"),
        (general(responses=[{"text": "a", "reasoning": "b", "thinking": "c", "fails": []}]), "responses[0]",
         "two different"),
        (general(responses=[{"text": "a", "reasoning": 3, "fails": []}]), "responses[0].reasoning", "must be text"),
    ],
)  # fmt: skip
def test_what_is_none_is_refused_where_it_stands(tmp_path: Path, row: dict[str, Any], column: str, words: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (fault,) = load_with_faults(str(path))[1]
    assert fault.column == column and words in fault.message
