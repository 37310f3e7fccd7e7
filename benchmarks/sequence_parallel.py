"""Peak memory of a rank against the length of a record that 1, 2 or 4 ranks compute together, on the CPU.

    python benchmarks/sequence_parallel.py                     # all weights trained
    python benchmarks/sequence_parallel.py --recompute         # with gradient checkpointing

A forward and a backward pass of one record (a long prompt, two short answers) through a small model with random
weights, at several lengths. Printed are the bytes that torch had allocated at the most on the rank that needed most,
beside weights and their gradients; the slope in bytes per token; and that slope times the ranks over the slope of one
rank, which is 1 where a rank's memory falls exactly with their number.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import Figure, Recorder, print_table
from dpeer.data.packing import build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.model.tree_attention import NAME
from dpeer.model.tree_lm import TreeLM
from dpeer.training import world

RANKS, TEAMS, CONTEXTS, ANSWER = 4, (1, 2, 4), (512, 1024, 2048), 9
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def peak(lm: TreeLM, context: int, team: Any) -> int:
    """Bytes that one record of `context` forward tokens adds at the most."""
    answer = (7,) * ANSWER
    tree = TokenTree(0, (5,) * (context - 2 * (ANSWER - 1)), (answer, answer), (), 0, ())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        pack = build_pack([tree], [0]).cut(team.rank, team.size)
        torch.autograd.backward(lm(pack).sum())
        del pack
    assert profiled.profiler is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def measure(rank: int, port: int, recompute: bool, found: str) -> None:
    """Peaks [teams, contexts] in bytes, of the rank that needs most, into a file."""
    torch.set_num_threads(1)
    here = world.start(rank, RANKS, "127.0.0.1", port, 600, gpu=False)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE), attn_implementation=NAME)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    lm = TreeLM(model.train())
    for parameter in lm.parameters():
        parameter.grad = torch.zeros_like(parameter)
    peaks = []
    for size in TEAMS:
        lm.team = world.in_teams(here, size).team
        peak(lm, 64, lm.team)  # connects, and fills what is cached
        peaks.append([_most(peak(lm, context, lm.team)) for context in CONTEXTS])
    world.stop()
    if rank == 0:
        torch.save(torch.tensor(peaks), found)


def _most(size: int) -> int:
    """Over all ranks."""
    most = torch.tensor(size)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def slope(peaks: list[int]) -> float:
    """Bytes per token, by least squares."""
    x, y = (torch.tensor(v, dtype=torch.float64) for v in (CONTEXTS, peaks))
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def report(peaks: dict[int, list[int]]) -> list[Figure]:
    slopes = {size: slope(own) for size, own in peaks.items()}
    rows = [
        [
            f"{size}",
            *(f"{p / 2**20:.1f} MB" for p in peaks[size]),
            f"{slopes[size]:,.0f}",
            f"{_over_one(slopes, size):.3f}",
        ]
        for size in peaks
    ]
    columns = ["ranks together", *(f"{c:,} tokens" for c in CONTEXTS), "bytes per token", "times ranks, over one rank"]
    print_table("Peak memory of a rank, beside weights and gradients", columns, rows, "of the rank that needs most")
    ratios = [
        Figure(f"{n} ranks: slope x ranks, over one rank", _over_one(slopes, n), "x", "lower", 1.1) for n in TEAMS[1:]
    ]
    return ratios + [Figure(f"{n} ranks: bytes that a token adds", slopes[n], "bytes", "lower") for n in TEAMS]


def _over_one(slopes: dict[int, float], size: int) -> float:
    return size * slopes[size] / slopes[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    recorder = Recorder(parser)
    given = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        found = str(Path(folder, "peaks.pt"))
        mp.spawn(measure, (port, given.recompute, found), nprocs=RANKS)
        peaks = dict(zip(TEAMS, torch.load(found, weights_only=True).tolist(), strict=True))
    recorder.write(given, report(peaks))


if __name__ == "__main__":
    main()
