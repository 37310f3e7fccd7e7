"""The model families that are computed exactly: the one file that a new family touches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from dpeer.data.facts import quantised
from dpeer.errors import ConfigError
from dpeer.model.logprob import PLAIN, Shape

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def query_width(shape: PretrainedConfig) -> int:
    """Heads x head size: the width of the queries of one layer."""
    heads: int = shape.num_attention_heads
    latent = getattr(shape, "qk_nope_head_dim", None)  # multi-head latent attention
    if latent is not None:
        return heads * (int(latent) + int(shape.qk_rope_head_dim))
    return heads * (size_of(shape, "head_dim") or int(shape.hidden_size) // heads)


def size_of(shape: PretrainedConfig, field: str, default: int | None = None) -> Any:
    """A field of a config; where some layers have a value of their own, as in Gemma 4, that of the others."""
    own = vars(shape)
    return own[field] if field in own else getattr(shape, field, default)


@dataclass(frozen=True, slots=True)
class Family:
    """A decoder that is compared with separate sequences in the tests, as a tree and with adapters.

    The defaults are those of Llama and of everything shaped like it, and serve every other model too: what they say of
    it is found true or not by `probe`.

    model_type: transformers' name, as in config.json
    layers: attribute of the backbone that holds the list of decoder layers
    query_width: width of a layer's queries from the config; attention costs in proportion to it
    """

    model_type: str
    layers: str = "layers"
    query_width: Callable[[PretrainedConfig], int] = query_width

    def decoder_layers(self, model: PreTrainedModel) -> nn.ModuleList:
        inner, count = backbone(model), causal_lm(model).config.get_text_config().num_hidden_layers
        named = getattr(inner, self.layers, None)
        lists = [named, *(m for m in inner.children() if isinstance(m, nn.ModuleList) and len(m) == count)]
        if (layers := next((x for x in lists if isinstance(x, nn.ModuleList)), None)) is None:
            raise ConfigError(f"model type '{self.model_type}': no list of its {count} decoder layers was found in it")
        return layers


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
    """The family of a model's config; of one that is not listed, what holds for most."""
    return FAMILIES.get(shape.model_type) or Family(shape.model_type)


def logits_shape(shape: PretrainedConfig) -> Shape:
    """What the model does to its logits, by the fields of its config that transformers has for it."""
    scale = (getattr(shape, "logit_scale", None) or 1.0) / (getattr(shape, "logits_scaling", None) or 1.0)
    return Shape(float(scale), getattr(shape, "final_logit_softcapping", None))


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")


def named(shape: PretrainedConfig) -> bool:
    """Whether the tests say how this model is computed. A field of the config that changes logits or attention may be
    one that its family does not read."""
    odd = logits_shape(shape) != PLAIN or getattr(shape, "attn_logit_softcapping", None)
    return shape.model_type in FAMILIES and not odd


def expert_count(shape: PretrainedConfig) -> int:
    """Experts of a layer; 0 where there are none."""
    return next((int(v) for k in EXPERTS if (v := getattr(shape, k, None))), 0)


def idle_parameters(shape: PretrainedConfig, parameters: Iterable[Sequence[int]]) -> int:
    """Of these shapes of parameters, how many a token does not meet: those of the experts that it is not sent to."""
    experts, chosen = expert_count(shape), next((int(v) for k in CHOSEN if (v := getattr(shape, k, None))), 0)
    if not experts or not chosen:
        return 0
    fused = sum(math.prod(size) for size in parameters if len(size) == 3 and size[0] == experts)
    return fused * (experts - chosen) // experts


def attending_layers(shape: PretrainedConfig) -> int:
    """Layers in which tokens attend to others."""
    return int(shape.num_hidden_layers) - sum(kind in _WITHOUT_ATTENTION for kind in _layer_types(shape))


def state_size(shape: PretrainedConfig) -> int:
    """Elements of the recurrent states of all layers with a delta rule: heads x key size x value size."""
    sizes = [getattr(shape, f"linear_{k}", 0) for k in ("num_value_heads", "key_head_dim", "value_head_dim")]
    if not sizes[0]:  # as Kimi Linear says it: keys and values are of one size
        sizes = [getattr(shape, f"linear_{k}", 0) for k in ("num_heads", "head_dim", "head_dim")]
    return math.prod(map(int, sizes)) * sum(kind == "linear_attention" for kind in _layer_types(shape))


_WITH_STATE = ("linear_attention", "conv", "mamba")
_WITHOUT_ATTENTION = (*_WITH_STATE, "mlp", "moe")


def layers_with_state(shape: PretrainedConfig) -> list[str]:
    """Kind of each layer that hands something from token to token by other ways than attention."""
    return [kind for kind in _layer_types(shape) if kind in _WITH_STATE]


def _layer_types(shape: PretrainedConfig) -> list[str]:
    kinds = getattr(shape, "layer_types", None) or []
    return kinds if len(kinds) == shape.num_hidden_layers else []


def own_attention(shape: PretrainedConfig) -> str | None:
    """transformers' attention for a model that runs as separate sequences; None: its default for this model."""
    return "eager" if getattr(shape, "attn_logit_softcapping", None) else None  # others leave the cap out


def causal_lm(model: PreTrainedModel) -> Any:
    """The causal language model itself, where `model` may be a PeftModel around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(model: PreTrainedModel) -> Any:
    """The module that maps token ids to the hidden states under the output head."""
    causal = causal_lm(model)
    return getattr(causal, causal.base_model_prefix, None) or causal.model


def refuse_unsupported(shape: PretrainedConfig, path: str) -> None:
    """ConfigError for a model that no layout computes exactly, whatever its architecture; names the reason."""
    if given := getattr(shape, "quantization_config", None):
        method = given.get("quant_method") if isinstance(given, dict) else getattr(given, "quant_method", None)
        raise ConfigError(f"model {path}: {quantised(str(getattr(method, 'value', method) or 'an unnamed method'))}.")
    reasons = []
    for key, value in shape.to_dict().items():
        if key.endswith(("dropout", "pdrop")) and isinstance(value, float) and value > 0 and "classifier" not in key:
            reasons.append(f"{key} = {value}: set it to 0 in the model's config.json")
    if getattr(shape, "use_bidirectional_attention", False) in (True, "all"):  # "vision": of images only
        reasons.append("use_bidirectional_attention is on: a causal language model is needed")
    scaling = getattr(shape, "rope_parameters", None) or getattr(shape, "rope_scaling", None) or {}
    nested = [v for v in scaling.values() if isinstance(v, dict)] or [scaling]
    for rope in nested:
        if rope.get("rope_type", "default") in LENGTH_DEPENDENT_ROPE:
            reasons.append(f"rope_type '{rope['rope_type']}' depends on the sequence length")
    if reasons:
        raise ConfigError(f"model {path}: cannot be trained exactly. " + "; ".join(reasons) + ". Choose another model.")
