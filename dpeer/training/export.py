"""Export: a Hugging Face folder (safetensors, tokenizer, generation config, model card), reloaded and compared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dpeer.config import Config, Lora, Model
from dpeer.data.packing import all_forward_tokens, build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.errors import CheckpointError
from dpeer.files import follow_umask
from dpeer.integrity import write_list
from dpeer.model.lm import DTYPES, add_lora, load_lm, load_parts
from dpeer.model.tree_lm import TreeLM
from dpeer.model.words import exported
from dpeer.training.generation import generation, unstopped
from dpeer.training.policy import Policy
from dpeer.training.samples import spread
from dpeer.training.whole import complete, locate_adapter

LOOKED_AT = 1_000
"""Records whose ends of turn are taken for all, of a run that does not say them."""
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # nats per token between the trained policy and the reloaded export


@torch.no_grad()
def export(policy: Policy, folder: Path, adapter: bool = False) -> list[str]:
    """Collective. Gathers the weights on rank 0, which writes `folder` under a temporary name, checks it, renames it.

    A LoRA run is exported merged, with the bare adapter in `folder/adapter`; with `adapter` the folder is that adapter
    and nothing else. Adapters that were trained over 4-bit weights go onto the 16-bit weights that these were made of,
    so the export is compared with that. Returns what rank 0 has mended, in words.
    """
    policy.pulse.enter("exporting")
    tree = policy.data.trees[int(all_forward_tokens(policy.data.trees).argmin())]
    expected = policy.score([tree])
    state = policy.engine.gathered()
    if state is None:
        return []
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    lm = _rebuilt(policy.config, {k.removeprefix("model."): v for k, v in state.items()})
    del state
    ends = policy.prepared.ends
    if ends is None:
        ends = frozenset(ids[-1] for tree in spread(policy.data.trees, LOOKED_AT) for ids in tree.responses)
    notes = []
    if policy.config.model.load_in_4bit:
        trained, expected = expected, {0: lm(build_pack([tree], [0])).tolist()}
        notes = [_apart(trained[0], expected[0], tree)]
    notes += _write(policy.config, lm, ends, temporary, adapter)
    exported(policy.config, policy.prepared.thoughts).save_pretrained(temporary)
    del lm
    follow_umask(temporary)
    _compare(policy.config.model, tree, expected[0], temporary, adapter)
    write_list(temporary)
    previous = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        os.replace(folder, previous)
    os.replace(temporary, folder)
    shutil.rmtree(previous, ignore_errors=True)
    return notes


def _apart(trained: list[float], exported: list[float], tree: TokenTree) -> str:
    gaps = [abs(a - b) / len(r) for a, b, r in zip(trained, exported, tree.responses, strict=True)]
    return (
        "the adapters were trained over 4-bit weights and are exported on the 16-bit weights of model.path: the "
        f"shortest record's log-probabilities differ by {max(gaps):.2g} nats per token. The certificate is of the "
        "4-bit model"
    )


def _rebuilt(config: Config, state: Mapping[str, Tensor]) -> TreeLM:
    """The trained model in the host's memory and the exported precision, with its adapters."""
    spec, dtype = config.model, DTYPES[config.model.export_dtype]
    model, layout = load_lm(spec.path, spec.export_dtype, spec.revision, layout=spec.layout)
    if spec.lora:
        model = add_lora(model, spec.lora, config.seed, load_parts(spec.path, spec.revision))
    own = {k: v.to(dtype) for k, v in state.items() if not spec.load_in_4bit or "lora_" in k}
    missing = model.load_state_dict(own, strict=False).missing_keys
    if spec.load_in_4bit:  # its weights are those of `path`, which never were in 4 bits
        missing = [k for k in missing if "lora_" in k]
    _refuse_missing(missing, tied=model.config.get_text_config().tie_word_embeddings)
    return TreeLM(model.eval(), spec.head_chunk, layout)


def _write(config: Config, lm: TreeLM, ends: frozenset[int], folder: Path, adapter: bool) -> list[str]:
    spec, model = config.model, cast(Any, lm.model)
    part = load_parts(spec.path, spec.revision)
    settings, notes = generation(spec.path, spec.revision, model.config, ends)
    if spec.lora:
        model.save_pretrained(own := folder if adapter else folder / "adapter")
        settings.save_pretrained(own)
        if part:
            locate_adapter(own, part)
    if not adapter:
        model = model.merge_and_unload() if spec.lora else model
        model.config._attn_implementation = "sdpa"
        model.generation_config = settings
        model.save_pretrained(folder)
        if part:
            complete(folder, part, str(DTYPES[spec.export_dtype]).removeprefix("torch."))
    return notes


def _refuse_missing(missing: list[str], tied: bool) -> None:
    """Only a head that is the embedding may be absent."""
    if lost := [k for k in missing if not (tied and k.endswith("lm_head.weight"))]:
        raise CheckpointError(
            f"export: {len(lost)} weights were not gathered, among them {', '.join(lost[:3])}. Nothing was written."
        )


@torch.no_grad()
def _compare(spec: Model, tree: TokenTree, expected: list[float], folder: Path, adapter: bool) -> None:
    """Log-probs of one record (the shortest: this may be 70B on CPU) from the reloaded folder against the policy's, and
    whether generation stops where that ends."""
    path, revision = (spec.path, spec.revision) if adapter else (str(folder), None)
    base, layout = load_lm(path, spec.export_dtype, revision, layout=spec.layout)
    model = add_lora(base, Lora(path=str(folder)), 0, load_parts(path, revision)) if adapter else base
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
    if endless := unstopped(base, folder, tree):  # an adapter lies within the base
        raise CheckpointError(
            f"export: the reloaded model generates without an end: {endless}. The folder was left at {folder} for "
            "inspection; the checkpoint is unharmed."
        )
