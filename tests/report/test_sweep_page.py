"""The page of a sweep and its tables, from made-up runs with known answers."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dpeer.config import Constraint, Objective
from dpeer.errors import DpeerError
from dpeer.heldout_file import Heldout, write_heldout
from dpeer.objective.certificate import certify
from dpeer.objective.constraints import build_constraints
from dpeer.objective.heldout import HeldoutEdges
from dpeer.report.sweep import find_axis, read_sweep
from dpeer.report.sweep_page import write_sweep_report

TOLERANCES = (0.2, 0.3, 0.4)
LOSSES = {"E": 0.5, "A": 0.3, "T": 0.4, "C": 0.2}
KEY = "objective.constraint.tolerance"


@pytest.fixture
def make_sweep(make_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """make_sweep(seeds=..., unfinished=...) -> folder: three tolerances and the baseline `uniform` per seed.

    The worst dimension of a cell is E: 0.5 + half its tolerance + seed / 100, at the baseline 0.9 + seed / 100.
    """

    def make(seeds: tuple[int, ...] = (0, 1, 2), unfinished: tuple[str, ...] = ()) -> Path:
        cells = []
        settings: list[tuple[str, dict[str, Any], float]] = [(f"eps{x}", {KEY: x}, x / 2) for x in TOLERANCES]
        settings.append(("uniform", {"objective.constraint.enforce": False}, 0.4))
        for seed in seeds:
            for label, values, more in settings:
                name = f"{label}-s{seed}-abcd"
                constraint = {"form": "threshold", "tolerance": values.get(KEY, 0.4), "enforce": KEY in values}
                folder = make_run(name, steps=12, constraint=constraint)
                found = json.loads((folder / "certificate.json").read_text())
                found["dimensions"] = {
                    d: {"loss": loss + more + seed / 100, "accuracy": 0.9 - more} for d, loss in LOSSES.items()
                }
                (folder / "certificate.json").write_text(json.dumps(found))
                if name in unfinished:
                    (folder / "certificate.json").unlink()
                    manifest = json.loads((folder / "manifest.json").read_text())
                    (folder / "manifest.json").write_text(json.dumps(manifest | {"finished": None}))
                cells.append({"index": len(cells), "name": name, "label": label, "seed": seed, "values": values})
        (tmp_path / "sweep.json").write_text(json.dumps({"name": "tolerance", "cells": cells}))
        return tmp_path

    return make


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    """A table as its JSON says; its CSV must hold as many."""
    found = json.loads((folder / "tables" / f"{table}.json").read_text())
    with (folder / "tables" / f"{table}.csv").open() as stream:
        read = list(csv.DictReader(stream))
    assert len(read) == len(found)
    for a, b in zip(read, found, strict=True):
        assert list(a) == list(b)
    return list(found)


def test_page_states_the_finding_and_needs_nothing_else(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep()
    page = write_sweep_report(folder).read_text()
    assert "eps0.2 serves the worst dimension best: loss 0.300 below uniform" in page
    assert not re.search(r'(?:src|href)="https?:', page)
    for text in (
        "12 cells: 4 settings, seeds 0, 1, 2",
        "E exceeds every tolerance",
        "1 of 4 settings is on the Pareto front: eps0.2",
        "Certificates",
        "12 cells took",
    ):
        assert text in page
    assert page.count("<img") == 10
    assert 'href="tables/settings.csv"' in page


def test_tables_hold_the_known_answers(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep()
    write_sweep_report(folder)
    settings = {row["label"]: row for row in rows(folder, "settings")}
    for x in TOLERANCES:
        row = settings[f"eps{x}"]
        assert row["worst_loss"] == pytest.approx(0.5 + x / 2 + 0.01)
        assert row["worst_minus_uniform"] == pytest.approx(x / 2 - 0.4)
        # Seeds move a cell and its pair alike, so nothing is left of their spread.
        assert row["worst_minus_uniform_upper"] - row["worst_minus_uniform_lower"] == pytest.approx(0, abs=1e-9)
    assert settings["uniform"]["on_front"] is False and settings["eps0.2"]["on_front"] is True
    assert len(rows(folder, "heldout")) == 12 * 4
    assert len(rows(folder, "certificates")) == 12 * 4
    assert [(r["from"], r["to"]) for r in rows(folder, "prices")] == [(0.2, 0.3), (0.3, 0.4)]
    assert sum(row["tokens"] for row in rows(folder, "cost")) == 12 * 12 * 9120


def test_the_chosen_cell_is_certified_for_a_choice_among_all(make_sweep: Callable[..., Path]) -> None:
    """230 losses of 0.1 prove 0.2 by themselves, not as the best of eight."""
    folder = make_sweep(seeds=(0, 1))
    page = write_sweep_report(folder).read_text()
    assert "Of 8 cells, <strong>eps0.2-s0-abcd</strong>" in page and "It cannot be corrected" in page
    assert not (folder / "tables" / "chosen.json").exists()
    margin = -math.log(math.exp(0.1) - 1)  # whose loss is 0.1
    edges = HeldoutEdges(
        torch.full((230,), margin, dtype=torch.float64),
        torch.zeros(230).long(),
        torch.arange(230),
        torch.zeros(230).long(),
        ("E",),
    )
    heldout = Heldout(edges, ("E",), {})
    write_heldout(folder / "eps0.2-s0-abcd" / "heldout.safetensors", heldout)
    assert "corrected for a choice among 8" in write_sweep_report(folder).read_text()
    (row,) = rows(folder, "chosen")
    constraint = Constraint(tolerance=0.2)
    objective = Objective(constraint=constraint)
    alone, best_of_eight = (
        certify(edges, build_constraints(constraint, ("E",)), objective, choices=k)[0] for k in (1, 8)
    )
    assert (row["name"], row["constraint"], row["upper"]) == ("eps0.2-s0-abcd", "E", best_of_eight.upper)
    assert (alone.verdict, best_of_eight.verdict, row["verdict"]) == ("satisfied", "undecided", "undecided")


def test_unfinished_cells_and_single_seeds_are_said(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(seeds=(0,), unfinished=("eps0.3-s0-abcd",))
    page = write_sweep_report(folder).read_text()
    assert "1 of 4 cells are not finished and not shown: eps0.3-s0-abcd" in page
    assert "One seed per setting" in page and "(one seed)" in page
    assert [r["label"] for r in rows(folder, "settings")] == ["eps0.2", "eps0.4", "uniform"]


def test_cells_on_other_data_are_pointed_at(make_sweep: Callable[..., Path], amend: Any) -> None:
    folder = make_sweep(seeds=(0,))
    amend(folder / "eps0.3-s0-abcd" / "manifest.json", lambda m: m | {"data": {}})
    assert "do not all have the same data" in write_sweep_report(folder).read_text()


def test_replies_and_abilities_are_shown_where_they_are(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(seeds=(0, 1))
    for cell in read_sweep(folder).cells:
        replies = ["There are no risks at all with the sore knee.", "nothing of the kind"]
        (folder / cell.name / "replies.jsonl").write_text("".join(json.dumps({"reply": r}) + "\n" for r in replies))
    abilities = {c.name: {"E": 0.1 * c.index} for c in read_sweep(folder).cells}
    page = write_sweep_report(folder, abilities).read_text()
    assert "Lowest share of good replies" in page and "Lowest ability" in page
    assert {r["fluency"] for r in rows(folder, "oracle")} == {0.0}
    assert [r["E"] for r in rows(folder, "abilities")] == pytest.approx([0.1 * i for i in range(8)])


def test_axis_is_numeric_where_it_can_be_and_a_tolerance_first() -> None:
    beta, eps = "objective.beta", "objective.constraint.tolerance.T"
    both = [{beta: b, eps: e} for b in (0.1, 0.2) for e in (0.3, "inf")]
    assert find_axis(both, "abcd").key == beta  # one finite tolerance only
    assert find_axis([*both, {beta: 0.1, eps: 0.5}], "abcde").key == eps
    words = find_axis([{"objective.loss": "ipo"}, {"objective.loss": "hinge"}], ["ipo", "hinge"])
    assert (words.key, words.ticks) == ("", ("ipo", "hinge"))


def test_categorical_sweep_has_a_page_too(make_sweep: Callable[..., Path], amend: Any) -> None:
    folder = make_sweep(seeds=(0, 1))

    def change(manifest: dict[str, Any]) -> dict[str, Any]:
        for cell in manifest["cells"]:
            cell["values"] = {"objective.loss": cell["label"]}
        return manifest

    amend(folder / "sweep.json", change)
    page = write_sweep_report(folder).read_text()
    assert "eps0.2 serves the worst dimension best" in page and "The price of tolerance" not in page


def test_nothing_to_report_is_said(make_sweep: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DpeerError, match=r"has no sweep\.json"):
        write_sweep_report(tmp_path / "elsewhere")
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "x", "cells": [
        {"index": 0, "name": "a", "label": "a", "seed": 0, "values": {}}
    ]}))  # fmt: skip
    with pytest.raises(DpeerError, match="none of its 1 cells is finished"):
        write_sweep_report(tmp_path)
