"""Held-out margins on disk: what was written comes back, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dpeer.errors import DpeerError
from dpeer.heldout_file import Heldout, read_heldout, write_heldout
from dpeer.objective.heldout import HeldoutEdges


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    edges = HeldoutEdges(
        torch.tensor([0.1, -2.5, 1e-17], dtype=torch.float64),
        torch.tensor([1, 0, 1]),
        torch.tensor([0, 0, 4]),
        torch.tensor([1, 1, 0]),
        ("A+T", "\u00e9"),
    )
    write_heldout(
        tmp_path / "x.safetensors",
        Heldout(edges, ("A", "T"), {"best": torch.tensor([0.3, torch.inf], dtype=torch.float64)}),
    )
    found = read_heldout(tmp_path / "x.safetensors")
    assert found is not None and found.edges.masks is not None and edges.masks is not None
    for name in ("margins", "dims", "records"):
        assert torch.equal(getattr(found.edges, name), getattr(edges, name))
    assert torch.equal(found.edges.masks, edges.masks) and found.edges.mask_names == edges.mask_names
    assert found.dimensions == ("A", "T") and found.form["best"].tolist() == pytest.approx([0.3, torch.inf])
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_no_file_and_a_damaged_one(tmp_path: Path) -> None:
    assert read_heldout(tmp_path / "absent") is None
    (tmp_path / "bad").write_bytes(b"not a tensor")
    with pytest.raises(DpeerError, match=r"bad: is not readable .* Remove it"):
        read_heldout(tmp_path / "bad")
