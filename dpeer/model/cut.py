"""Whether ranks can share the packs of a model: which numbers of them, and why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from transformers import PretrainedConfig

from dpeer.data.layout import Layout
from dpeer.errors import ConfigError
from dpeer.model.families import layers_with_state, named
from dpeer.model.probe import exactness


def refuse_uncut(shape: PretrainedConfig, path: str, layout: Layout, size: int, ranks: int | None = None) -> None:
    """ConfigError where a team of `size` cannot compute packs of this model exactly; says what else it may be, of
    `ranks` in all where that is known."""
    if size > 1 and (why := obstacle(shape, layout)):
        raise ConfigError(
            f"training.sequence_parallel = {size}: model {path} (type '{shape.model_type}') {why}. Set it to 1; for "
            "longer records lower memory by model.gradient_checkpointing, model.offload_activations and "
            "model.mlp_tile, or take GPUs with more of it (dpeer plan)."
        )
    heads = int(shape.num_attention_heads)
    if heads % size:
        raise ConfigError(
            f"training.sequence_parallel = {size}: model {path} has {heads} attention heads, of which each rank of a "
            f"group computes as many. Set it to {_either(sizes(heads, ranks or heads))}."
        )


def obstacle(shape: PretrainedConfig, layout: Layout) -> str:
    """Why ranks cannot share packs of this model, whatever their number; empty where they can. A model that the tests
    do not name is tried in small."""
    if state := Counter(layers_with_state(shape)):
        kinds = ", ".join(f"{kind} in {n}" for kind, n in state.items())
        return f"keeps a state across positions ({kinds} of {shape.num_hidden_layers} layers), not only attention"
    if layout == "sequences":
        return "is computed as separate sequences (model.layout), and only trees are shared by ranks"
    if not named(shape) and not (found := exactness(shape, "cut")).exact:
        return f"is not computed exactly by ranks that share its tokens: its {found}"
    return ""


def sizes(heads: int, ranks: int) -> list[int]:
    """Teams that attention of so many heads and so many ranks allow."""
    return [n for n in range(1, ranks + 1) if heads % n == 0 and ranks % n == 0]


def _either(numbers: Iterable[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
