"""Held-out margins by hand, and their clusters: records that share a prompt are one cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from dpeer.config import Config, Objective
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.objective.certificate import provable
from dpeer.objective.constraints import build_constraints
from dpeer.objective.dual import initial_state
from dpeer.training.heldout import certificate, heldout_edges


def recipe(**objective: Any) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "model": {"path": "m"},
            "data": {"train": "d"},
            "training": {"steps": 1},
            "objective": {"beta": 0.5} | objective,
        }
    )


def tree(
    index: int, prompt: tuple[int, ...], lengths: tuple[int, ...], edges: tuple[tuple[int, int, int], ...]
) -> TokenTree:
    return TokenTree(index, prompt, tuple((7,) * n for n in lengths), edges, 0, ("A", "E"))


DATA = TokenizedSet(
    ("A", "E"),
    (
        tree(0, (1, 2), (2, 4), ((0, 0, 1),)),
        tree(1, (3,), (1, 2, 5), ((0, 0, 1), (1, 0, 2))),
        tree(2, (1, 2), (3, 3), ((1, 1, 0),)),
    ),
    0,
    0,
)
POLICY = [[-4.0, -9.0], [-1.0, -3.0, -8.0], [-6.0, -3.0]]
REFERENCE = [[-5.0, -6.0], [-2.0, -2.0, -2.0], [-6.0, -6.0]]


def test_margins_by_hand_and_clusters_by_prompt() -> None:
    """Log-ratios: record 0 (1, -3), record 1 (1, -1, -6), record 2 (0, 3); times beta 0.5."""
    edges = heldout_edges(recipe(), DATA, POLICY, REFERENCE)
    assert edges.margins.tolist() == [2.0, 1.0, 3.5, 1.5]
    assert edges.margins.dtype == torch.float64
    assert edges.dims.tolist() == [0, 0, 1, 1]
    first, second, again, last = edges.records.tolist()
    assert first == last != second == again
    assert edges.mask_names == ("A+E",) and edges.masks is not None and edges.masks.tolist() == [0, 0, 0, 0]


def test_length_normalised_rewards() -> None:
    edges = heldout_edges(recipe(length_normalised=True), DATA, POLICY, REFERENCE)
    expected = [0.5 * (1 / 2 + 3 / 4), 0.5 * (1 + 1 / 2), 0.5 * (1 + 6 / 5), 0.5 * (3 / 3 - 0)]
    assert edges.margins.tolist() == pytest.approx(expected)


def test_no_edges_keep_their_types() -> None:
    data = TokenizedSet(("A",), (tree(0, (1,), (2,), ()),), 0, 0)
    edges = heldout_edges(recipe(), data, [[-1.0]], [[-1.0]])
    assert edges.dims.dtype == edges.records.dtype == torch.int64 and len(edges.margins) == 0


@pytest.mark.parametrize("lacking", [POLICY[:2], [*POLICY[:2], [-6.0]]])
def test_lacking_scores_are_noticed(lacking: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="zip"):
        heldout_edges(recipe(), DATA, lacking, REFERENCE)


def test_certificate_is_strict_json_with_selection_by_hand() -> None:
    """Per token: golden -2 beats -2.25 in record 0, -1 beats -1.5 and -1.6 in record 1, -2 loses to -1 in record 2."""
    config = recipe()
    dual = initial_state(build_constraints(config.objective.constraint, DATA.dimensions), config.objective)
    found = certificate(config, DATA, POLICY, REFERENCE, dual)
    json.dumps(found, allow_nan=False)
    assert found["heldout_records"] == 3 and found["confidence"] == 0.95
    assert {v["verdict"] for v in found["constraints"]} <= {"satisfied", "violated", "undecided"}
    assert len(found["constraints"]) == 2
    assert (found["bound"], found["prompts"], found["rarest"]) == (6.0, 2, 1.0)
    assert found["wins"]["A"]["rate"] == 1.0 and found["wins"]["A"]["edges"] == 2
    assert list(found["masks"]) == ["A+E"] and [v["name"] for v in found["masks"]["A+E"]] == ["A", "E"]
    assert found["selection"]["overall"]["rate"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("records", [40, 100, 400])
def test_what_no_model_could_prove(records):
    """The exact limit for a model without any loss is bound (1 - alpha^(1/n)); ours is a little above, never below."""
    least, exact = provable(records, Objective()), 6 * (1 - 0.05 ** (1 / records))
    assert exact <= least < 1.5 * exact
