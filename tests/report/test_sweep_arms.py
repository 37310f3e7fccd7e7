"""The table of all settings, and margins of a cell that was trained from another one's export."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dpeer.heldout_file import Heldout, write_heldout
from dpeer.objective.heldout import HeldoutEdges
from dpeer.report.sweep import SweepCell, find_axis, read_sweep
from dpeer.report.sweep_arms import arm_table
from dpeer.report.sweep_page import write_sweep_report

RECORDS = 300
LEVELS = {"objective.constraint.tolerance": 0.4}


def edges(margin: float) -> HeldoutEdges:
    """An edge of A and one of E per record; those of A have this margin, those of E its negative."""
    n = torch.arange(2 * RECORDS)
    margins = torch.where(n % 2 == 0, margin, -margin).double()
    return HeldoutEdges(margins, n % 2, n // 2, torch.zeros(2 * RECORDS).long(), ("A+E",))


@pytest.fixture
def make_sweep(make_run: Callable[..., Path], amend: Any, tmp_path: Path) -> Callable[..., Path]:
    """make_sweep({label: (margin of A, label that it starts from or "")}, seeds) -> folder of finished runs."""

    def make(settings: dict[str, tuple[float, str]], seeds: tuple[int, ...] = (0, 1)) -> Path:
        cells = []
        for seed in seeds:
            for label, (margin, start) in settings.items():
                name = f"{label}-s{seed}"
                constraint = {"form": "threshold", "tolerance": 0.4, "enforce": label != "uniform"}
                folder = make_run(name, steps=3, constraint=constraint)
                path = str(tmp_path / f"{start}-s{seed}" / "export") if start else "base"

                def change(m: dict[str, Any], path: str = path) -> dict[str, Any]:
                    m["config"] |= {"output_dir": str(tmp_path), "model": m["config"]["model"] | {"path": path}}
                    return m | {"reference": {"hash": path}}

                amend(folder / "manifest.json", change)
                losses = {"A": softplus(-margin - seed), "E": softplus(margin + seed)}
                found = {"dimensions": {d: {"loss": loss, "accuracy": 0.5} for d, loss in losses.items()}}
                amend(folder / "certificate.json", lambda c, found=found: c | found)
                write_heldout(folder / "heldout.safetensors", Heldout(edges(margin + seed), ("A", "E"), {}))
                cells.append({"index": len(cells), "name": name, "label": label, "seed": seed, "values": {}})
        (tmp_path / "sweep.json").write_text(json.dumps({"name": "arms", "grid": [], "cells": cells}))
        return tmp_path

    return make


def by_name(folder: Path) -> dict[str, SweepCell]:
    return {c.name: c for c in read_sweep(folder).cells}


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_margins_add_up_along_references(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep({"sft": (1.0, ""), "next": (0.5, "sft"), "last": (0.25, "next")}, seeds=(0,))
    cells = by_name(folder)
    assert cells["sft-s0"].reference is None and cells["sft-s0"].margins is not None
    for name, total in {"next-s0": 1.5, "last-s0": 1.75}.items():
        found = cells[name]
        assert found.margins is not None and torch.equal(found.margins.edges.margins, edges(total).margins)
        assert found.heldout("loss") == pytest.approx({"A": softplus(-total), "E": softplus(total)})
        assert found.heldout("accuracy") == {"A": 1.0, "E": 0.0}
    page = write_sweep_report(folder).read_text()
    assert "Trained from another cell&#39;s export: next and last." in page
    assert "do not all have the same reference" not in page


def test_margins_on_another_scale_or_other_pairs(make_sweep: Callable[..., Path], amend: Any) -> None:
    folder = make_sweep({"sft": (1.0, ""), "next": (0.5, "sft")}, seeds=(0,))

    def twice_beta(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest["config"]["objective"]["beta"] *= 2
        return manifest

    amend(folder / "next-s0" / "manifest.json", twice_beta)
    margins = by_name(folder)["next-s0"].margins
    assert margins is not None and torch.equal(margins.edges.margins, edges(2.5).margins)  # rewards of beta: 2 * 1 + .5
    own = edges(0.5)
    turned = replace(own, dims=1 - own.dims)
    write_heldout(folder / "next-s0" / "heldout.safetensors", Heldout(turned, ("A", "E"), {}))
    cell = by_name(folder)["next-s0"]
    assert cell.margins is None and cell.run.certificate and cell.means == cell.run.certificate.dimensions
    assert "do not all have the same reference" in write_sweep_report(folder).read_text()


def test_every_setting_is_judged_at_the_same_levels(make_sweep: Callable[..., Path], amend: Any) -> None:
    """Margins of 3 for A prove a loss of 0.4 and those of -3 for E do not; margins of 0.2 prove neither."""
    folder = make_sweep({"uniform": (0.2, ""), "sharp": (3.0, ""), "free": (3.0, "")})
    for seed in (0, 1):

        def unbounded(manifest: dict[str, Any]) -> dict[str, Any]:
            manifest["config"]["objective"]["constraint"]["tolerance"] = "inf"
            return manifest

        amend(folder / f"free-s{seed}" / "manifest.json", unbounded)
        for label, good in {"uniform": 1, "sharp": 3, "free": 2}.items():
            replies = good * ["There are no risks at all with the sore knee."] + (4 - good) * ["nothing"]
            lines = "".join(json.dumps({"reply": r}) + "\n" for r in replies)
            (folder / f"{label}-s{seed}" / "replies.jsonl").write_text(lines)
    data = read_sweep(folder)
    (uniform,) = (s for s in data.settings if s.label == "uniform")
    table = arm_table(data, uniform)
    names = [c.name for c in table.columns]
    assert table.levels == "uniform" and [label for label, _, _ in table.rows] == ["uniform", "sharp", "free"]
    proven = [spreads[names.index("proven")] for _, _, spreads in table.rows]
    assert [s.mean for s in proven] == [0.5, 1.0, 1.0]  # uniform: 0.2 and 1.2 by seed
    assert table.best[names.index("proven")] == {"sharp", "free"}
    worst = table.rows[1][2][names.index("worst_loss")]
    assert worst.mean == pytest.approx((softplus(3) + softplus(4)) / 2)
    assert table.best[names.index("worst_loss")] == {"uniform"}
    read = data.cells[0].shares
    assert set(read) < set(names) and {"worst", "mean", "fluency"} < set(names)
    page = write_sweep_report(folder).read_text()
    assert "All settings" in page and "at the tolerances of uniform" in page
    rows = json.loads((folder / "tables" / "arms.json").read_text())
    assert [row["proven"] for row in rows] == [0.5, 1.0, 1.0] and {row["seeds"] for row in rows} == {2}


def test_without_replies_and_margins_only_what_is_known_is_shown(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep({"uniform": (0.2, "")}, seeds=(0,))
    (folder / "uniform-s0" / "heldout.safetensors").unlink()
    data = read_sweep(folder)
    table = arm_table(data, data.settings[0])
    assert {c.name for c in table.columns} == {"worst_loss", "selection"} and table.levels == ""


def test_a_sweep_without_a_grid_has_its_settings_in_a_row(make_sweep: Callable[..., Path], amend: Any) -> None:
    folder = make_sweep({"uniform": (0.2, ""), "strict": (1.0, ""), "loose": (0.5, "")})

    def with_values(manifest: dict[str, Any]) -> dict[str, Any]:
        for cell in manifest["cells"]:
            cell["values"] = {"objective.constraint.tolerance": len(cell["label"]) / 10}
        return manifest

    amend(folder / "sweep.json", with_values)
    assert read_sweep(folder).axis == find_axis([], ["uniform", "strict", "loose"])
    amend(folder / "sweep.json", lambda m: m | {"grid": ["objective.constraint.tolerance"]})
    assert read_sweep(folder).axis.key == "objective.constraint.tolerance"
