"""What a recipe says of memory for activations, put into a model: recomputation, the host's memory, tiles of MLPs."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedModel

from dpeer import config
from dpeer.errors import ConfigError
from dpeer.model.families import named
from dpeer.model.on_host import keep_on_host
from dpeer.model.probe import exactness, small_models
from dpeer.model.tiles import tile_mlps


def spare_memory(model: PreTrainedModel, spec: config.Model, *, some: bool = False) -> None:
    """ConfigError where this model cannot do what the recipe asks for. `some`: it has only some of its layers."""
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if spec.offload_activations:
        keep_on_host(model)
    if spec.mlp_tile and not tile_mlps(model, spec.mlp_tile) and not some:
        raise ConfigError(
            f"model.mlp_tile = {spec.mlp_tile}: model {spec.path} has no dense MLP in its decoder layers to compute in "
            "tiles; experts are left as they are. Leave it out (model.mlp_tile=null)."
        )


def refuse_untiled(shape: PretrainedConfig, path: str, tile: int | None) -> None:
    """ConfigError where tiles of MLPs are not exact. A model that the tests do not name is tried in small."""
    if tile and not named(shape) and not (found := exactness(shape, "tiled")).exact:
        raise ConfigError(
            f"model.mlp_tile = {tile}: model {path} (type '{shape.model_type}') is not computed exactly in tiles: its "
            f"{found}. Leave it out (model.mlp_tile=null)."
        )


def refuse_unmoved(shape: PretrainedConfig) -> None:
    """ConfigError where layers hand on nothing that could lie in the host's memory: tried in small, as the real model
    would say so in its first step alone, after hours of scoring."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            (model,) = small_models(shape, "eager")
            model.gradient_checkpointing_enable({"use_reentrant": False})
            keep_on_host(model)
            model(input_ids=torch.ones(1, 2, dtype=torch.long), use_cache=False)
        except ConfigError:
            raise
        except Exception:  # of a small model that does not run: whether the real one does is told elsewhere
            return
