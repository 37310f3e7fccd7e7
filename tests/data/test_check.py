from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dpeer.data.check import check
from dpeer.launcher.cli import app
from tests.data.layouts import helpsteer2, jsonl, pair, saferlhf

COLUMNS = ("mask", "prompt", "golden", "reject_A", "reject_C", "reject_E", "reject_T")


def write(path: Path, *rows: dict[str, str]) -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def row(prompt: str, mask: str, **changes: str) -> dict[str, str]:
    base = {"mask": str(list(mask)), "prompt": prompt, "golden": f"golden of {prompt}"}
    return base | {f"reject_{d}": f"{d} fails, {prompt}" for d in mask} | changes


def test_counts(tmp_path):
    rows = [row("one", "AT"), row("two", "TA"), row("three", "ECT"), row("four", "AT")]
    report = check(write(tmp_path / "d.csv", *rows))
    (split,) = report.splits
    assert (report.errors, report.warnings) == ((), ())
    assert (split.name, split.records) == ("train", 4)
    assert split.masks == {"A+T": 3, "C+E+T": 1}
    assert split.edges == {"A": 3, "C": 1, "E": 1, "T": 4}
    prompts, responses = split.lengths["prompt characters"], split.lengths["response characters"]
    assert (prompts.least, prompts.median, prompts.most) == (3, 3.5, 5)
    assert (responses.least, responses.most) == (len("A fails, one"), len("golden of three"))


@pytest.mark.parametrize(
    ("rows", "errors", "warnings"),
    [
        ([row("q", "AT", reject_A="golden of q ")], ["response 2 (fails A): same text as response 1 (golden)"], []),
        ([row("q", "AT", reject_A="x", reject_T="x")], ["response 3 (fails T): same text as response 2 (fails A)"], []),
        ([row("p", "AT"), row("q", "AT", reject_T="")], [], ["d.csv:2: 'T' is active, but no response fails it alone"]),
        ([row("q", "AT"), row("q", "AT")], [], ["d.csv:2, column prompt: repeats d.csv:1: 'q'"]),
        ([row("q", "AT"), row(" q", "AT", golden="x")], [], ["d.csv:2, column prompt: has the prompt and mask of"]),
        ([row("q", "AT"), row("q", "AE")], [], []),
        (
            [
                row(
                    "Is this plan any good?",
                    "A",
                    golden="Is this plan any good? No.",
                    reject_A="Is this plan any good? Yes!",
                )
            ],
            [],
            ["d.csv:1: every response begins with the prompt: 'Is this plan any good?'"],
        ),
        ([row("q", "AT"), row("p", "AX")], ["row 2 (line 3), column mask: unknown dimension 'X'"], []),
    ],
    ids=[
        "golden equals reject",
        "equal rejects",
        "empty reject",
        "duplicate",
        "same prompt",
        "other mask",
        "with prompts",
        "bad row",
    ],
)
def test_findings(tmp_path, rows, errors, warnings):
    rows = [{k: v for k, v in r.items() if k in COLUMNS} for r in rows]
    report = check(write(tmp_path / "d.csv", *rows))
    for found, expected in ((report.errors, errors), (report.warnings, warnings)):
        assert len(found) == len(expected)
        for fault, fragment in zip(found, expected, strict=True):
            assert fragment in str(fault)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [pair("q", "x", "y"), pair(" q", "y ", "x"), pair("p", "y", "x"), pair("q", "y", "x", attribute="B")],
            ["has the prompt and mask of d.jsonl:1", "'y' over 'x' in 'A', and d.jsonl:1 has the reverse"],
        ),
        ([pair("q", "x", "y"), pair("q", "x", "z")], ["has the prompt and mask of d.jsonl:1"]),
        ([pair("q", "x", "y")] * 2, ["repeats d.jsonl:1"]),
        ([helpsteer2("q", t, d) for t, d in (("a", "44422"), ("b", "34422"), ("c", "24422"))], []),
        ([saferlhf("q", "x", "y", 0, 1)], []),
    ],
    ids=["reversed", "same prompt", "repeated", "ratings", "labels that disagree"],
)
def test_repeats_in_other_layouts(tmp_path, rows, said):
    rows = [r | {"attribute": r.get("attribute", "A")} if "chosen" in r else r for r in rows]
    (tmp_path / "d.jsonl").write_bytes(jsonl(rows))
    report = check(str(tmp_path / "d.jsonl"))
    assert report.errors == () and len(report.warnings) == len(said)
    for warning, fragment in zip(report.warnings, said, strict=True):
        assert fragment in str(warning)


def test_prompts_in_both_splits(tmp_path):
    train = write(tmp_path / "train.csv", row("one", "AT"), row("two", "AT"))
    write(tmp_path / "test.csv", row("new", "AT"), row("two ", "AE"))
    (unknown,) = check(str(tmp_path)).errors
    assert "test.csv, row 2 (line 3), column mask: unknown dimension 'E'; the training data have A, T" in str(unknown)
    write(tmp_path / "test.csv", row("new", "AT"), row("two ", "A"))
    (leak,) = check(str(tmp_path)).errors
    assert str(leak).startswith("test.csv:2, column prompt: also trained on (train.csv:2)")
    assert check(train, heldout=str(tmp_path / "test.csv")).errors == (leak,)
    assert check(train).errors == ()
    assert [s.name for s in check(str(tmp_path)).splits] == ["train", "heldout"]


def test_a_missing_heldout_file_is_an_error_not_an_exception(tmp_path):
    train = write(tmp_path / "train.csv", row("one", "AT"))
    (error,) = check(train, heldout=str(tmp_path / "gone.csv")).errors
    assert "gone.csv: no such file or folder" in str(error)


