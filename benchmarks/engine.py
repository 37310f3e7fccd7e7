"""CPU seconds of one training step with the plain engine and under DeepSpeed ZeRO-3: what the engine itself costs.

A narrow model of many layers, random weights and tokens, gradient checkpointing, one rank, one process: arithmetic is
small, so that what is left is Python around it, which is the same on a GPU's host. The engines alternate; the first
steps of each are warm-up. Losses of both must agree, else there are no figures.

usage: python benchmarks/engine.py [--layers 36] [--steps 4]
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import BenchmarkError, Figure, Recorder, print_table, spread
from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.toyworld.model import tiny_model
from dpeer.training import world
from dpeer.training.policy import Policy
from dpeer.training.prepare import Prepared

WARM, AGREE = 2, 1e-4
ENGINES = ("deepspeed", "plain")
MODELS: dict[str, dict[str, Any]] = {"LoRA, all linear": {"lora": {"rank": 8}}, "all weights": {}}


def records(count: int) -> TokenizedSet:
    """A prompt of 30 tokens, three responses of 20."""
    rng = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, 300) for _ in range(n))

    trees = (TokenTree(i, ids(30), (ids(20), ids(20), ids(20)), (), 0, ("A",)) for i in range(count))
    return TokenizedSet(("A",), tuple(trees), 0, 0)


def recipe(path: Path, model: dict[str, Any], engine: str, steps: int) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "output_dir": path.parent / "runs",
            "model": {"path": str(path), "dtype": "fp32", "gradient_checkpointing": True} | model,
            "data": {"train": "none"},
            "objective": {"kind": "sft"},
            "training": {"steps": steps, "records_per_step": 2, "tokens_per_pack": 100, "optimizer": {"lr": 1e-4}},
            "cluster": {"engine": engine, "deepspeed": "cpu"},
        }
    )


def seconds(path: Path, model: dict[str, Any], steps: int, here: world.World) -> dict[str, list[float]]:
    """CPU seconds of each step after the first, by engine."""
    data = Prepared(records(4), None, None, {})
    policies = {e: Policy(recipe(path, model, e, steps + WARM), data, here) for e in ENGINES}
    found: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    losses: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(steps + WARM):
        for engine, policy in policies.items():
            began = time.process_time()
            losses[engine].append(policy.train_step(None)["objective"])
            found[engine].append(time.process_time() - began)
    for policy in policies.values():
        policy.close()
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    if not apart <= AGREE:
        raise BenchmarkError(f"the engines' losses differ by {apart:.1e}: they do not do the same work")
    return {engine: values[WARM:] for engine, values in found.items()}


def one_rank() -> world.World:
    """This process as the only rank, with one thread; progress bars and warnings of libraries would cover the table."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    return world.alone(600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--steps", type=int, default=4)
    recorder = Recorder(parser)
    given = parser.parse_args()
    here = one_rank()
    rows, figures = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_model(Path(folder, "model"), "qwen3", 0, vocab=300, num_hidden_layers=given.layers)
        for name, model in MODELS.items():
            found = seconds(path, model, given.steps, here)
            zero3, plain = (statistics.median(found[engine]) for engine in ENGINES)
            rows.append([name, spread(found["deepspeed"]), spread(found["plain"]), f"{plain / zero3:.2f}"])
            figures.append(Figure.ratio(f"{name}: plain over ZeRO-3", found["plain"], found["deepspeed"], "lower"))
            figures += [Figure.median(f"{name}: {engine}", found[engine], "CPU s", "lower") for engine in ENGINES]
    world.stop()
    title = f"One step of two micro-batches, {given.layers} layers"
    print_table(title, ("", "ZeRO-3, CPU s", "plain, CPU s", "ratio"), rows, f"medians of {given.steps} steps")
    recorder.write(given, figures)


if __name__ == "__main__":
    main()
