"""Ledger lines are strict JSON with the right numbers; infeasibility is judged from their tail."""

import base64
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dpeer.config import Constraint, Objective
from dpeer.json_safe import json_safe
from dpeer.objective.constraints import build_constraints, dimension_weights
from dpeer.objective.dual import initial_state, update
from dpeer.objective.ledger import SHOWN, infeasible, ledger_entry
from dpeer.objective.statistics import edge_statistics, summarise
from dpeer.training.ending import worst_loss

DIMS = ("A", "T", "E")


def one_entry(form="threshold", tolerance=0.5):
    """Dimension A: losses 0.75 and 0.25 of records 0 and 1, plus T: 1.0 of record 0; E has no edges."""
    objective = Objective(constraint=Constraint(form=form, tolerance=tolerance))
    constraints = build_constraints(objective.constraint, DIMS)
    margins = torch.tensor([-0.5, 0.5, -1.5], dtype=torch.float64)
    losses = torch.tensor([0.75, 0.25, 1.0], dtype=torch.float64)
    dims, records = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    summary = summarise(edge_statistics(margins, losses, losses, dims, records, 3))
    before = update(initial_state(constraints, objective), constraints, objective, summary)
    weights = dimension_weights(constraints, objective, before.multipliers, torch.tensor([2, 1, 0]))
    after = update(before, constraints, objective, summary)
    scalars = {"lr": 1e-3, "golden_nll": math.nan}
    return ledger_entry(2, summary, weights, constraints, before, after, scalars), before, after


def test_numbers():
    entry, before, after = one_entry()
    assert (entry["step"], entry["lr"], entry["golden_nll"]) == (2, 1e-3, None)
    assert entry["dual_digest"] == after.digest()
    a = entry["dimensions"]["A"]
    # two clusters with residuals +-0.25: sqrt(2 / 1 * 2 * 0.25^2) / 2
    assert a["loss_se"] == pytest.approx(0.25) and a["margin_se"] == pytest.approx(0.5)
    assert (a["edges"], a["loss"], a["margin"], a["accuracy"]) == (2, 0.5, 0.0, 0.5)
    t = entry["constraints"]["T"]
    assert (t["estimate"], t["slack"], t["tolerance"], t["edges"], t["dimensions"]) == (1.0, -0.5, 0.5, 1, ["T"])
    assert t["multiplier"] == before.multipliers[1].item() > 0 and t["active"] and not t["saturated"]
    assert t["se"] is None
    e = entry["constraints"]["E"]
    assert e["estimate"] is None and e["slack"] is None and e["multiplier"] == 0 and not e["active"]
    assert sum(d["weight"] for d in entry["dimensions"].values()) == pytest.approx(1)


@pytest.mark.parametrize("form", ["threshold", "winrate", "worst", "balance", "margin", "protect"])
@pytest.mark.parametrize("tolerance", [0.1, math.inf])
def test_strict_json_for_every_form(form, tolerance):
    entry, _, _ = one_entry(form, tolerance)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert entry == one_entry(form, tolerance)[0]


def test_json_safe():
    assert json_safe({"a": [math.nan, (math.inf, -math.inf)], "b": 1}) == {"a": [None, ["inf", "-inf"]], "b": 1}


def tail_of(violations, saturated=True, se=0.0):
    return [
        {
            "dimensions": {"A": {}},
            "constraints": {
                "A": {
                    "dimensions": ["A"],
                    "tolerance": 0.5,
                    "slack": None if v is None else -v,
                    "estimate": None if v is None else 0.5 + v,
                    "se": se,
                    "multiplier": 20.0,
                    "saturated": saturated,
                }
            },
        }
        for v in violations
    ]


@pytest.mark.parametrize(
    ("tail", "reported"),
    [
        (tail_of([0.2] * 10), True),
        (tail_of([0.2] * 10, saturated=False), False),
        (tail_of([0.2 - 0.01 * i for i in range(10)]), False),  # shrinking
        (tail_of([0.2 + 0.01 * i for i in range(10)]), True),  # growing
        (tail_of([0.2, 0.21, 0.19, 0.2, 0.17, 0.19, 0.18, 0.18], se=0.05), True),  # shrinking within noise only
        (tail_of([-0.1] * 10), False),  # met
        (tail_of([0.2, None, 0.2, None, 0.2, 0.2]), True),  # steps without edges do not count
        (tail_of([None] * 10), False),
        (tail_of([0.2] * 3), False),
        ([], False),
    ],
)
def test_infeasible(tail, reported):
    found = infeasible(tail)
    assert list(found) == (["A"] if reported else [])
    if reported:
        assert "at its cap 20" in found["A"] and "Loosen objective.constraint.tolerance" in found["A"]


def test_an_unconstrained_dimension_is_never_infeasible():
    entry, _, _ = one_entry(tolerance=math.inf)
    assert infeasible([entry] * 10) == {}


def test_of_many_constraints_a_line_has_those_that_press_and_the_multipliers_of_all():
    """Balance over nine dimensions has 72 constraints; the oracle is the state itself."""
    dims = tuple("ABCDEFGHI")
    objective = Objective(constraint=Constraint(form="balance", tolerance=dict.fromkeys(dims, 0.1) | {"I": math.inf}))
    constraints = build_constraints(objective.constraint, dims)
    which, records = torch.arange(36) % 9, torch.arange(36) // 9
    losses = which.double() / 9 + torch.linspace(0, 0.01, 36, dtype=torch.float64)
    summary = summarise(edge_statistics(-losses, losses, losses, which, records, 9))
    before = update(initial_state(constraints, objective), constraints, objective, summary)
    before = replace(before, saturated=torch.arange(72) == 0)
    after = update(before, constraints, objective, summary)
    weights = dimension_weights(constraints, objective, before.multipliers, torch.full((9,), 4))
    entry = ledger_entry(2, summary, weights, constraints, before, after, {})
    rows, together = entry["constraints"], entry["all_constraints"]
    pressing = before.multipliers.topk(SHOWN).values.tolist()
    assert len(rows) == SHOWN + 1 and constraints.names[0] in rows
    assert sorted((r["multiplier"] for n, r in rows.items() if n != constraints.names[0]), reverse=True) == pressing
    values = np.frombuffer(base64.b64decode(together["multipliers"]), "<f4")
    assert values.tolist() == before.multipliers.float().tolist() and together["constraints"] == 72
    assert together["active"] == int((before.multipliers > 0).sum()) and together["saturated"] == 1
    assert together["bounded"] == list(dims) and worst_loss([entry | {"dimensions": dual_of(entry)}]) == 1.5
    assert infeasible([entry] * 8) == {} and json.loads(json.dumps(entry, allow_nan=False)) == entry


def dual_of(entry):
    return {d: {"dual": {"edges": 1, "loss": 1.5 if d == "I" else 0.0}} for d in entry["dimensions"]}
