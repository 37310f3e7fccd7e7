"""Export: a Hugging Face folder (safetensors, tokenizer, generation config, model card), written layer by layer."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import Parameter

from dpeer.config import Config, Lora, Model
from dpeer.data.packing import all_forward_tokens, build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.disk import FULL, LIMITED, disk_fault, remedy
from dpeer.errors import CheckpointError
from dpeer.files import follow_umask
from dpeer.integrity import digest, write_list
from dpeer.memory import RELOADED, free_memory
from dpeer.model.lm import DTYPES, add_lora, load_lm, load_parts, load_shape
from dpeer.model.tree_lm import TreeLM
from dpeer.model.units import Unit, adapters, as_saved, fp32_always, in_host, merged, units
from dpeer.model.words import exported
from dpeer.training.calls import Exported
from dpeer.training.generation import generation, unstopped
from dpeer.training.policy import Policy
from dpeer.training.publish import read_back, rename, unfinished
from dpeer.training.pulse import Pulse
from dpeer.training.samples import spread
from dpeer.training.weights_file import Weights
from dpeer.training.whole import complete, locate_adapter

LOOKED_AT = 1_000
"""Records whose ends of turn are taken for all, of a run that does not say them."""
Whole = Callable[[Sequence[Any]], AbstractContextManager[Any]]
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # nats per token between the trained policy and the reloaded export


@torch.no_grad()
def export(policy: Policy, folder: Path, adapter: bool = False) -> Exported:
    """Collective. Rank 0 writes `folder` under a temporary name, layer by layer as the weights are gathered; no rank
    ever holds more than a layer beside its share.

    A model that the host has room for is reloaded, compared and renamed here; with a larger one `publish` goes on, for
    which nothing is needed but the files. A LoRA run is exported merged, with the bare adapter in `folder/adapter`;
    with `adapter` the folder is that adapter and nothing else. Adapters that were trained over 4-bit weights go onto
    the 16-bit weights that these were made of, so the export is compared with that.

    CheckpointError: the disk is full, or what was written or reloaded is not what was trained.
    """
    try:
        return _export(policy, folder, adapter)
    except (OSError, SafetensorError) as error:
        fault = disk_fault(error)
        if fault is None or fault not in FULL | LIMITED:
            raise
        shutil.rmtree(unfinished(folder), ignore_errors=True)
        raise CheckpointError(
            f"export: {folder} {remedy(fault)}, then go on with --resume, or use `dpeer export`. The checkpoint is "
            "unharmed."
        ) from error


def _export(policy: Policy, folder: Path, adapter: bool) -> Exported:
    policy.pulse.enter("exporting")
    config, tree = policy.config, policy.data.trees[int(all_forward_tokens(policy.data.trees).argmin())]
    expected = policy.score([tree])
    lm, notes = policy.engine.module, list[str]()
    whole: Whole = policy.engine.whole
    temporary = unfinished(folder)
    first = policy.world.rank == 0
    if config.model.load_in_4bit:
        if not first:
            return Exported(notes=[], files=None)
        lm, whole = _on_16_bits(config, lm), lambda _: nullcontext()
        trained, expected = expected, {0: lm(build_pack([tree], [0])).tolist()}
        notes = [_apart(trained[0], expected[0], tree)]
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
    weights = Weights(temporary) if first and not adapter else None
    low_rank = _stream(config, lm, whole, first, weights, adapter, policy.pulse)
    again = expected if config.model.load_in_4bit else policy.score([tree])
    if not first:
        return Exported(notes=[], files=None)
    _refuse_apart(config.model, tree, expected[0], again[0], "after its weights were gathered, the model", "")
    notes += _surround(config, lm, _ends(policy), temporary, low_rank, weights)
    exported(config, policy.prepared.thoughts).save_pretrained(temporary)
    follow_umask(temporary)
    files = weights.finish() if weights else {}
    if _bytes(lm, config.model) <= min(RELOADED, free_memory() / 2):
        _compare(config.model, tree, expected[0], temporary, adapter)
        write_list(temporary, read_back(temporary, files))
        rename(temporary, folder)
        return Exported(notes=notes, files=None)
    if config.model.lora:
        _refuse_other_adapter(low_rank, temporary if adapter else temporary / "adapter")
    return Exported(notes=notes, files=files)


def _bytes(lm: TreeLM, spec: Model) -> int:
    """Of the model in the host's memory, were it loaded again."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in lm.parameters()) * DTYPES[spec.export_dtype].itemsize


def _ends(policy: Policy) -> frozenset[int]:
    """Tokens that end a turn."""
    if (ends := policy.prepared.ends) is not None:
        return ends
    return frozenset(ids[-1] for tree in spread(policy.data.trees, LOOKED_AT) for ids in tree.responses)


