"""The frozen reference: one rank of it, and the cache of its log-probabilities on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import torch

from dpeer.config import Config, Lora
from dpeer.data.packing import all_responses
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import CheckpointError
from dpeer.integrity import Damaged
from dpeer.model import tree_attention
from dpeer.model.families import named
from dpeer.model.identity import adapter_hash, model_hash
from dpeer.model.lm import load_shape
from dpeer.model.probe import layout_of
from dpeer.tensor_file import read_tensors, write_tensors
from dpeer.training.calls import Scores
from dpeer.training.choice import reference_engine, team_size
from dpeer.training.engine import Engine
from dpeer.training.pulse import Pulse
from dpeer.training.scoring import score
from dpeer.training.world import World, in_teams


class Reference:
    """One rank of the reference group, or the reference beside a policy rank: a second model, or `beneath` the policy's
    adapters, which is the same weights; so is a policy without adapters until its first step."""

    def __init__(
        self, config: Config, world: World, pulse: Pulse | None = None, *, beneath: Engine | None = None
    ) -> None:
        self.world = in_teams(world, team_size(config, world.size))
        self.budget = config.training.tokens_per_pack
        self.beneath = beneath
        self.engine = beneath or reference_engine(config, self.world)
        self.layout = self.engine.module.layout
        self.pulse = pulse or Pulse()

    def score(self, trees: Sequence[TokenTree], *, everyone: bool = False) -> Scores:
        """This rank's share of the reference log-probabilities (nats, fp64 of fp32 sums); `everyone`: of what its team
        computes, on each rank of it."""
        with self.pulse.during("scoring by the reference", beating=True):
            if self.beneath is None:
                return score(self.engine, trees, self.world, self.budget, self.pulse, self.layout, everyone)
            self.engine.eval()
            with self.engine.module.without_adapters():
                scores = score(self.engine, trees, self.world, self.budget, self.pulse, self.layout, everyone)
            self.engine.train()
            return scores

    def close(self) -> None:
        """Free the model, unless it is the policy's; the object is of no further use."""
        if self.beneath is None:
            self.engine.close()


def reference_hash(config: Config) -> str:
    """Identity of the reference weights; kept in checkpoints and cache keys so that a changed reference is refused."""
    return _hash(*config.model.reference, config.model.reference_lora)


def start_hash(config: Config) -> str:
    """Identity of the weights that training starts from."""
    return _hash(config.model.path, config.model.revision, config.model.start)


def _hash(path: str, revision: str | None, lora: Lora | None) -> str:
    base = model_hash(path, revision)
    if lora is None or lora.path is None:
        return base
    return hashlib.sha256(f"{base} {adapter_hash(lora.path, lora.revision)}".encode()).hexdigest()


def cache_path(config: Config, data: TokenizedSet) -> Path:
    """File of cached log-probs: keyed by everything that changes them. Length normalisation happens after reading."""
    device = f"gpu, {config.model.flash}, {config.model.kernels}" if config.cluster.on_gpus else "cpu"
    kernel = f"{tree_attention.IMPLEMENTATIONS[config.model.attention]} on {device}"
    kernel += _layout(config)
    kernel += ", 4 bits" if config.model.load_in_4bit else ""
    key = [reference_hash(config), data.sha256, config.model.dtype, kernel, torch.__version__, "sum"]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return config.output_dir / "reference_cache" / f"{name}.safetensors"


def _layout(config: Config) -> str:
    """Nothing for the families that have always been trees: their caches stay valid. What `auto` means for others may
    change with dpeer and transformers."""
    path, revision = config.model.reference
    if (wanted := config.model.layout) != "auto":
        return f", {wanted}"
    shape = load_shape(path, revision)
    return "" if named(shape) else f", auto: {layout_of(shape, path)}"


class CachedScores(Sequence[list[float]]):
    """Reference log-probs (nats) of each record's responses. flat: [responses]. ends: [records]."""

    def __init__(self, flat: npt.NDArray[np.float64], ends: npt.NDArray[np.int64]) -> None:
        self.flat, self.ends = flat, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, at: int) -> list[float]: ...
    @overload
    def __getitem__(self, at: slice) -> list[list[float]]: ...
    def __getitem__(self, at: int | slice) -> list[float] | list[list[float]]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        end = self.ends[at]  # IndexError ends an iteration
        return list(self.flat[self.ends[at - 1] if at else 0 : end].tolist())


def read_cache(path: Path, data: TokenizedSet) -> CachedScores | None:
    """Reference log-probs per record, or None when there is no such file. A damaged file is refused by name."""
    if not path.exists():
        return None
    try:
        tensors, words = read_tensors(path)
        if "logprobs" not in tensors:
            raise Damaged("is not readable (it holds no log-probabilities)")
    except Damaged as error:
        raise CheckpointError(
            f"reference cache {path}: {error}; every loss is measured from it. Delete it; it is made again."
        ) from error
    flat = tensors["logprobs"].numpy()
    if words.get("key", path.stem) != path.stem:
        raise CheckpointError(
            f"reference cache {path}: was written as {words['key']}, for another model or other data. Delete it; it is "
            "made again."
        )
    ends = np.cumsum(all_responses(data.trees))
    responses = int(ends[-1]) if len(ends) else 0
    if len(flat) != responses:
        raise CheckpointError(
            f"reference cache {path}: holds {len(flat)} values, the data has {responses} responses. Delete it."
        )
    if bad := int((~np.isfinite(flat)).sum()):
        raise CheckpointError(
            f"reference cache {path}: {bad} of its {len(flat)} values are not finite. Delete it; it is made again."
        )
    return CachedScores(flat, ends)


def write_cache(path: Path, logprobs: Iterable[Sequence[float]]) -> None:
    """Of each record in turn. Whole or not at all."""
    flat = np.fromiter(chain.from_iterable(logprobs), dtype=np.float64)
    write_tensors(path, {"logprobs": torch.from_numpy(flat)}, {"key": path.stem})


def uncached(paths: Mapping[str, Path], splits: Mapping[str, TokenizedSet]) -> list[str]:
    """Splits whose cache is not there or not sound; says what is wrong with it."""
    lacking = []
    for name, path in paths.items():
        try:
            if read_cache(path, splits[name]) is None:
                lacking.append(name)
        except CheckpointError as error:
            print(f"{error} That is done now.", flush=True)
            lacking.append(name)
    return lacking
