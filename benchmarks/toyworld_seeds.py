"""Claims against the truth, over seeds: does the Lagrangian run lift the worst dimension, and do certificates hold?

For every seed the demo is run; then every certificate's verdicts are compared with the mean edge loss on thousands of
fresh records of the same world, none of whose prompts were trained on or certified with. A decided verdict that this
much larger sample contradicts counts as an error. usage: toyworld_seeds.py [--seeds 3] [--output runs/seeds]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from common import Figure, Recorder
from rich.console import Console
from rich.table import Table

from dpeer.config import Config
from dpeer.data.schema import DataSet
from dpeer.data.tokenize import TokenizedSet, tokenize
from dpeer.launcher import demo
from dpeer.model.lm import load_causal_lm, load_tokenizer
from dpeer.model.tree_lm import TreeLM
from dpeer.objective.certificate import certify
from dpeer.objective.constraints import build_constraints
from dpeer.toyworld import world as toyworld
from dpeer.training.heldout import heldout_edges
from dpeer.training.scoring import score
from dpeer.training.world import World

FRESH = 2500


def fresh_records(root: Path, seed: int) -> DataSet:
    """Records whose prompts are in neither the training nor the held-out file."""
    used = {json.loads(line)["prompt"] for f in ("train", "test") for line in (root / "world" / f"{f}.jsonl").open()}
    records = toyworld.generate(FRESH, seed + 1000).records
    return DataSet(tuple(sorted(toyworld.DIMENSIONS)), tuple(r for r in records if r.prompt[0].content not in used))


def logprobs(model: Path, data: TokenizedSet) -> list[list[float]]:
    import torch

    lm = TreeLM(load_causal_lm(str(model), "fp32").eval())
    found = score(lm, data.trees, World(0, 1, torch.device("cpu")), 16384)
    return [found[i] for i in range(len(data.trees))]


def check(root: Path, seed: int, table: Table) -> tuple[bool, int, int]:
    """(worst dimension holds against pooled, decided verdicts, wrong verdicts) of one seed's demo."""
    base = root / "base"
    data = tokenize(fresh_records(root, seed), load_tokenizer(str(base)), 512, "drop")
    reference = logprobs(base, data)
    worst, decided, wrong = {}, 0, 0
    for arm in demo.ARMS:
        run = root / arm.run
        config = Config.model_validate(json.loads((run / "manifest.json").read_text())["config"])
        constraints = build_constraints(config.objective.constraint, data.dimensions)
        edges = heldout_edges(config, data, logprobs(run / "export", data), reference)
        truth = {v.name: v for v in certify(edges, constraints, config.objective)}
        shares = toyworld.share([json.loads(line)["reply"] for line in (run / "replies.jsonl").open()])
        worst[arm.run] = min(shares.good.values())
        marks = []
        for claim in json.loads((run / "certificate.json").read_text())["constraints"]:
            actual = truth[claim["name"]]
            if claim["verdict"] != "undecided":
                decided += 1
                bad = (claim["verdict"] == "satisfied") != (actual.estimate <= actual.tolerance)
                wrong += bad
                marks.append(f"{claim['name']} {claim['verdict']}{' WRONG' if bad else ''} ({actual.estimate:.3f})")
        numbers = (f"{x:.2f}" for x in (worst[arm.run], shares.mean, shares.fluency))
        table.add_row(str(seed), arm.run, *numbers, "; ".join(marks))
    return worst["lagrangian"] >= worst["pooled"], decided, wrong


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--output", type=Path, default=Path("runs/seeds"))
    recorder = Recorder(arguments)
    given = arguments.parse_args()
    table = Table("seed", "arm", "worst", "mean", "fluent", "decided verdicts (loss on fresh records)", show_lines=True)
    results = []
    for seed in range(given.seeds):
        root = given.output / str(seed)
        if code := demo.run(root, seed):
            return code
        results.append(check(root, seed, table))
    Console(width=150).print(table)
    decided, wrong = (sum(r[i] for r in results) for i in (1, 2))
    holds = sum(r[0] for r in results)
    print(f"worst dimension, Lagrangian >= pooled: {holds} of {given.seeds} seeds")
    print(f"decided verdicts contradicted by fresh records: {wrong} of {decided}")
    figures = [
        Figure("worst dimension at least as good as with pooled DPO", holds / given.seeds, "share", "higher", 1),
        Figure("decided verdicts that fresh records contradict", wrong, "count", "lower", 0),
        Figure("decided verdicts", decided, "verdicts"),
    ]
    recorder.write(given, figures)
    return int(holds < given.seeds or wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
