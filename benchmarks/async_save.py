"""What a checkpoint costs the training beside which it is written; with `--kills`, whether one survives a `kill -9`.

Steps of a small model, one rank and one thread: quiet ones, and those at whose beginning a checkpoint was being
written. The two alternate. CPU is that of the thread that trains. Then, with --kills: a toy run that saves every second
step is killed at random moments and resumed until it is done; after each kill every checkpoint that counts must match
its checksums, and the finished ledger must equal that of an undisturbed run, byte by byte.

usage: python benchmarks/async_save.py [--engine plain] [--width 768] [--rounds 4] [--kills 20]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import BenchmarkError, Figure, Recorder, print_table, spread
from benchmarks.engine import recipe
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.integrity import faults, read_state
from dpeer.toyworld.model import tiny_model
from dpeer.training import checkpoint, world
from dpeer.training.policy import Policy
from dpeer.training.prepare import Prepared
from dpeer.training.run_dir import RunDir

NOISE = (
    "A step beside which a checkpoint is written does more, never less: ratios below 1 are the noise of a busy machine."
)
QUIET = 8
"""Quiet steps in a row."""
RUN = (
    "name=toy", "training.steps=40", "training.checkpoint_every=2", "training.keep=last", "training.stop_when=never",
    "training.records_per_step=2", "training.sample_every=null", "training.trackers=[]", "cluster.reference=cache",
    "cluster.policy_workers=1",
)  # fmt: skip


def records() -> TokenizedSet:
    """Few tokens, so that a step is short beside the writing."""
    ids = tuple(range(5, 17))
    return TokenizedSet(("A",), tuple(TokenTree(i, ids[i:8], (ids[8:],), (), 0, ("A",)) for i in range(4)), 0, 0)


def usage() -> tuple[float, float]:
    """Wall seconds, and user seconds of this thread."""
    return time.perf_counter(), resource.getrusage(resource.RUSAGE_THREAD).ru_utime


def step_costs(policy: Policy, folder: Path, rounds: int) -> tuple[dict[str, list[tuple[float, float]]], list[float]]:
    """(wall, user) seconds of steps by kind; of saves size, seconds of writing, of standstill, in the foreground."""
    found: dict[str, list[tuple[float, float]]] = {"quiet": [], "writing": []}

    def step(kind: str) -> None:
        wall, user = usage()
        policy.train_step(None)
        then = usage()
        found[kind].append((then[0] - wall, then[1] - user))

    sizes, seconds, still, foreground = [], [], [], []
    for number in range(rounds):
        for _ in range(QUIET):
            step("quiet")
        began = time.perf_counter()
        save = checkpoint.begin(policy, folder / f"{number}", {}, background=True)
        stood = time.perf_counter() - began
        while save.writing:
            step("writing")
        began = time.perf_counter()
        cost = checkpoint.finish(save)
        still.append(stood + time.perf_counter() - began)
        began = time.perf_counter()
        checkpoint.save(policy, folder / "foreground", {})
        foreground.append(time.perf_counter() - began)
        sizes.append(float(cost["bytes"]))
        seconds.append(cost["seconds"])
        shutil.rmtree(folder)
    return found, [statistics.median(values) for values in (sizes, seconds, still, foreground)]


def costs(engine: str, width: int, rounds: int, folder: Path) -> list[Figure]:
    here = world.alone(600)
    path = tiny_model(folder / "model", "qwen3", 0, vocab=300, num_hidden_layers=4, hidden_size=width)
    policy = Policy(recipe(path, {}, engine, 10_000), Prepared(records(), None, None, {}), here)
    for _ in range(3):
        policy.train_step(None)
    found, (size, seconds, still, foreground) = step_costs(policy, folder / "saved", rounds)
    if len(found["writing"]) < rounds:
        raise BenchmarkError("a checkpoint was written within a step or two: raise --width")
    rows, figures = [], []
    for i, name in enumerate(("wall s", "user s")):
        quiet, writing = ([costs[i] for costs in found[kind]] for kind in ("quiet", "writing"))
        ratio = statistics.median(writing) / statistics.median(quiet)
        rows.append([name, spread(quiet, 3), spread(writing, 3), f"{ratio:.2f}"])
        figures.append(Figure(f"step while a checkpoint is written over a quiet one, {name}", ratio, "x", "lower"))
    figures += [
        Figure("standstill over saving in the foreground", still / foreground, "x", "lower"),
        Figure("training stands still for a checkpoint", still, "s", "lower"),
        Figure("a checkpoint in the foreground", foreground, "s"),
        Figure("size of a checkpoint", size / 1e6, "MB"),
    ]
    told = (
        f"{len(found['quiet'])} and {len(found['writing'])} steps; {size / 1e6:.0f} MB written in {seconds:.2f} s, "
        f"training stood still for {still:.2f} s; in the foreground {foreground:.2f} s"
    )
    print_table(f"One step, {engine} engine", ("", "quiet", "while a checkpoint is written", "ratio"), rows, told)
    world.stop()
    return figures


def kills(count: int, seed: int, folder: Path) -> list[Figure]:
    from tests.faults import life  # imports everything that a life needs, once
    from tests.faults.programs import build_lab

    build_lab(folder, n_train=24, n_heldout=8)
    rng, context = random.Random(seed), multiprocessing.get_context("fork")
    arguments = ("train", "recipe.yaml", *RUN)

    def start(place: str) -> tuple[multiprocessing.process.BaseProcess, RunDir]:
        reads, says = context.Pipe(duplex=False)
        process = context.Process(target=life.live, args=((*arguments, f"output_dir={place}"), folder, says, None, 0.0))
        with (folder / f"{place}.log").open("ab") as log:
            os.dup2(log.fileno(), says.fileno())
        process.start()
        reads.close()
        return process, RunDir(folder / place / "toy")

    process, quiet = start("quiet")
    began = time.monotonic()
    process.join()
    lasts = time.monotonic() - began
    if process.exitcode:
        raise BenchmarkError((folder / "quiet.log").read_text()[-3000:])
    killed, in_flight, lives = 0, 0, 0
    while True:
        process, run = start("killed")
        lives += 1
        if killed < count:
            process.join(lasts * rng.uniform(0.3, 0.8))
        else:
            process.join()
        if process.exitcode is None:
            assert process.pid
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
            in_flight += any(run.checkpoints.glob(".writing-*"))
        elif process.exitcode:
            raise BenchmarkError((folder / "killed.log").read_text()[-3000:])
        for step in run.saved_steps():
            state = read_state(run.checkpoint(step) / "state.json", "")
            if found := faults(run.checkpoint(step), state["files"]):
                raise BenchmarkError(f"{run.checkpoint(step)}: {found}")
        if process.exitcode == 0:
            same = run.ledger.read_bytes() == quiet.ledger.read_bytes()
            if not same:
                raise BenchmarkError(f"the ledger of {run.path} differs from that of {quiet.path}")
            if killed >= count:
                break
            shutil.rmtree(run.path.parent)
    print(
        f"{killed} kills in {lives} lives, {in_flight} of them while a checkpoint was on its way: each checkpoint that "
        "counts is whole, and each finished ledger equals that of the undisturbed run"
    )
    return [
        Figure("broken checkpoints and other ledgers after kill -9", 0, "count", "lower", 0),
        Figure("kills", killed, "kills"),
        Figure("kills while a checkpoint was on its way", in_flight, "kills"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("plain", "deepspeed"), default="plain")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    recorder = Recorder(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    folder = Path(tempfile.mkdtemp())  # a TemporaryDirectory would end with the first life
    try:
        if given.kills:
            figures = kills(given.kills, given.seed, folder)
        else:
            figures = costs(given.engine, given.width, given.rounds, folder)
    finally:
        shutil.rmtree(folder)
    recorder.write(given, figures, "" if given.kills else NOISE)


if __name__ == "__main__":
    main()
