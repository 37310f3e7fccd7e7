"""The page of the first own run: its commands take a newcomer from a file of pairs to a certified, exported model."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from dpeer.data.order import edges
from dpeer.launcher.cli import app
from dpeer.toyworld import world as toyworld
from dpeer.toyworld.model import tiny_model
from tests.docs.pages import ROOT
from tests.docs.stage import first_evaluation

MODEL = "Qwen/Qwen3-0.6B"
TINY = ("training.optimizer.lr=1e-3", "objective.beta=0.5", "training.epochs=2")
"""A model of two layers that knows nothing wants larger steps than a trained one."""


def commands() -> list[list[str]]:
    """The page's commands, without `dpeer`, in their order."""
    text = (ROOT / "docs" / "first_run.md").read_text(encoding="utf-8")
    return [shlex.split(line, comments=True) for line in re.findall(r"^    dpeer (.+)$", text, re.MULTILINE)]


def command(*words: str) -> list[str]:
    return next(c for c in commands() if c[: len(words)] == list(words))


def bring(folder: Path, records: int) -> None:
    """pairs.jsonl in the columns of the page, and a tiny model under the page's name."""
    rows = [
        {
            "prompt": record.prompt[0].content,
            "chosen": record.responses[edge.better].text,
            "rejected": record.responses[edge.worse].text,
            "attribute": edge.dimension,
        }
        for record in toyworld.generate(records, seed=0).records
        for edge in edges(record)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_model(folder / MODEL, vocab=1024, texts=[r["chosen"] for r in rows], initializer_range=0.05)


def dpeer(arguments: list[str]) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{arguments}\n{result.output}"
    return result.output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_a_file_of_pairs_to_a_certified_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four commands (convert, check, new, train) and no YAML by hand. `train` is the run of torchrun here, which the
    page offers: it needs no cluster."""
    monkeypatch.chdir(tmp_path)
    bring(tmp_path, records=300)
    assert "dimension from attribute" in dpeer(command("data", "convert"))
    assert "proves at best" in dpeer(command("data", "check"))
    dpeer([*command("new"), *(word for setting in TINY for word in ("--set", setting))])
    train = command("train")
    done = subprocess.run(
        [sys.executable, "-m", "dpeer.launcher.torchrun", *train[1:]],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    run = tmp_path / "runs" / "mine"
    verdicts = {c["name"]: c["verdict"] for c in json.loads((run / "certificate.json").read_text())["constraints"]}
    assert set(verdicts) == set("ACET") and [*verdicts.values()].count("satisfied") >= 2, verdicts
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / MODEL, run / "export"))
    assert before.keys() == after.keys() and any(not before[k].equal(after[k].to(before[k].dtype)) for k in before)
    assert (run / "report.html").exists() and (run / "export" / "README.md").exists()


@pytest.mark.parametrize("name", ["generate", "judge"])
def test_settings_of_the_evaluation_are_sound(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("judges.yaml").write_text(first_evaluation())
    shown = dpeer([*command(name), "--dry-run"])
    assert "path: runs/mine/export" in shown and "name: mine" in shown
    assert shown.count("backend: openai") == 2 and "device: gpu" in shown
    assert "device: cpu" in dpeer([*command(name), "--set", "engine.device=cpu", "--dry-run"])


def test_every_command_of_the_page_exists() -> None:
    for words in commands():
        options = [word for word in words if re.fullmatch(r"--[a-z]+|-o", word)]
        depth = 2 if words[0] in ("data", "irt") else 1
        help_page = dpeer([*words[:depth], "--help"])
        assert all(option in help_page for option in options), words
