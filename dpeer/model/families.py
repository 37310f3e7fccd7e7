"""The model families that are computed exactly: the one file that a new family touches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from dpeer.data.facts import quantised
from dpeer.errors import ConfigError

SCALED_LOGITS = ("logits_scaling", "logit_scale")
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def query_width(shape: PretrainedConfig) -> int:
    """Heads x head size: the width of the queries of one layer."""
    heads: int = shape.num_attention_heads
    return heads * (getattr(shape, "head_dim", None) or int(shape.hidden_size) // heads)


@dataclass(frozen=True, slots=True)
class Family:
    """A decoder that hands the keyword `tree` down to its attention and whose logits are hidden states times a matrix.

    The defaults are those of Llama and of everything shaped like it.

    model_type: transformers' name, as in config.json
    layers: attribute of the backbone that holds the list of decoder layers
    per_layer: config fields with one entry per decoder layer, cut short for a model of fewer layers
    query_width: width of a layer's queries from the config; attention costs in proportion to it
    """

    model_type: str
    layers: str = "layers"
    per_layer: tuple[str, ...] = ("layer_types",)
    query_width: Callable[[PretrainedConfig], int] = query_width

    def decoder_layers(self, model: PreTrainedModel) -> nn.ModuleList:
        layers: nn.ModuleList = getattr(backbone(model), self.layers)
        return layers

    def with_layers(self, shape: PretrainedConfig, count: int) -> dict[str, Any]:
        """Config fields of the same model with `count` decoder layers."""
        fields: dict[str, Any] = shape.to_dict() | {"num_hidden_layers": count}
        return fields | {key: fields[key][:count] for key in self.per_layer if fields.get(key)}


_SHIPPED = (
    Family("llama"),
    Family("qwen2"),
    Family("qwen3"),
    Family("mistral"),
    Family("gemma"),
    Family("gemma3_text"),
)
FAMILIES = {family.model_type: family for family in _SHIPPED}


def register(family: Family) -> None:
    """Make a family known to this process; the workers of a run know those that are listed above."""
    FAMILIES[family.model_type] = family


def family_of(shape: PretrainedConfig) -> Family:
    """The family of a model's config. Raises ConfigError for an unknown model type."""
    try:
        return FAMILIES[shape.model_type]
    except KeyError:
        raise ConfigError(f"{unknown(shape.model_type)}. Choose another model, or add it: CONTRIBUTING.md.") from None


def unknown(model_type: str) -> str:
    return f"model type '{model_type}' is not in the tested families {', '.join(FAMILIES)}"


def causal_lm(model: PreTrainedModel) -> Any:
    """The causal language model itself, where `model` may be a PeftModel around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(model: PreTrainedModel) -> Any:
    """The module that maps token ids to the hidden states under the output head."""
    causal = causal_lm(model)
    return getattr(causal, causal.base_model_prefix)


def refuse_unsupported(shape: PretrainedConfig, path: str) -> None:
    """ConfigError for a model that tree attention or the chunked head would compute wrongly; names the reason."""
    if given := getattr(shape, "quantization_config", None):
        method = given.get("quant_method") if isinstance(given, dict) else getattr(given, "quant_method", None)
        raise ConfigError(f"model {path}: {quantised(str(getattr(method, 'value', method) or 'an unnamed method'))}.")
    reasons = [] if shape.model_type in FAMILIES else [unknown(shape.model_type)]
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        if value := getattr(shape, key, None):
            reasons.append(f"{key} = {value}: soft-capped logits are not computed by the tree kernel")
    for key in SCALED_LOGITS:
        if getattr(shape, key, None) not in (None, 1):
            reasons.append(f"{key} = {getattr(shape, key)}: scaled logits are not computed by the chunked head")
    if getattr(shape, "attention_dropout", 0):
        reasons.append(f"attention_dropout = {shape.attention_dropout}: set it to 0 in the model's config.json")
    if getattr(shape, "use_bidirectional_attention", False):
        reasons.append("use_bidirectional_attention is on: a causal language model is needed")
    scaling = getattr(shape, "rope_parameters", None) or getattr(shape, "rope_scaling", None) or {}
    nested = [v for v in scaling.values() if isinstance(v, dict)] or [scaling]
    for rope in nested:
        if rope.get("rope_type", "default") in LENGTH_DEPENDENT_ROPE:
            reasons.append(f"rope_type '{rope['rope_type']}' depends on the sequence length")
    if reasons:
        raise ConfigError(f"model {path}: cannot be trained exactly. " + "; ".join(reasons) + ". Choose another model.")
