"""What `data check` says of constraints agrees with what the certificate of such records would say."""

from __future__ import annotations

import pytest
import torch

from dpeer.config import Constraint, Objective
from dpeer.data.check import Split
from dpeer.estimate.support import support
from dpeer.objective.certificate import certify
from dpeer.objective.constraints import build_constraints
from dpeer.objective.heldout import HeldoutEdges


def verdict(records: int, loss: float, tolerance: float) -> str:
    """Of a certificate over so many records with one edge each, all of the same loss."""
    objective = Objective(constraint=Constraint(tolerance=tolerance))
    margin = -torch.log(torch.expm1(torch.tensor(loss, dtype=torch.float64))) if loss else torch.tensor(100.0)
    edges = HeldoutEdges(margin.repeat(records), torch.zeros(records).long(), torch.arange(records))
    (found,) = certify(edges, build_constraints(objective.constraint, ("A",)), objective)
    return found.verdict


def split(prompts: int) -> Split:
    return Split("heldout", prompts, {"A": prompts}, {"A": prompts}, {"A": prompts}, {})


@pytest.mark.parametrize("tolerance", [0.25, 0.5, 0.69])
def test_the_fewest_records_are_those_of_the_certificate(tolerance: float) -> None:
    (row,) = support([split(5000), split(5000)], tolerance)
    assert row.verdict == f"{tolerance:g} can be proven" and row.likely is not None
    assert verdict(row.likely, tolerance / 2, tolerance) == "satisfied"
    (below,) = support([split(5000), split(row.least - 1)], tolerance)
    assert "no model" in below.verdict and below.provable > tolerance
    assert verdict(row.least - 1, 0.0, tolerance) == "undecided"
    (just,) = support([split(5000), split(row.least)], tolerance)
    assert "far below" in just.verdict and just.provable <= tolerance
    assert verdict(row.least + 1, 0.0, tolerance) == "satisfied"  # the certificate's stakes are not tuned to no loss


def test_a_tenth_is_held_out_where_nothing_else_is() -> None:
    (row,) = support([split(400)], 0.5)
    assert (row.edges, row.prompts, row.heldout) == (400, 400, 40)
    (few,) = support([split(4)], 0.5)
    assert few.heldout == 0 and "multiplier" in few.verdict
    assert support([], 0.5) == []
