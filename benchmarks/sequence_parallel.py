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
import json
import socket
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

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


def measure(rank: int, port: int, recompute: bool) -> None:
    torch.set_num_threads(1)
    here = world.start(rank, RANKS, "127.0.0.1", port, 600, gpu=False)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE), attn_implementation=NAME)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    lm = TreeLM(model.train())
    for parameter in lm.parameters():
        parameter.grad = torch.zeros_like(parameter)
    found = {}
    for size in TEAMS:
        lm.team = world.in_teams(here, size).team
        peak(lm, 64, lm.team)  # connects, and fills what is cached
        found[size] = [_most(peak(lm, context, lm.team)) for context in CONTEXTS]
    world.stop()
    if rank == 0:
        report(found)


def _most(size: int) -> int:
    """Over all ranks."""
    most = torch.tensor(size)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def slope(peaks: list[int]) -> float:
    """Bytes per token, by least squares."""
    x, y = (torch.tensor(v, dtype=torch.float64) for v in (CONTEXTS, peaks))
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def report(found: dict[int, list[int]]) -> None:
    print(f"{'ranks':>5} " + " ".join(f"{c:>7} t" for c in CONTEXTS) + "   bytes/token   x ranks / one rank")
    one = slope(found[1])
    for size, peaks in found.items():
        row = " ".join(f"{p / 2**20:6.1f} MB" for p in peaks)
        print(f"{size:>5} {row}   {slope(peaks):11,.0f}   {size * slope(peaks) / one:.3f}")
    print(json.dumps({"slope_ratio": {size: size * slope(peaks) / one for size, peaks in found.items()}}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    given = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(measure, (port, given.recompute), nprocs=RANKS)


if __name__ == "__main__":
    main()
