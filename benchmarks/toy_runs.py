"""Runs on the toy world of `dpeer demo` in the benchmark's own process, one rank each, without Ray."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging

from dpeer.config import Config
from dpeer.launcher import demo
from dpeer.launcher.recipe import training_config
from dpeer.launcher.replies import replies
from dpeer.toyworld import world as toyworld
from dpeer.training import world
from dpeer.training.prepare import prepare
from dpeer.training.rank import TrainingRank
from dpeer.training.reference import Reference, cache_path, write_cache
from dpeer.training.scoring import merge


@dataclass(frozen=True)
class Trained:
    rank: TrainingRank
    ledger: list[dict[str, Any]]
    seconds: float


class Arms:
    """Runs of the demo in this process, one rank each; all share world, base model and reference log-probabilities."""

    def __init__(self, root: Path, seed: int, changes: tuple[str, ...]) -> None:
        torch.set_num_threads(1)  # models this small: more threads only wait for each other
        logging.disable_progress_bar()
        self.root, self.seed, self.changes = root, seed, changes
        self.base = demo.prepare_world(root, seed, Console())
        self.world = world.alone(600)

    def config(self, name: str, *changes: str) -> Config:
        folder = self.root / "world"
        places = (f"output_dir={self.root}", f"model.path={self.base}", f"data.train={folder / 'train.jsonl'}")
        places += (f"data.heldout={folder / 'test.jsonl'}", "cluster.policy_workers=1", "cluster.reference=cache")
        return training_config("demo", (f"name={name}", f"seed={self.seed}", *places, *self.changes, *changes))

    def fill_cache(self, config: Config) -> None:
        reference = None
        for data in prepare(config).splits.values():
            if not cache_path(config, data).exists():
                reference = reference or Reference(config, self.world)
                write_cache(cache_path(config, data), merge([reference.score(data.trees)], len(data.trees)))

    def start(self, name: str, *changes: str) -> TrainingRank:
        config = self.config(name, *changes)
        self.fill_cache(config)
        rank = TrainingRank(config, self.world)
        rank.read_cache()
        return rank

    def train(self, name: str, *changes: str) -> Trained:
        print(f"{name}: {', '.join(changes) or 'as the demo'}", flush=True)
        self.fill_cache(self.config(name, *changes))  # shared by all runs: no part of one's time
        began = time.process_time()
        rank = self.start(name, *changes)
        ledger = [rank.train_step() for _ in range(rank.policy.steps)]
        return Trained(rank, ledger, time.process_time() - began)

    def read(self, name: str, trained: Trained) -> dict[str, Any]:
        """What the oracle reads in the model's replies, and its certificate's means."""
        folder, rank = self.root / name, trained.rank
        folder.mkdir(exist_ok=True)
        rank.export(folder / "export")
        assert rank.prepared.heldout is not None
        scores = merge([rank.score_heldout()], len(rank.prepared.heldout.trees))
        found = rank.certificate(scores, rank.cached_heldout(), folder / "heldout.safetensors")
        assert found is not None
        (folder / "replies.jsonl").unlink(missing_ok=True)
        said = replies(folder / "export", self.root / "world" / "prompts.jsonl", folder, self.seed)
        shares = toyworld.share(said)
        losses = {d: row["loss"] for d, row in found["dimensions"].items()}
        return {"shares": shares.good, "mean": shares.mean, "fluency": shares.fluency, "losses": losses}