def _stream(
    config: Config, lm: TreeLM, whole: Whole, first: bool, weights: Weights | None, adapter: bool, pulse: Pulse
) -> dict[str, Tensor]:
    """Collective. Gather unit after unit, or the adapters alone; rank 0 merges and writes each, and returns the
    adapters. What rank 0 meets it raises once all ranks have gathered everything: until then they would wait for it."""
    low_rank: dict[str, Tensor] = {}
    seen: set[int] = set()
    fault: Exception | None = None
    for unit in units(lm.model):
        needed = unit.parameters if not adapter else list(adapters(unit.state()).values())
        with whole(needed) if needed else nullcontext():
            if first and fault is None:
                try:
                    low_rank |= _taken(config, lm, unit, seen, weights)
                except Exception as error:
                    fault = error
        pulse.beat()  # ranks with nothing to gather score meanwhile, and may wait for this one
    if fault:
        raise fault
    return low_rank


def _taken(config: Config, lm: TreeLM, unit: Unit, seen: set[int], weights: Weights | None) -> dict[str, Tensor]:
    """Write a unit that is whole, without weights that were `seen`: tied ones have their first name. Its adapters."""
    base, state = _base(lm), unit.state()
    tied = {name for name, tensor in state.items() if id(tensor) in seen}
    seen |= {id(tensor) for tensor in state.values() if isinstance(tensor, Parameter)}
    if tied == state.keys():
        return {}
    with in_host(unit, fp32_always(base), DTYPES[config.model.export_dtype]):
        low_rank = {name: t.detach().clone() for name, t in adapters(unit.state()).items()}
        if weights is not None:
            with merged(unit):
                plain = {name: t for name, t in unit.state().items() if name not in tied}
                for name, tensor in as_saved(base, plain).items():
                    weights.add(name, tensor)
    return low_rank


def _apart(trained: list[float], exported: list[float], tree: TokenTree) -> str:
    gaps = [abs(a - b) / len(r) for a, b, r in zip(trained, exported, tree.responses, strict=True)]
    return (
        "the adapters were trained over 4-bit weights and are exported on the 16-bit weights of model.path: the "
        f"shortest record's log-probabilities differ by {max(gaps):.2g} nats per token. The certificate is of the "
        "4-bit model"
    )


def _on_16_bits(config: Config, trained: TreeLM) -> TreeLM:
    """The trained adapters, in the host's memory, on the weights that the 4-bit ones were made of."""
    spec = config.model
    assert spec.lora
    model, layout = load_lm(spec.path, spec.export_dtype, spec.revision, layout=spec.layout)
    model = add_lora(model, spec.lora, config.seed, load_parts(spec.path, spec.revision))
    own = {name: p for name, p in cast(nn.Module, trained.model).named_parameters() if "lora_" in name}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(own[name])
    return TreeLM(model.eval(), spec.head_chunk, layout)


def _base(lm: TreeLM) -> Any:
    model: Any = lm.model
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _surround(
    config: Config,
    lm: TreeLM,
    ends: frozenset[int],
    folder: Path,
    low_rank: dict[str, Tensor],
    weights: Weights | None,
) -> list[str]:
    """What there is beside the weights of a language model: configs, the adapter by itself, towers."""
    spec, base = config.model, _base(lm)
    part = load_parts(spec.path, spec.revision)
    settings, notes = generation(spec.path, spec.revision, base.config, ends)
    if spec.lora:
        own = folder / "adapter" if weights else folder
        cast(Any, lm.model).save_pretrained(own, state_dict=low_rank)
        settings.save_pretrained(own)
        if part:
            locate_adapter(own, part)
    if weights:
        settings.save_pretrained(folder)
        dtype = str(DTYPES[spec.export_dtype]).removeprefix("torch.")
        if part:
            complete(weights, folder, part, dtype)
        else:
            shape = load_shape(spec.path, spec.revision)
            shape.dtype, shape.architectures = dtype, [type(base).__name__]
            shape.save_pretrained(folder)
    return notes


def _refuse_other_adapter(low_rank: dict[str, Tensor], folder: Path) -> None:
    """CheckpointError unless a folder's adapter has the same tensors, whatever their names."""
    saved = load_file(folder / "adapter_model.safetensors").values()
    kept, gathered = (Counter(digest(t.contiguous().view(torch.uint8).numpy().tobytes()) for t in tensors)
                      for tensors in (saved, low_rank.values()))  # fmt: skip
    if kept != gathered:
        raise CheckpointError(
            f"export: {(kept - gathered).total() + (gathered - kept).total()} tensors of the adapter in {folder} are "
            "not those that were gathered. The folder was left for inspection; the checkpoint is unharmed."
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
    left = f" The folder was left at {folder} for inspection;"
    _refuse_apart(spec, tree, expected, reloaded, "the reloaded model", left)
    if endless := unstopped(base, folder, tree):  # an adapter lies within the base
        raise CheckpointError(
            f"export: the reloaded model generates without an end: {endless}. The folder was left at {folder} for "
            "inspection; the checkpoint is unharmed."
        )


def _refuse_apart(
    spec: Model, tree: TokenTree, expected: list[float], found: list[float], what: str, left: str
) -> None:
    limit = TOLERANCE["bf16" if "bf16" in (spec.export_dtype, spec.dtype) else "fp32"]
    for before, after, response in zip(expected, found, tree.responses, strict=True):
        gap = abs(before - after) / len(response)
        if not gap <= limit:
            raise CheckpointError(
                f"export: {what} differs from the trained one by {gap:.3g} nats per token (allowed {limit:g}).{left} "
                "The checkpoint is unharmed."
            )
