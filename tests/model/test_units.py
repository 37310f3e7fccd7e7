"""Units of a model stand in the host's memory while they are written, and are as they were afterwards."""

from __future__ import annotations

import re

import torch
from torch import nn

from dpeer.model.units import Unit, in_host


def test_lasting_buffers_go_to_the_host_and_to_the_exported_precision_as_parameters_do() -> None:
    """Such as the correction biases of routers (DeepSeek-V3, GLM-4 MoE) and the scalars of layers (Gemma 4)."""
    module = nn.Linear(2, 2)
    module.register_buffer("scalar", torch.tensor([1 / 3]))
    module.register_buffer("correction", torch.tensor([1 / 3]))
    module.register_buffer("count", torch.tensor(3))
    unit = Unit("layer.", module, True)
    before = {name: (tensor.data_ptr(), tensor.detach().clone()) for name, tensor in unit.state().items()}
    with in_host(unit, re.compile("correction"), torch.bfloat16):
        state = unit.state()
        assert {name: tensor.dtype for name, tensor in state.items()} == {
            "layer.weight": torch.bfloat16, "layer.bias": torch.bfloat16, "layer.scalar": torch.bfloat16,
            "layer.correction": torch.float32, "layer.count": torch.int64,
        }  # fmt: skip
        for name, tensor in state.items():  # copies: those of a GPU's weights cannot be written
            assert tensor.device.type == "cpu" and tensor.data_ptr() != before[name][0]
            assert torch.equal(tensor, before[name][1].to(tensor.dtype))
    for name, tensor in unit.state().items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1])
