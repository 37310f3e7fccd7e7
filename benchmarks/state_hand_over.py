"""CPU seconds of forward and backward of one record of a Gated DeltaNet model: as a tree and as separate sequences.

As a tree the prompt is computed once and its state handed to each response; `model.layout: sequences` gives each
response its own copy of the prompt. Random weights and tokens, fp32, one thread, no gradient checkpointing; the layouts
alternate, the first round is warm-up. Log-probabilities and gradients of both must agree, else there are no figures.

usage: python benchmarks/state_hand_over.py [--rounds 5] [--prompt 300] [--response 100] [--responses 4]
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import BenchmarkError, Figure, Recorder, print_table, spread
from dpeer import config
from dpeer.data.layout import computed
from dpeer.data.packing import Pack, build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.model.lm import build_lm
from dpeer.model.tree_lm import TreeLM
from dpeer.toyworld.model import tiny_model

AGREE = 1e-5
LAYOUTS = ("tree", "sequences")
LINEAR, FULL = "linear_attention", "full_attention"
MODELS = {"three DeltaNet layers of four": [LINEAR] * 3 + [FULL], "DeltaNet alone": [LINEAR] * 4}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64}


def record(prompt: int, response: int, responses: int) -> Pack:
    rng = random.Random(0)
    first, *rest = (tuple(rng.randrange(5, 1000) for _ in range(n)) for n in (prompt, *[response] * responses))
    return build_pack([TokenTree(0, first, tuple(rest), (), 0, ())], [0])


def once(lm: TreeLM, pack: Pack) -> tuple[float, Tensor, dict[str, Tensor]]:
    """CPU seconds, log-probabilities, gradients."""
    lm.zero_grad()
    began = time.process_time()
    logps = lm(pack)
    torch.autograd.backward((logps * torch.sin(torch.arange(len(logps)) + 0.5)).sum())
    seconds = time.process_time() - began
    return seconds, logps.detach(), {n: p.grad for n, p in lm.model.named_parameters() if p.grad is not None}


def compare(path: Path, pack: Pack, rounds: int) -> tuple[dict[str, list[float]], float, float]:
    """Seconds by layout, the largest relative gap of log-probabilities, and that of the gradient as one vector."""
    models = {x: build_lm(config.Model(path=str(path), dtype="fp32", layout=x), 0) for x in LAYOUTS}
    seconds: dict[str, list[float]] = {x: [] for x in LAYOUTS}
    for _ in range(rounds + 1):
        found = {x: once(lm, pack) for x, lm in models.items()}
        for layout, (spent, _, _) in found.items():
            seconds[layout].append(spent)
    (_, values, grads), (_, expected, theirs) = found.values()
    gap = float(((values - expected) / expected).abs().max())
    ours, wanted = (torch.cat([g[k].flatten() for k in theirs]) for g in (grads, theirs))
    apart = float((ours - wanted).norm() / wanted.norm())
    if not (gap <= AGREE and apart <= AGREE):
        raise BenchmarkError(f"log-probabilities differ by {gap:.1e} and gradients by {apart:.1e}: not the same work")
    return {layout: values[1:] for layout, values in seconds.items()}, gap, apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rounds", 5), ("prompt", 300), ("response", 100), ("responses", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    recorder = Recorder(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    pack = record(given.prompt, given.response, given.responses)
    tree, sequences = (computed(pack, layout) for layout in LAYOUTS)
    rows, figures = [], []
    for name, kinds in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            shape = DELTA | {"hidden_size": 256, "num_hidden_layers": len(kinds), "layer_types": kinds}
            path = tiny_model(Path(folder, "model"), "qwen3_5_text", 0, vocab=1024, initializer_range=0.02, **shape)
            seconds, gap, apart = compare(path, pack, given.rounds)
        ratio = statistics.median(seconds["sequences"]) / statistics.median(seconds["tree"])
        gaps = f"{gap:.0e}, {apart:.0e}"
        figures.append(Figure.ratio(f"{name}: sequences over tree", seconds["sequences"], seconds["tree"], "higher"))
        figures.append(Figure(f"{name}: largest gap of log-probabilities", gap, "relative"))
        rows.append([name, spread(seconds["sequences"]), spread(seconds["tree"]), f"{ratio:.2f}", gaps])
    title = f"Prompt {given.prompt}, {given.responses} responses of {given.response}: {sequences} against {tree} tokens"
    columns = ("layers", "sequences, CPU s", "tree, CPU s", "ratio", "gap of log-probs, gradient")
    print_table(title, columns, rows, f"medians of {given.rounds} rounds; tokens alone give {sequences / tree:.2f}")
    figures.append(Figure("tokens: sequences over tree", sequences / tree, "x"))
    recorder.write(given, figures)


if __name__ == "__main__":
    main()