def test_token_audit(tmp_path, make_tokenizer, templates):
    path = write(tmp_path / "d.csv", row("one", "AT"), row("two", "AT", golden="Bye.<|im_end|>"))
    report = check(path, make_tokenizer(templates["chatml"]))
    (fault,) = report.errors
    assert str(fault).startswith("d.csv:2, column response 1 (golden): the text contains '<|im_end|>'")
    lengths = report.splits[0].lengths
    assert lengths["prompt tokens"].least == lengths["prompt tokens"].most > 5
    longest = lengths["prompt tokens"].most + lengths["response tokens"].most
    assert lengths["prompt + longest response tokens"].most == longest


def test_no_chat_template_is_an_error(tmp_path, make_tokenizer):
    (fault,) = check(write(tmp_path / "d.csv", row("one", "AT")), make_tokenizer(None)).errors
    assert "no chat template" in str(fault)


def test_command(tmp_path, make_tokenizer, templates):
    path = write(tmp_path / "d.csv", row("one [b]", "AT"), row("two", "CE", reject_C=""))
    make_tokenizer(templates["llama3"]).save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(app, ["data", "check", path, "--tokenizer", str(tmp_path / "model")])
    assert result.exit_code == 0
    for line in ("2 train records; errors: 0, warnings: 1", "A+T", "C+E", "prompt tokens", "'C' is active"):
        assert line in result.output

    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "vocab_size": 20}')
    result = CliRunner().invoke(app, ["data", "check", path, "--tokenizer", str(tmp_path / "model")])
    assert result.exit_code == 1 and "the model has 20 embeddings" in result.output

    result = CliRunner().invoke(app, ["data", "check", path, "--json"])
    assert result.exit_code == 0
    report = json.loads(result.output)
    assert report["splits"][0]["edges"] == {"A": 1, "C": 0, "E": 1, "T": 1}
    assert report["warnings"] == [
        {"where": "d.csv:2", "column": "", "message": "'C' is active, but no response fails it alone: empty reject?"}
    ]

    result = CliRunner().invoke(app, ["data", "show", path, "1"])
    assert result.exit_code == 0
    for line in ("d.csv:1  mask A+T", "one [b]", "response 2: fails A", "edges 1 > 2 (A), 1 > 3 (T)"):
        assert line in result.output
    result = CliRunner().invoke(app, ["data", "show", path, "3"])
    assert (result.exit_code, "has 2 records" in result.output) == (1, True)


ENDLESS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ 'calm ' if calm }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ 'calm ' if calm }}{% endif %}"
)
END = "data.end_of_turn=<|im_start|>"


def test_command_asks_as_the_settings_and_the_recipe_say(tmp_path, make_tokenizer, templates):
    path = write(tmp_path / "d.csv", row("one", "AT"), row("two", "AT"))
    make_tokenizer(ENDLESS).save_pretrained(tmp_path / "model")
    make_tokenizer(templates["chatml"]).save_pretrained(tmp_path / "other")
    (tmp_path / "chat.jinja").write_text(ENDLESS)
    template = f"model.chat_template={tmp_path / 'chat.jinja'}"
    recipe = {"name": "x", "model": {"path": str(tmp_path / "model")}, "data": {"train": "gone.csv"}}
    recipe["data"] |= {"end_of_turn": "<|im_start|>"}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe | {"training": {"epochs": 1}}))

    def asked(*options: str, tokenizer: str | None = "model") -> tuple[int, str]:
        given = () if tokenizer is None else ("--tokenizer", str(tmp_path / tokenizer))
        options = [
            part for option in options for part in (("--set", option) if "=" in option else ("--recipe", option))
        ]
        result = CliRunner().invoke(app, ["data", "check", path, *given, *options])
        return result.exit_code, " ".join(result.output.split())

    code, said = asked()
    assert code == 1 and "data.end_of_turn" in said and "--set KEY=VALUE, or by --recipe FILE" in said
    assert asked(END)[0] == asked(str(tmp_path / "r.yaml"), tokenizer=None)[0] == 0
    assert asked(tokenizer="other")[0] == 0 and asked(template, tokenizer="other")[0] == 1
    lengths = [
        asked(END, *more)[1].partition("prompt tokens")[2][:5] for more in ((), ("model.template_kwargs={calm: true}",))
    ]
    assert lengths[0] != lengths[1]
    code, said = asked(END, "model.template_kwargs={clam: true}")
    assert code == 1 and "clam" in said
    code, said = asked("data.end_of_turns=x")
    assert code == 1 and "did you mean data.end_of_turn?" in said
    assert asked(END, tokenizer=None)[0] == 2


def test_json_lists_every_fault_and_fails(tmp_path):
    path = write(tmp_path / "d.csv", *(row(f"q{k}", "AT", golden="") for k in range(40)))
    result = CliRunner().invoke(app, ["data", "check", path, "--json"])
    assert result.exit_code == 1
    assert len(json.loads(result.output)["errors"]) == 40


def test_a_tokenizer_that_is_not_there(tmp_path):
    path = write(tmp_path / "d.csv", row("one", "AT"))
    (tmp_path / "model").mkdir()
    result = CliRunner().invoke(app, ["data", "check", path, "--tokenizer", str(tmp_path / "model")])
    assert result.exit_code == 1
    assert f"{tmp_path / 'model'}: cannot be loaded" in result.output and "a tokenizer" in result.output
    assert "Traceback" not in result.output
