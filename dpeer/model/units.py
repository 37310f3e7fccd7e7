"""A model in units that are gathered, merged and written one after another: each layer, and what lies outside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from dpeer.model.adapters import BELOW


@dataclass(frozen=True)
class Unit:
    """A module, with all that is below it or with its own weights alone. `name`: of the module in the model, with a dot
    at its end unless it is empty."""

    name: str
    module: nn.Module
    deep: bool

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.module.parameters(recurse=self.deep))

    def state(self) -> dict[str, Tensor]:
        """Weights and lasting buffers by name in the model."""
        state = self.module.state_dict(prefix=self.name, keep_vars=True)
        return state if self.deep else {k: v for k, v in state.items() if "." not in k.removeprefix(self.name)}


def units(module: nn.Module, name: str = "", layer: bool = False) -> Iterator[Unit]:
    children = list(module.named_children())
    if layer or not children or _adapted(module):
        yield Unit(name, module, True)
        return
    if (own := Unit(name, module, False)).state():
        yield own
    for child, inner in children:
        yield from units(inner, f"{name}{child}.", isinstance(module, nn.ModuleList))


@contextmanager
def in_host(unit: Unit, kept: re.Pattern[str] | None, dtype: torch.dtype) -> Iterator[None]:
    """In the place of the unit's whole parameters and lasting buffers copies in the host's memory, those of floats in
    `dtype`; those whose names match `kept` in their own."""
    state = unit.state()
    own = [(tensor, tensor.data) for tensor in state.values()]
    try:
        for name, tensor in state.items():
            wanted = tensor.dtype if not tensor.is_floating_point() or (kept and kept.search(name)) else dtype
            tensor.data = tensor.data.to("cpu", wanted, copy=True)
        yield
    finally:
        for tensor, data in own:
            tensor.data = data


def _adapted(module: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


@contextmanager
def merged(unit: Unit) -> Iterator[None]:
    """Adapters merged into the weights below them, by PEFT; inside of `in_host`, whose copies these are."""
    tuners: list[Any] = [m for m in unit.module.modules() if _adapted(m)]
    try:
        for tuner in tuners:  # those of fused experts lie in one another, one for each weight
            tuner.merge()
        yield
    finally:
        for tuner in tuners:
            tuner.merged_adapters.clear()
            getattr(tuner, "_caches", {}).clear()


def fp32_always(base: Any) -> re.Pattern[str] | None:
    """Names of the weights that transformers keeps in fp32 in a bf16 model."""
    names: Sequence[str] = sorted(base._keep_in_fp32_modules_strict or ())
    return re.compile("|".join(rf"(?:^|\.){re.escape(name)}(?:$|\.)" for name in names)) if names else None


def adapters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of a unit, as they are."""
    return {name: tensor for name, tensor in state.items() if ".lora_" in name}


def as_saved(base: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A unit's weights without adapters, under the names and in the pieces of a checkpoint on disk."""
    plain = {
        name.removeprefix(BELOW).replace(".base_layer", ""): tensor.detach()
        for name, tensor in state.items()
        if ".lora_" not in name
    }
    reverted: dict[str, Tensor] = revert_weight_conversion(base, plain)
    return reverted
