"""Bytes that a step under ZeRO-3 sends, against what ZeRO-3 has to send: counted in gloo ranks of this machine.

The calls of torch.distributed are wrapped in every rank before anything joins, and each counts what a rank sends by a
ring: (n - 1) / n of the gathered or scattered bytes, twice that for an all-reduce. What has to be sent, per
micro-batch: the weights gathered for the forward and again for the backward pass, and the gradients scattered, 3 N
values; gathered once more per step where the optimizer's result is read at the next step's forward pass, which is the
same gathering. Point-to-point messages and barriers carry nothing that grows with the model and are not counted.

usage: python benchmarks/collectives.py [--ranks 2 4] [--steps 2] [--width 256] [--tied]
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import Figure, Recorder, print_table
from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.toyworld.model import tiny_model
from dpeer.training import world
from dpeer.training.policy import Policy
from dpeer.training.prepare import Prepared
from dpeer.training.scoring import merge, score

GOAL = 1.02
RECORDS = 4
"""Per step, so that each of four ranks has one pack: one micro-batch."""


def size(value: Any) -> int:
    """Bytes of a tensor, or of all in a list."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(size, value)) if isinstance(value, list | tuple) else 0


def large(*values: Any) -> int:
    return max(map(size, values))


# What a rank sends, over (n - 1) / n: of the whole result where parts are gathered, of the whole input where they are
# scattered. Gathering and scattering have the whole and the part as their first two arguments, in either order.
SENT: dict[str, Callable[..., int]] = {
    "all_gather_into_tensor": large,
    "_all_gather_base": large,
    "all_gather": lambda parts, own: size(parts),
    "reduce_scatter_tensor": large,
    "_reduce_scatter_base": large,
    "reduce_scatter": lambda own, parts: size(parts),
    "all_reduce": lambda tensor: 2 * size(tensor),
    "all_to_all_single": lambda out, given: size(given),
    "reduce": size,
    "broadcast": size,
    "gather": lambda tensor, *_: size(tensor),
}


def count_calls(counted: Counter[str]) -> None:
    """Wrap torch.distributed; a call within a wrapped call (an object's, or a coalesced one) counts once."""
    inside = [False]

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def counting(*arguments: Any, **options: Any) -> Any:
            if inside[0]:
                return call(*arguments, **options)
            tensors = [v for v in (*arguments, *options.values()) if isinstance(v, torch.Tensor | list | tuple)][:2]
            counted[name] += SENT[name](*tensors[: 1 if name in ("all_reduce", "reduce", "broadcast") else 2])
            inside[0] = True
            try:
                return call(*arguments, **options)
            finally:
                inside[0] = False

        return counting

    for name in SENT:
        setattr(dist, name, wrapped(name, getattr(dist, name)))


def records() -> TokenizedSet:
    """A prompt of 8 tokens, three responses of 8, in as many packs as records."""

    def ids(first: int) -> tuple[int, ...]:
        return tuple(range(first, first + 8))

    edges = ((0, 0, 1), (1, 0, 2))
    trees = (
        TokenTree(i, ids(5 + i), tuple(ids(20 + r + i) for r in range(3)), edges, 0, ("A", "B")) for i in range(RECORDS)
    )
    return TokenizedSet(("A", "B"), tuple(trees), 0, 0)


def recipe(path: Path, ranks: int) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "output_dir": path.parent / "runs",
            "model": {"path": str(path), "dtype": "fp32", "gradient_checkpointing": True},
            "data": {"train": "none", "dual": "none"},
            "objective": {"dual": {"evidence": "batch", "aim": 0}},
            "training": {"steps": 100, "records_per_step": RECORDS, "tokens_per_pack": 32 * RECORDS // ranks},
            "cluster": {"engine": "deepspeed", "deepspeed": "cpu", "policy_workers": ranks},
        }
    )


def rank_of(rank: int, ranks: int, port: int, path: Path, steps: int, result: Any) -> None:
    counted: Counter[str] = Counter()
    count_calls(counted)
    here = world.start(rank, ranks, "127.0.0.1", port, 600, gpu=False)
    policy = Policy(recipe(path, ranks), Prepared(records(), None, None, {}), here)
    shares: list[Any] = [None] * ranks
    policy.engine.eval()
    dist.all_gather_object(shares, score(policy.engine, list(policy.data.trees), here, budget=1, layout=policy.layout))
    policy.engine.train()
    of_record = merge(shares, RECORDS)
    found = []
    for _ in range(steps + 1):
        counted.clear()
        batch = policy.batch(policy.step).trees
        entry = policy.train_step({i: of_record[tree.index] for i, tree in enumerate(batch)})
        found.append(dict(counted))
    weights = sum(p.ds_numel for p in policy.engine.module.parameters())  # type: ignore[attr-defined]
    if rank == 0:
        result.send((found[1:], weights, entry["packs"] / ranks))
    world.stop()


def measure(ranks: int, path: Path, steps: int) -> tuple[list[dict[str, int]], int, float]:
    """Per step after the first, bytes by call, before the factor (n - 1) / n; weights; micro-batches of a rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # what a rank needs is imported once
    reads, says = context.Pipe(duplex=False)
    processes = [context.Process(target=rank_of, args=(r, ranks, port, path, steps, says)) for r in range(ranks)]
    for process in processes:
        process.start()
    says.close()
    try:
        found: tuple[list[dict[str, int]], int, float] = reads.recv()  # EOFError once all have ended
    finally:
        for process in processes:
            process.join(60)
            process.kill()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tied", action="store_true", help="the head is the embedding, as in small models")
    recorder = Recorder(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    rows, figures = [], []
    shape = {"hidden_size": given.width, "tie_word_embeddings": given.tied}
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_model(Path(folder, "model"), "qwen3", 0, vocab=300, num_hidden_layers=4, **shape)
        for ranks in given.ranks:
            steps, weights, micro = measure(ranks, path, given.steps)
            share = (ranks - 1) / ranks
            sent = [share * sum(calls.values()) for calls in steps]
            formula = share * 3 * 4 * weights * micro
            ratio = statistics.median(sent) / formula
            for name, total in sorted(steps[-1].items(), key=lambda item: -item[1]):
                rows.append([f"{ranks} ranks: {name}", f"{share * total / 1e6:.3f}", ""])
            rows.append([f"{ranks} ranks: all", f"{statistics.median(sent) / 1e6:.3f}", f"{ratio:.3f}"])
            title = f"{ranks} ranks: bytes of a step over 3 N values per micro-batch"
            figures.append(Figure(title, ratio, "x", "lower", GOAL))
            megabytes = statistics.median(sent) / 1e6
            figures.append(Figure(f"{ranks} ranks: sent by a rank in a step", megabytes, "MB", "lower"))
    figures.append(Figure("weights", weights, "values"))
    print_table("Sent by a rank in a step", ("", "MB", "of ZeRO-3's"), rows, f"{weights:,} weights, fp32")
    recorder.write(given, figures)


if __name__ == "__main__":
    main()
