"""A lane and cells that start from others' exports: when it trains them, when it waits, and why it gives up."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dpeer.launcher.lock import claim
from dpeer.launcher.sweep import work
from dpeer.launcher.sweep.folder import SweepFolder
from dpeer.launcher.sweep.spec import Cell, load_sweep, resolve

SWEEP = {
    "name": "s",
    "recipe": "recipe.yaml",
    "cells": {"first": {"objective.kind": "sft"}, "second": {"model.path": "cell:first"}},
}


class Trains(work.Lane):
    """In place of training, a run is finished, or fails where it is named in `faulty`."""

    def __init__(self, folder: SweepFolder, faulty: tuple[str, ...] = ()) -> None:
        super().__init__(folder, retries=0)
        self.faulty, self.trained = faulty, list[str]()

    def train(self, cell: Cell) -> None:
        self.trained.append(cell.label)
        if cell.label in self.faulty:
            raise work.ClusterError("no room")
        finish(self.folder, cell)


def finish(folder: SweepFolder, cell: Cell) -> None:
    run = folder.run(cell.name)
    run.path.mkdir(parents=True)
    run.manifest.write_text('{"finished": "now"}')


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[SweepFolder, Cell, Cell]:
    (tmp_path / "recipe.yaml").write_text(
        f"name: base\noutput_dir: {tmp_path}\nmodel: {{path: m}}\ndata: {{train: t.jsonl}}\ntraining: {{steps: 1}}\n"
    )
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    first, second = resolve(load_sweep(path), path)
    return SweepFolder(first.config.output_dir), first, second


def test_a_cell_is_trained_once_its_export_is_there(sweep: tuple[SweepFolder, Cell, Cell]) -> None:
    folder, first, second = sweep
    lane = Trains(folder)
    lane.work([first])
    lane.work([second])
    assert lane.trained == ["first", "second"] and folder.state(second.name).kind == "finished"


def test_without_the_export_a_cell_fails_and_says_what_to_run(sweep: tuple[SweepFolder, Cell, Cell]) -> None:
    folder, first, second = sweep
    lane = Trains(folder)
    lane.work([second])
    state = folder.state(second.name)
    assert (lane.trained, state.kind) == ([], "failed")
    assert (
        f"export of {first.name}, which is not trained yet" in state.reason and f"--cell {first.name}" in state.reason
    )


def test_a_failure_is_passed_on_with_its_reason(sweep: tuple[SweepFolder, Cell, Cell]) -> None:
    folder, first, second = sweep
    lane = Trains(folder, faulty=("first",))
    lane.work([first])
    lane.work([second])
    assert lane.trained == ["first"]
    assert f"{first.name}, which has failed: no room" in folder.state(second.name).reason


def test_a_lane_waits_while_another_driver_is_at_the_export(
    sweep: tuple[SweepFolder, Cell, Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, first, second = sweep
    lane = Trains(folder)
    with claim(folder.lock(first.name)) as ours:
        assert ours

        def finished_meanwhile(_: float) -> None:
            assert (lane.trained, folder.state(second.name).kind) == ([], "waiting")
            finish(folder, first)

        monkeypatch.setattr(work.time, "sleep", finished_meanwhile)
        lane.work([second])
    assert lane.trained == ["second"]
    assert f"waiting for {first.name}" in capsys.readouterr().out
