"""Export: a Hugging Face folder (safetensors, tokenizer, generation config, model card), reloaded and compared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpeer.config import Config, Model
from dpeer.data.packing import build_pack, forward_tokens
from dpeer.data.tokenize import TokenTree
from dpeer.errors import CheckpointError
from dpeer.files import follow_umask
from dpeer.integrity import write_list
from dpeer.model.lm import DTYPES, add_lora, load_causal_lm, load_lm, load_parts, load_tokenizer
from dpeer.model.tree_lm import TreeLM
from dpeer.training.generation import generation
from dpeer.training.policy import Policy
from dpeer.training.samples import spread
from dpeer.training.whole import complete, locate_adapter

LOOKED_AT = 1_000
"""Records whose ends of turn are taken for all."""
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # nats per token between the trained policy and the reloaded export


def export(policy: Policy, folder: Path) -> list[str]:
    """Collective. Gathers the weights on rank 0, which writes `folder` under a temporary name, checks it, renames it.

    A LoRA run is exported merged, with the bare adapter in `folder/adapter`. Returns what rank 0 has mended, in words.
    """
    policy.pulse.enter("exporting")
    tree = min(policy.data.trees, key=forward_tokens)
    expected = policy.score([tree])
    state = policy.engine.gathered()
    if state is None:
        return []
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    ends = {ids[-1] for tree in spread(policy.data.trees, LOOKED_AT) for ids in tree.responses}
    notes = _write(policy.config, {k.removeprefix("model."): v for k, v in state.items()}, ends, temporary)
    del state
    follow_umask(temporary)
    _compare(policy.config.model, tree, expected[0], temporary)
    write_list(temporary)
    previous = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        os.replace(folder, previous)
    os.replace(temporary, folder)
    shutil.rmtree(previous, ignore_errors=True)
    return notes


def _write(config: Config, state: Mapping[str, Tensor], ends: set[int], folder: Path) -> list[str]:
    spec, dtype = config.model, DTYPES[config.model.export_dtype]
    model: Any = load_causal_lm(spec.path, spec.export_dtype, spec.revision)
    if spec.lora:
        model = add_lora(model, spec.lora, config.seed)
    missing = model.load_state_dict({k: v.to(dtype) for k, v in state.items()}, strict=False).missing_keys
    _refuse_missing(missing, tied=model.config.get_text_config().tie_word_embeddings)
    part = load_parts(spec.path, spec.revision)
    if spec.lora:
        model.save_pretrained(folder / "adapter")
        if part:
            locate_adapter(folder / "adapter", part)
        model = model.merge_and_unload()
    model.config._attn_implementation = "sdpa"
    model.generation_config, notes = generation(spec.path, spec.revision, model.config, ends)
    model.save_pretrained(folder)
    if part:
        complete(folder, part, str(dtype).removeprefix("torch."))
    load_tokenizer(spec.path, spec.revision).save_pretrained(folder)
    return notes


def _refuse_missing(missing: list[str], tied: bool) -> None:
    """Only a head that is the embedding may be absent."""
    if lost := [k for k in missing if not (tied and k.endswith("lm_head.weight"))]:
        raise CheckpointError(
            f"export: {len(lost)} weights were not gathered, among them {', '.join(lost[:3])}. Nothing was written."
        )


@torch.no_grad()
def _compare(spec: Model, tree: TokenTree, expected: list[float], folder: Path) -> None:
    """Log-probs of one record (the shortest: this may be 70B on CPU) from the reloaded folder against the policy's."""
    model, layout = load_lm(str(folder), spec.export_dtype, layout=spec.layout)
    lm = TreeLM(model.eval(), spec.head_chunk, layout)
    reloaded = lm(build_pack([tree], [0])).tolist()
    limit = TOLERANCE["bf16" if "bf16" in (spec.export_dtype, spec.dtype) else "fp32"]
    for before, after, response in zip(expected, reloaded, tree.responses, strict=True):
        gap = abs(before - after) / len(response)
        if not gap <= limit:
            raise CheckpointError(
                f"export: the reloaded model differs from the trained one by {gap:.3g} nats per token (allowed "
                f"{limit:g}). The folder was left at {folder} for inspection; the checkpoint is unharmed."
            )
