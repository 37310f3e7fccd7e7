"""Sources that cannot be read as they are: one screen that names file, row and column, or the place and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from dpeer.config_sources import Map
from dpeer.launcher.cli import app
from tests.data.layouts import (
    Rows,
    assistant,
    gz,
    helpsteer2,
    helpsteer3,
    jsonl,
    pair,
    saferlhf,
    ultrafeedback,
    user,
    write,
    zst,
)


@dataclass(frozen=True)
class Case:
    content: bytes | Rows | dict[str, bytes | Rows]
    said: tuple[str, ...]
    maps: tuple[str, ...] = ()
    source: str = "d.jsonl"


GOOD = pair("q", "c", "r", attribute="tone")
CASES = {
    "misspelt column": Case(
        [{"prompt": "q", "chosen": "c", "rejcted": "r"}],
        ("--map reject=WORSE (in a recipe: data.map)", "'rejcted' misspelt"),
    ),
    "other columns": Case([{"q": "q", "good": "c", "bad": "r"}], ("known layout's. Say what they are: --map prompt=",)),
    "column of the map": Case(
        [GOOD], ("d.jsonl", "'chsen'", "is 'chosen' meant?"), ("golden=chsen", "reject=rejected")
    ),
    "preset of something else": Case([GOOD], ("'context'", "the columns are"), ("helpsteer3",)),
    "unknown preset": Case(
        [GOOD], ("--map: preset: 'ultrafedback' given", "did you mean 'ultrafeedback'"), ("ultrafedback",)
    ),
    "half a map": Case([GOOD], ("--map", "does not say what its columns are"), ("golden=chosen",)),
    "name of a dimension for data of one's own": Case(
        [{"a": "b"}], ("data.map does not say what the columns are",), ("constant=tone",)
    ),
    "unknown key of a map": Case([GOOD], ("--map", "golde", "did you mean golden"), ("golde=chosen",)),
    "key that a pair does not read": Case(
        [GOOD], ("data.map: dimensions: not read where golden, reject say",), ("preference", "dimensions=[tone]")
    ),
    "key that labels do not read": Case(
        [saferlhf("q", "a", "b", 0, 1)], ("data.map: constant: not read",), ("pku_saferlhf", "constant=tone")
    ),
    "key that ratings do not read": Case(
        [helpsteer2("q", "a", "11111")], ("data.map: dimension: not read",), ("dimension=prompt",)
    ),
    "pair and score": Case(
        [GOOD],
        ("--map", "responses, score: not read where golden, reject"),
        ("golden=chosen", "reject=rejected", "responses=[chosen,rejected]", "score=s"),
    ),
    "score and labels": Case(
        [GOOD], ("--map", "labels: not read"), ("responses=[chosen,rejected]", "score=s", "labels={tone: l}")
    ),
    "no mask": Case(
        [{"prompt": "q", "golden": "c", "bad": "r"}],
        ("row 1, column mask", "is missing", "or say what the columns are by --map"),
    ),
    "weights that are not there": Case(
        [{"prompt": "q", "mask": ["A"], "golden": "c", "reject_A": "r"}], ("names the column 'w'",), ("weight=w",)
    ),
    "gap of nothing": Case([GOOD], ("gap", "greater than 0"), ("ultrafeedback", "gap=0")),
    "tie above gap": Case([GOOD], ("tie (1) must be below gap (1)",), ("ultrafeedback", "tie=1")),
    "column and constant": Case(
        [GOOD],
        ("dimension (attribute)", "constant (tone)", "give one"),
        ("preference", "dimension=attribute", "constant=tone"),
    ),
    "two prompts": Case([GOOD | {"question": "q"}], ("d.jsonl", "prompt or question", "data.map.prompt")),
    "two dimensions": Case([GOOD | {"dimension": "x"}], ("dimension or attribute", "data.map.dimension")),
    "two layouts": Case(
        [saferlhf("q", "a", "b", 0, 0) | {"chosen": "a", "rejected": "b"}],
        ("preference and pku_saferlhf", "--map preference"),
    ),
    "no prompt": Case([{"chosen": "c", "rejected": "r"}], ("d.jsonl, row 1, column chosen", "holds no prompt")),
    "prompt of another conversation": Case(
        [pair("q", [user("p"), assistant("c")], [user("p"), assistant("r")])],
        ("d.jsonl, row 1, column prompt", "is not what the conversation asks; it asks 'p'"),
    ),
    "conversation without a response": Case(
        [{"chosen": [user("q")], "rejected": [user("q"), assistant("r")]}], ("row 1, column chosen", "must end with")
    ),
    "conversation that the assistant begins": Case(
        [{"chosen": [assistant("a"), assistant("c")], "rejected": [assistant("a"), assistant("r")]}],
        ("row 1, column chosen", "must end with a user message"),
    ),
    "messages of an array": Case(
        [GOOD, GOOD | {"chosen": f"[{assistant('a')}\n {assistant('c')}]"}],
        ("row 2, column chosen", "begins like", "json.dumps"),
    ),
    "messages of an array, rated": Case(
        [helpsteer2("q", f"array([{assistant('a')}], dtype=object)", "11111")],
        ("row 1, column response", "begins like"),
    ),
    "messages in the general form": Case(
        [
            {
                "prompt": "q",
                "mask": ["A"],
                "responses": [
                    {"text": "g", "fails": []},
                    {"text": str([{"from": "gpt", "value": "a"}]), "fails": ["A"]},
                ],
            }
        ],
        ("row 1, column responses[1].text", "holds messages", "content alone"),
    ),
    "messages in PersonaKnob columns": Case(
        [{"prompt": "q", "mask": ["A"], "golden": str([assistant("c")]), "reject_A": "a"}],
        ("row 1, column golden", "holds messages"),
    ),
    "a response that calls a tool": Case(
        [{"chosen": [user("q"), assistant("c")], "rejected": [user("q"), assistant("c") | {"tool_calls": [{"f": 1}]}]}],
        ("row 1, column rejected.tool_calls[0]", "must be a call"),
    ),
    "a response with two thoughts": Case(
        [pair("q", [assistant("c") | {"reasoning_content": "x", "thinking": "y"}], "r")],
        ("row 1, column chosen", "two different thoughts"),
    ),
    "a response with what is not trained": Case(
        [pair("q", [assistant("c") | {"audio": "x"}], "r")],
        ("row 1, column chosen", "holds 'audio' beside", "would not be trained"),
    ),
    "unknown role": Case(
        [pair([{"role": "critic", "content": "x"}, user("q")], "c", "r")], ("row 1, column prompt[0].role", "'critic'")
    ),
    "response that is a number": Case(
        [GOOD, GOOD | {"rejected": 7}], ("d.jsonl, row 2, column rejected", "must be text")
    ),
    "response that marks a gap": Case([GOOD | {"chosen": "nan"}], ("row 1, column chosen", "marks a missing value")),
    "dimension that is a number": Case([GOOD | {"attribute": 3}], ("row 1, column attribute", "name of a dimension")),
    "dimension with a line break": Case([GOOD | {"attribute": "a\nb"}], ("row 1, column attribute", "plain text")),
    "row without the column": Case(
        [GOOD, {"prompt": "q", "chosen": "c"}], ("d.jsonl, row 2, column rejected", "missing")
    ),
    "weight of 0": Case([GOOD | {"weight": 0}], ("row 1, column weight", "finite number above 0")),
    "infinite weight": Case(b'{"prompt": "q", "chosen": "c", "rejected": "r", "weight": 1e999}\n', ("column weight",)),
    "weight of another name": Case([GOOD | {"w": -1}], ("row 1, column w", "above 0"), ("preference", "weight=w")),
    "rating that is text": Case(
        [helpsteer2("q", "a", "11111") | {"coherence": "good"}],
        ("row 1, column coherence", "must be a number, got 'good'"),
    ),
    "rating that is infinite": Case(
        b'{"prompt": "q", "response": "a", "warm": 1e999}\n',
        ("column warm", "finite"),
        ("ratings=[warm]", "response=response"),
    ),
    "completions that are a text": Case(
        [{"instruction": "q", "completions": "a"}], ("row 1, column completions", "must be a list")
    ),
    "completion without a response": Case(
        [ultrafeedback("q", ("a", "5555")) | {"completions": [{"text": "a"}]}],
        ("row 1, column completions[0]", "response"),
    ),
    "label of a third response": Case([saferlhf("q", "a", "b", 2, 0)], ("row 1, column better_response_id", "0 or 1")),
    "score that is text": Case(
        [helpsteer3([user("q")], "a", "b", "one")], ("row 1, column overall_preference", "number")
    ),  # type: ignore[arg-type]
    "nothing is left": Case(
        [pair("q", "c", "c"), pair("p", "r", "r")],
        ("2 of 2 comparisons", "both responses are the same", "no record is left"),
    ),
    "torn gzip": Case({"d.jsonl.gz": gz(jsonl([GOOD] * 99))[:40]}, ("d.jsonl.gz", "not a whole .gz"), (), "d.jsonl.gz"),
    "torn zstd": Case(
        {"d.jsonl.zst": zst(jsonl([GOOD] * 99))[:20]}, ("d.jsonl.zst", "not a whole .zst"), (), "d.jsonl.zst"
    ),
    "no gzip": Case({"d.csv.gz": b"prompt,chosen,rejected\n"}, ("d.csv.gz", "not a whole .gz"), (), "d.csv.gz"),
    "lines called .json": Case({"d.json": jsonl([GOOD, GOOD])}, ("d.json", "call the file .jsonl"), (), "d.json"),
    "a lost shard": Case(
        {"d/train-00000-of-00003.jsonl": [GOOD], "d/train-00002-of-00003.jsonl": [GOOD]},
        ("1 of 3 shards of train are missing", "number 1"),
        (),
        "d",
    ),
    "shards of two writings": Case(
        {"d/train-00000-of-00001.jsonl": [GOOD], "d/train-00000-of-00002.jsonl": [GOOD]}, ("several writings",), (), "d"
    ),
    "subsets": Case(
        {"d/edits/train.jsonl": [GOOD], "d/pairs/train.jsonl": [GOOD]}, ("'edits, pairs'", "as d:edits"), (), "d"
    ),
    "no such subset": Case({"d/edits/train.jsonl": [GOOD]}, ("has no subset 'pairs'", "edits"), (), "d:pairs"),
    "no such split": Case({"d/train.jsonl": [GOOD]}, ("has no split dev", "'train'"), (), "d@dev"),
    "split of a file": Case([GOOD], ("is a file, which is one split",), (), "d.jsonl@train"),
    "no split after @": Case([GOOD], ("is no source", "PATH@SPLIT"), (), "d.jsonl@"),
    "an address": Case([GOOD], ("addresses are not read",), (), "https://example.org/d.jsonl"),
    "three parts": Case([GOOD], ("owner/name:subset", "owner/name@SPLIT"), (), "owner/name/subset"),
    "loose arrow files": Case({"d/data.arrow": b"ARROW1"}, ("to_parquet()",), (), "d"),
    "half a saved data set": Case({"d/state.json": b"{}"}, ("saved by `datasets`", "cannot be read"), (), "d"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_is_one_screen_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case = CASES[name]
    write(tmp_path, case.content if isinstance(case.content, dict) else {"d.jsonl": case.content})
    monkeypatch.chdir(tmp_path)
    maps = [word for text in case.maps for word in ("--map", text)]
    result = CliRunner().invoke(app, ["data", "convert", case.source, "-o", "out.jsonl", *maps])
    assert result.exit_code == 1, result.output
    assert not (tmp_path / "out.jsonl").exists()
    assert "Traceback" not in result.output and "bug in dpeer" not in result.output
    assert len(result.output.splitlines()) <= 12
    for fragment in case.said:
        assert fragment in result.output


def test_maps_that_contradict_themselves() -> None:
    for wrong in (
        {"golden": "a", "reject": "b", "dimension": "c", "constant": "d"},
        {"response": "a", "ratings": ["x"], "dimensions": ["y"]},
        {"golden": "a", "reject": "b", "turns": "none"},
    ):
        with pytest.raises(ValidationError):
            Map(**wrong)


def test_check_tells_the_way_out_of_a_single_fault_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("f" * 100) / ("g" * 100)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / folder, {"train.jsonl": [GOOD]})
    result = CliRunner().invoke(app, ["data", "check", f"{folder}@dev"])
    assert result.exit_code == 1 and result.output.rstrip().endswith(f"{folder}@train, or give the file itself")
