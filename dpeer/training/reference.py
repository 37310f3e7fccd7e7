"""The frozen reference: one ZeRO-3 rank of it, and the cache of its log-probabilities on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import CheckpointError
from dpeer.files import follow_umask
from dpeer.model import tree_attention
from dpeer.model.identity import model_hash
from dpeer.training.calls import Scores
from dpeer.training.engine import reference_engine
from dpeer.training.pulse import Pulse
from dpeer.training.scoring import score
from dpeer.training.world import World


class Reference:
    """One rank of the reference group, or the reference beside a policy rank (colocated)."""

    def __init__(self, config: Config, world: World, pulse: Pulse | None = None) -> None:
        self.world, self.budget = world, config.training.tokens_per_pack
        self.engine = reference_engine(config, world)
        self.pulse = pulse or Pulse()

    def score(self, trees: Sequence[TokenTree]) -> Scores:
        """This rank's share of the reference log-probabilities (nats, fp64 of fp32 sums)."""
        with self.pulse.during("scoring by the reference", beating=True):
            return score(self.engine, trees, self.world, self.budget, self.pulse)


def reference_hash(config: Config) -> str:
    """Identity of the reference weights; kept in checkpoints and cache keys so that a changed reference is refused."""
    return model_hash(config.model.reference_path or config.model.path, config.model.revision)


def cache_path(config: Config, data: TokenizedSet) -> Path:
    """File of cached log-probs: keyed by everything that changes them. Length normalisation happens after reading."""
    kernel = f"{tree_attention.NAME} on {'gpu' if config.cluster.gpus_per_worker else 'cpu'}"
    key = [reference_hash(config), data.sha256, config.model.dtype, kernel, torch.__version__, "sum"]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return config.output_dir / "reference_cache" / f"{name}.safetensors"


def read_cache(path: Path, data: TokenizedSet) -> list[list[float]] | None:
    """Reference log-probs per record, or None when there is no such file. A damaged file is refused by name."""
    if not path.exists():
        return None
    try:
        flat = load_file(path)["logprobs"].tolist()
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"reference cache {path}: not readable ({error}). Delete it; it is made again."
        ) from error
    counts = [len(t.responses) for t in data.trees]
    if len(flat) != sum(counts):
        raise CheckpointError(
            f"reference cache {path}: holds {len(flat)} values, the data has {sum(counts)} responses. Delete it."
        )
    if bad := sum(not math.isfinite(v) for v in flat):
        raise CheckpointError(
            f"reference cache {path}: {bad} of its {len(flat)} values are not finite. Delete it; it is made again."
        )
    values = iter(flat)
    return [[next(values) for _ in range(n)] for n in counts]


def write_cache(path: Path, logprobs: Sequence[Sequence[float]]) -> None:
    """Atomic: written under another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    save_file({"logprobs": torch.tensor([v for row in logprobs for v in row], dtype=torch.float64)}, temporary)
    follow_umask(Path(temporary))
    os.replace(temporary, path)
