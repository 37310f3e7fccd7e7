"""A recipe's policy with a few of its decoder layers, on the meta device."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from dpeer import config
from dpeer.model.adapters import start_of
from dpeer.model.lm import DTYPES, add_lora, load_parts
from dpeer.model.miniature import by_kind, with_layers
from dpeer.model.recompute import spare_memory

if TYPE_CHECKING:
    from peft import LoraConfig

NUMBERED = re.compile(r"^.*?\.\d+\.")


def without_adapters(
    spec: config.Model, shape: PretrainedConfig, layers: Sequence[int], attention: str | None
) -> PreTrainedModel:
    """The policy's base with these of its layers, in this order."""
    fields = with_layers(shape, list(layers))
    small = AutoConfig.for_model(**copy.deepcopy(fields))
    if kinds := fields.get("layer_types"):
        small.layer_types = kinds  # Gemma 4 makes another kind of the last one, in the list that it is given
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            small, dtype=DTYPES[spec.dtype], attn_implementation=attention
        )
    spare_memory(model, spec, some=len(layers) < shape.num_hidden_layers)
    return model


@dataclass(frozen=True)
class FewLayers:
    """What such models are made of. start: the adapter that training starts from, in layers of any number."""

    spec: config.Model
    shape: PretrainedConfig
    attention: str | None
    start: LoraConfig | None

    @classmethod
    def of(cls, spec: config.Model, shape: PretrainedConfig, attention: str | None) -> FewLayers:
        part = load_parts(spec.path, spec.revision) if spec.start else None
        return cls(spec, shape, attention, _anywhere(start_of(spec.start, part)) if spec.start else None)

    def model(self, layers: Sequence[int]) -> PreTrainedModel:
        """With the adapters that are in these layers; frozen where there are none."""
        model, lora = without_adapters(self.spec, self.shape, layers, self.attention), self.spec.lora
        if lora is None:
            return model
        with torch.device("meta"):
            if self.start:
                asked = self.start.target_modules
                named = [] if isinstance(asked, str) else [*(asked or ()), *(self.start.target_parameters or ())]
                there = _matches(model, asked) if isinstance(asked, str) else _present(model, named)
                return add_lora(model, lora, 0, start=copy.deepcopy(self.start)) if there else _frozen(model)
            if isinstance(lora.targets, str):
                return add_lora(model, lora, 0)
            present = tuple(_present(model, lora.targets or ()))
            return add_lora(model, lora.model_copy(update={"targets": present}), 0) if present else _frozen(model)

    def base(self) -> int:
        """A layer of the commonest kind that has anything to train, so that gradients pass whatever lies on it."""
        kinds = by_kind(self.shape)
        trained = (x[0] for x in kinds if any(p.requires_grad for p in self.model(x[:1]).parameters()))
        return next(trained, kinds[0][0])


def _anywhere(start: LoraConfig) -> LoraConfig:
    """Without the numbers of the layers that it is of: a few layers go by other numbers."""
    start = copy.deepcopy(start)
    start.layers_to_transform = start.layers_pattern = None
    if not isinstance(start.target_modules, str):
        start.target_modules = {NUMBERED.sub("", name) for name in start.target_modules or ()}
    return start


def _present(model: nn.Module, targets: Iterable[str]) -> list[str]:
    names = [n for n, _ in (*model.named_modules(), *model.named_parameters())]
    return [t for t in targets if any(n == t or n.endswith(f".{t}") for n in names)]


def _matches(model: nn.Module, pattern: str) -> bool:
    return pattern == "all-linear" or any(re.fullmatch(pattern, n) for n, _ in model.named_modules())


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    """Gradients pass through, as where there are adapters below."""
    model.requires_grad_(False)
    model.enable_input_require_grads()
    return model
