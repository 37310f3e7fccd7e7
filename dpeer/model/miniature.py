"""A model's config made small: a few layers, one of each kind, and narrow, with every feature that it has."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from dpeer.model.families import CHOSEN, EXPERTS

VOCABULARY = 256
WINDOW = 16
CHUNK = 16  # recurrences pad each sequence to whole chunks
LAYERS = 4
WIDTH = 128
FEW_EXPERTS = 8
SHARED = "num_kv_shared_layers"  # the last ones, which have no keys and values of their own
_WINDOWS = ("sliding_window", "attention_chunk_size")
_CHUNKS = ("mamba_chunk_size", "chunk_size")
_GROUPS = ("n_group", "topk_group")


def with_layers(shape: PretrainedConfig, layers: list[int]) -> dict[str, Any]:
    """Config fields of the same model with these of its decoder layers; lists of an entry per layer keep theirs."""
    count: int = shape.num_hidden_layers
    fields: dict[str, Any] = shape.to_dict() | {"num_hidden_layers": len(layers)}
    cut: dict[str, Any] = {
        k: [v[i] for i in layers] for k, v in fields.items() if isinstance(v, list) and len(v) == count
    }
    if own := fields.get("per_layer_config"):  # of some layers, by their number
        by_number = {int(k): v for k, v in own.items()}
        cut["per_layer_config"] = {new: by_number[old] for new, old in enumerate(layers) if old in by_number}
    if fields.get(SHARED):
        cut[SHARED] = sum(_shares(shape, i) for i in layers)
    return fields | cut


def alike(shape: PretrainedConfig, count: int) -> list[int]:
    """That many layers: all, or else of the kind that most layers have."""
    of_kind = _kinds(shape)
    if count >= shape.num_hidden_layers:
        return list(range(shape.num_hidden_layers))
    own = [layers for layers in of_kind.values() if not _shares(shape, layers[0])]
    most = max(own or of_kind.values(), key=len)
    return [*most, *(i for i in range(shape.num_hidden_layers) if i not in most)][:count]


def by_kind(shape: PretrainedConfig) -> list[list[int]]:
    """Layers of each kind that the config's lists tell apart: the commonest first, those that share keys last."""
    return sorted(_kinds(shape).values(), key=lambda layers: (_shares(shape, layers[0]), -len(layers)))


def beneath(shape: PretrainedConfig, layer: int, base: int) -> list[int]:
    """What a layer lies on in a model of a few: `base`, and the layer whose keys and values it shares."""
    types = getattr(shape, "layer_types", None) or [""] * shape.num_hidden_layers
    if not _shares(shape, layer) or types[base] == types[layer]:
        return [base]
    return [base, *[i for i, kind in enumerate(types) if kind == types[layer] and not _shares(shape, i)][-1:]]


def _kinds(shape: PretrainedConfig) -> dict[str, list[int]]:
    """Layers by what the config's lists of an entry per layer say of them."""
    fields, count = shape.to_dict(), shape.num_hidden_layers
    lists = [v for v in fields.values() if isinstance(v, list) and len(v) == count]
    own = {int(k): v for k, v in (fields.get("per_layer_config") or {}).items()}
    kinds: dict[str, list[int]] = {}
    for i in range(count):
        kinds.setdefault(repr([_shares(shape, i), own.get(i), *(v[i] for v in lists)]), []).append(i)
    return kinds


def _shares(shape: PretrainedConfig, layer: int) -> bool:
    """Whether a layer attends to the keys and values of an earlier one."""
    count: int = shape.num_hidden_layers
    return layer >= count - (getattr(shape, SHARED, 0) or 0)


def one_of_each_kind(shape: PretrainedConfig) -> list[int]:
    """At most LAYERS layers, at least two, among them one of each kind that the config's lists tell apart."""
    count: int = shape.num_hidden_layers
    chosen = [layers[0] for layers in _kinds(shape).values()][:LAYERS]
    return sorted(chosen + [i for i in range(count) if i not in chosen][: max(0, 2 - len(chosen))])


def miniature(shape: PretrainedConfig, *, narrow: bool = True) -> PretrainedConfig:
    """The same architecture with at most LAYERS layers and a small vocabulary; `narrow`: with few heads and experts.

    Windows are short, so that short sequences leave them. Sizes of a head stay, as rotary settings depend on them.
    """
    fields = with_layers(shape, one_of_each_kind(shape)) | {"vocab_size": VOCABULARY}
    for key, value in list(fields.items()):
        if key in _WINDOWS and value:
            fields[key] = min(value, WINDOW)
        elif key in _CHUNKS and value:
            fields[key] = min(value, CHUNK)
        elif key == "vocab_size_per_layer_input":
            fields[key] = VOCABULARY
        elif key == "first_k_dense_replace" and value:
            fields[key] = 1
        elif key.endswith("_token_id") and value is not None:
            fields[key] = None if key.startswith(("pad", "bos", "eos")) else 0
    for key in ("quantization_config", "dtype"):
        fields.pop(key, None)
    return AutoConfig.for_model(**(fields | (_narrow(fields) if narrow else {})))


def _narrow(fields: dict[str, Any]) -> dict[str, Any]:
    heads = fields["num_attention_heads"]
    shared = fields.get("num_key_value_heads") or heads
    size = fields.get("head_dim") or fields["hidden_size"] // heads
    few = min(shared, 2)
    found = {"num_attention_heads": few * min(heads // shared, 2), "num_key_value_heads": few}
    found["hidden_size"] = found["num_attention_heads"] * size
    if "head_dim" in fields:
        found["head_dim"] = size
    for key, value in fields.items():
        if not isinstance(value, int) or not value:
            continue
        if key.endswith("intermediate_size"):
            found[key] = min(value, WIDTH)
        elif key in EXPERTS:
            found[key] = min(value, FEW_EXPERTS)
        elif key in CHOSEN:
            found[key] = min(value, FEW_EXPERTS // 2)
        elif key in _GROUPS:
            found[key] = 1
    inner, head = fields.get("mamba_expand", 0) * found["hidden_size"], fields.get("mamba_d_head")
    if isinstance(head, int) and inner and inner % head == 0:
        found["mamba_n_heads"] = inner // head
    if keys := fields.get("linear_num_key_heads"):
        found["linear_num_key_heads"] = min(keys, 2)
        found["linear_num_value_heads"] = min(keys, 2) * min(fields["linear_num_value_heads"] // keys, 2)
    return found
