"""Arithmetic and traffic of a planned step, against what the meter counts of a real one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dpeer.config import Config
from dpeer.data.tokenize import TokenTree
from dpeer.estimate.footprint import Weights
from dpeer.estimate.memory import Zero
from dpeer.estimate.throughput import Batching, Machine, step_time, traffic
from dpeer.model.flops import Lengths
from dpeer.training.meter import Clock, Meter

WEIGHTS = Weights({(4000, True): 3, (500, True): 2}, 3, 4000, 500, 500, 500, False, 50, 16, idle=700, attending=3)
MACHINE = Machine(nodes=2, gpus_per_node=2, peak=1.0, hfu=1.0, node_link=1.0, gpu_link=1.0)
TREES = [TokenTree(i, (1,) * (9 + i), ((2, 3), (4, 5, 6)), (), 0, ()) for i in range(4)]


def config(balanced: float) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "model": {"path": "m", "router_aux_loss": balanced},
            "data": {"train": "d"},
            "objective": {"kind": "sft"},
            "training": {"steps": 3, "records_per_step": 4},
        }
    )


@pytest.mark.parametrize("balanced", [0.0, 0.01])
def test_a_planned_step_has_the_arithmetic_that_the_meter_counts(balanced: float) -> None:
    made: Any = object.__new__(Meter)
    made.config, made.counts, made.layout, made.device = config(balanced), WEIGHTS, "tree", torch.device("cpu")
    made.ceiling, made.largest, made.clock = None, 0, Clock(made.device)
    made.start()
    records = tuple(Lengths.of(tree) for tree in TREES)
    tokens = sum(r.tokens for r in records)
    batch = Batching(tokens, 0, tokens, 1, tokens, records)  # all of it on one rank
    planned = step_time(made.config, WEIGHTS, Zero.plain(), 1, MACHINE, batch)
    assert planned.compute == pytest.approx(made.cost(TREES, [])["flops"], rel=1e-12)


def test_experts_that_are_balanced_are_gathered_once_more() -> None:
    sharded = replace(Zero.plain(), sharded=True)
    plain, balanced = (traffic(config(b), WEIGHTS, sharded, 4, MACHINE) for b in (0.0, 0.01))
    whole = 2 * (3 * 4000 + 2 * 500)  # bf16
    assert balanced.into_gpu - plain.into_gpu == pytest.approx(whole * 3 / 4)
    assert balanced.into_node - plain.into_node == pytest.approx(whole / 2)
