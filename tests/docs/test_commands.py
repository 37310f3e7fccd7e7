"""Commands of README, CONTRIBUTING and docs: which are run, which are not and why; options of all are looked up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from dpeer.launcher.cli import app
from dpeer.launcher.pdf import BROWSERS
from tests.docs.commands import Command, commands
from tests.docs.pages import ROOT, pages
from tests.docs.stage import answers, build, own_files

STANDS_FOR = {
    "SWEEP.yaml": "tolerance.yaml",
    "LOOP.yaml": "loop.yaml",
    "RUN": "runs/demo/lagrangian",
    "FIT": "runs/demo/evaluation/irt",
    "RATINGS": "ratings.parquet",
    "FOLDER": "folder",
    "PATH": "runs/demo/base",
    "base=PATH": "base=runs/demo/base",
    "pooled": "sft",  # of the two arms the fit of the tests has one
}
"""Words in capitals on the pages, and what a reader here puts for them."""
PLANNED = {
    ("train",): ("--dry-run",),
    ("generate",): ("--dry-run",),
    ("judge",): ("--plan-only",),
    ("build",): ("--plan-only",),
    ("bench",): ("--plan-only",),
    ("loop",): ("--dry-run",),
    ("sweep", "run"): ("--dry-run",),
    ("data", "audit"): ("--plan-only",),
}
"""Long work is planned: the whole command is read, its files and settings are resolved, and nothing is spent."""
ALREADY = {"--dry-run", "--plan-only", "--list", "--export"}
"""Options with which nothing is asked or trained."""
SMALLER = {
    ("irt", "fit"): ("--warmup", "60", "--draws", "60", "--chains", "2"),
}
ALL = [command for page in pages() for command in commands(page)]
RUN = [command for command in ALL if not command.reason]
COMMAND: Any = typer.main.get_command(app)
PAGES = list(dict.fromkeys(command.page for command in RUN))


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def dpeer_words(command: Command) -> list[str]:
    return [STANDS_FOR.get(word, word) for word in command.words[1:]]


def extended(words: list[str]) -> list[str]:
    if not any(shutil.which(program) for program in (os.environ.get("CHROME", ""), *BROWSERS) if program):
        words = [word for word in words if word != "--pdf"]  # no browser here prints: tests/launcher/test_pdf.py
    for table in (PLANNED, SMALLER):
        for begin, more in table.items():
            if tuple(words[: len(begin)]) == begin and not ALREADY & set(words):
                words = [*words, *more]
    return words


def unknown_options(words: list[str]) -> list[str]:
    """Options that the command does not have. Nothing is called: one such as --install-completion acts at once."""
    command = COMMAND
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    known = {o for parameter in command.params for o in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    if command.name == "ratings" and words:  # a registered benchmark, whose command is made when it is asked for
        known |= {"-o", "--output"}
    given = [word.strip("[]").split("=")[0] for word in words if re.match(r"\[?--?[a-zA-Z]", word)]
    return [option for option in given if option not in known]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("stage"))


@pytest.fixture
def place(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(shutil.copytree(stage, tmp_path / "reader"))
    cache = Path(os.environ.get("DPEER_CACHE", ROOT / ".cache")).resolve()
    for key, value in {
        "HOME": str(folder),
        "DPEER_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": "-",
        "COLUMNS": "120",
    }.items():
        monkeypatch.setenv(key, value)
    for module in ("huggingface_hub.constants", "datasets.config"):  # they have read the environment already
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(folder)
    yield folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_of_a_page_run_in_their_order(page: Path, place: Path) -> None:
    own_files(page.name, place)
    failed = [f"{name(page)}:{c.line}: {c.text}\n{output}" for c in RUN if c.page == page if (output := run(c))]
    assert not failed, "\n\n".join(failed)


def run(command: Command) -> str:
    """What a command said when it failed; empty where it did not."""
    program, *words = command.words
    if program == "dpeer":
        words = extended(dpeer_words(command))
        if words[0] == "judge":
            answers(words[1])
        result = CliRunner().invoke(app, words)
        return "" if result.exit_code == 0 else f"exit code {result.exit_code}\n{result.output[-2000:]}"
    if program == "make":
        line = ["make", "-n", "-C", str(ROOT), *words]
    else:
        line = [sys.executable if program.startswith("python") else program, *words]
    done = subprocess.run(
        line, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200, check=False
    )
    return "" if done.returncode == 0 else f"exit code {done.returncode}\n{done.stderr[-2000:]}"


def test_options_on_the_pages_exist() -> None:
    """Of every command in a block, marked ones too, and of spans such as `dpeer plan mine.yaml` in the text."""
    lines = [(c.page, c.words[1:]) for c in ALL if c.words[0] == "dpeer"]
    for page in pages():
        spans = re.findall(r"`dpeer ([a-z][^`\n]*)`", page.read_text(encoding="utf-8"))
        lines += [(page, span.split()) for span in spans]
    assert len(lines) > 150
    assert [(name(page), words) for page, words in lines if unknown_options(words)] == []


def test_no_command_is_left_out_in_silence() -> None:
    """Each command is run or has a reason."""
    assert len(RUN) >= 75 and all(len(c.reason) > 5 for c in ALL if c.reason)
    assert not [c for c in RUN if Path(c.words[0]).name not in ("dpeer", "make", "python", "mkdir", "cp")]
