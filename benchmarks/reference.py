"""Three epochs with a cached reference against a live one, and what a second run of the same data computes: nothing.

One rank in this process on records of the toy world. Tokens are counted where the reference scores records. The cached
run's CPU seconds include filling the cache and a model for that; those of the second run, whose optimizer has another
rate, do not. Ledgers of cached and live must agree, else there are no figures.

usage: python benchmarks/reference.py [--records 24] [--epochs 3] [--width 128]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import BenchmarkError, Figure, Recorder, print_table
from benchmarks.engine import one_rank
from dpeer.config import Config
from dpeer.data.packing import all_forward_tokens
from dpeer.launcher.torchrun import LocalWorkers, Rank
from dpeer.toyworld import world as toyworld
from dpeer.toyworld.model import tiny_model
from dpeer.training import reference as reference_module
from dpeer.training import world
from dpeer.training.fill import fill_cache
from dpeer.training.rank import TrainingRank

AGREE = 1e-5
counted = [0]


def count_tokens() -> None:
    """Of everything that a reference scores from now on."""
    score = reference_module.score

    def counting(forward: Any, trees: Sequence[Any], *rest: Any) -> Any:
        counted[0] += int(all_forward_tokens(trees).sum())
        return score(forward, trees, *rest)

    reference_module.score = counting


def recipe(folder: Path, name: str, reference: str, given: argparse.Namespace, lr: float = 1e-3) -> Config:
    return Config.model_validate(
        {
            "name": name,
            "output_dir": folder / "runs",
            "model": {"path": str(folder / "model"), "dtype": "fp32"},
            "data": {"train": str(folder / "world" / "train.jsonl"), "dual": "none", "heldout": "none"},
            "objective": {"dual": {"evidence": "batch", "aim": 0}},
            "training": {"epochs": given.epochs, "records_per_step": 8, "optimizer": {"lr": lr}},
            "cluster": {"reference": reference, "policy_workers": 1, "engine": "plain"},
        }
    )


def train(config: Config, rank: Rank) -> tuple[list[dict[str, Any]], float, int]:
    """Ledger, CPU seconds, tokens that the reference computed."""
    counted[0], began = 0, time.process_time()
    if config.cluster.reference == "cache":
        fill_cache(config, LocalWorkers(rank))
    trained = TrainingRank(config, rank.here)
    if config.cluster.reference == "cache":
        trained.read_cache()
    ledger = [trained.train_step() for _ in range(trained.policy.steps)]
    seconds = time.process_time() - began
    trained.close()
    return ledger, seconds, counted[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    recorder = Recorder(parser)
    given = parser.parse_args()
    rank = Rank(one_rank(), 600)
    count_tokens()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = toyworld.write_world(folder / "world", 3, n_train=given.records, n_heldout=4, n_prompts=2, n_pretrain=5)
        texts = [record.responses[0].text for record in made.train.records]
        tiny_model(folder / "model", "qwen3", 1, vocab=400, texts=texts, hidden_size=given.width, num_hidden_layers=4)
        train(recipe(folder, "warm", "colocated", given), rank)
        live = train(recipe(folder, "live", "colocated", given), rank)
        first = train(recipe(folder, "first", "cache", given), rank)
        second = train(recipe(folder, "second", "cache", given, lr=5e-4), rank)
    world.stop()
    apart = max(abs(a["objective"] - b["objective"]) for a, b in zip(live[0], first[0], strict=True))
    if not apart <= AGREE:
        raise BenchmarkError(f"losses with a live and with a cached reference differ by {apart:.1e}")
    runs = {"live": live, "cached": first, "cached, second run": second}
    rows = [[name, f"{seconds:.2f}", f"{tokens:,}"] for name, (_, seconds, tokens) in runs.items()]
    title = f"{given.epochs} epochs of {given.records} records"
    print_table(title, ("reference", "CPU s", "reference tokens"), rows, f"losses agree to {apart:.0e}")
    figures = [
        Figure(f"{given.epochs} epochs, CPU: live over cached, filling included", live[1] / first[1], "x", "higher"),
        Figure("the same, second run of a sweep", live[1] / second[1], "x", "higher"),
        Figure("reference tokens: live over cached", live[2] / first[2], "x", "higher", given.epochs),
        Figure("reference tokens that a second run computes", second[2], "tokens", "lower", 0),
        Figure("reference tokens, live", live[2], "tokens"),
        Figure("reference tokens, cached", first[2], "tokens", "lower"),
    ]
    recorder.write(given, figures, f"Losses agree to {apart:.0e}.")


if __name__ == "__main__":
    main()
