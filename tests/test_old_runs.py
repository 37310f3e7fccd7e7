"""Run folders of earlier versions: pages are written, the dual state fits the ledger, and training may go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpeer.config import Config
from dpeer.objective.dual import DualState
from dpeer.report.card import model_card
from dpeer.report.page import write_report
from dpeer.training.run_dir import RunDir

RUNS = sorted((Path(__file__).parent / "old_runs").glob("*/*"))


@pytest.fixture(params=RUNS, ids=lambda path: f"{path.parent.name}-{path.name}")
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(request.param, tmp_path / request.param.name)
    return tmp_path / request.param.name


def test_page_and_card_are_written(run: Path) -> None:
    page = write_report(run).read_text()
    assert "An earlier version of dpeer made this certificate" in page and "counted up to" not in page
    for constraint in json.loads((run / "certificate.json").read_text())["constraints"]:
        assert constraint["name"] in page and constraint["verdict"] in page
    assert run.name in model_card(run)


def test_the_dual_state_is_that_of_the_ledger(run: Path) -> None:
    state = json.loads((run / "checkpoints" / "step-0000006" / "state.json").read_text())
    last = json.loads((run / "ledger.jsonl").read_text().splitlines()[-1])
    assert DualState.from_dict(state["dual"]).digest() == last["dual_digest"]


def test_the_same_recipe_may_go_on_and_another_may_not(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    config = Config.model_validate(manifest["config"])
    facts = {k: manifest[k] for k in ("data", "model", "reference", "chat_template")}
    RunDir(run).check_resumable(config, facts)
    objective = config.objective.model_copy(update={"beta": 0.7})
    with pytest.raises(Exception, match=r"objective\.beta: was 0\.5, now 0\.7"):
        RunDir(run).check_resumable(config.model_copy(update={"objective": objective}), facts)
