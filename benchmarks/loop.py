"""Does a loop of two rounds raise the weakest ability? On the toy world, whose truth is known, for several seeds; the
first round is plain DPO without tolerances, so that the rise is over a round that neglects a dimension.

usage: python benchmarks/loop.py [--seeds 0 1 2 3 4] [--folder runs/loop_seeds] [--json FILE]

Each seed has a world, a base model and three judges of its own, and runs the shipped loop `toy` from the command line;
what is done is skipped. Shown are the weakest ability of each round in the fit that has both, and what an oracle reads
in the same responses. Exit code 1 when fewer than 4 of 5 seeds gained.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import Figure, Recorder, machine, print_table
from rich.console import Console

NEEDED = 0.8
"""Share of the seeds in which the weakest ability has to rise."""


def prepare(root: Path, seed: int) -> Path:
    """World, base model, judges and the loop file of a seed; returns the latter."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch

    from dpeer.launcher.demo import prepare_world
    from dpeer.launcher.demo_evaluation import prepare_judges
    from dpeer.launcher.loop.spec import LOOPS

    torch.set_num_threads(1)
    console = Console(highlight=False)
    prepare_world(root, seed, console)
    prepare_judges(root, seed, console)
    tree = yaml.safe_load((LOOPS / "toy.yaml").read_text())
    world = root.resolve() / "world"
    tree["changes"] |= {
        "output_dir": str(root.resolve() / "rounds"),
        "seed": seed,
        "model": {"path": str(root.resolve() / "base")},
        "data": {"train": str(world / "train.jsonl"), "heldout": str(world / "test.jsonl")},
    }
    judges = [{"name": p.name, "path": str(p)} for p in sorted((root.resolve() / "judges").iterdir())]
    tree["judging"]["prompts"] |= {"path": str(world / "prompts.jsonl")}
    tree["judging"] |= {"seed": seed, "judges": judges}
    (root / "loop.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return root / "loop.yaml"


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished loop's last fit says of its two rounds, and what the oracle reads."""
    from dpeer.eval.irt.fit import load
    from dpeer.eval.store.parts import read_table
    from dpeer.eval.store.schema import RESPONSES
    from dpeer.launcher.loop.run import LoopFolder, abilities
    from dpeer.toyworld.world import share

    rows = LoopFolder(folder).state["rounds"]
    last = len(rows)
    posterior = load(LoopFolder(folder).fit(last))
    dimensions = posterior.ratings.dimensions
    draws = [abilities(posterior, f"round-{n}", dimensions) for n in (1, last)]
    worst = [dimensions[int(d.mean(axis=0).argmin())] for d in draws]
    gain = draws[1].min(axis=1) - draws[0].min(axis=1)
    responses = read_table(folder / "evaluation" / "responses", RESPONSES)
    read = [share(responses.loc[responses["model"] == f"round-{n}", "response"].tolist()) for n in (1, last)]
    return {
        "rounds": last,
        "worst": worst,
        "ability": [float(d.min(axis=1).mean()) for d in draws],
        "gain": float(gain.mean()),
        "interval": [float(x) for x in np.quantile(gain, [0.025, 0.975])],
        "p": float((gain > 0).mean()),
        "oracle": [min(r.good.values()) for r in read],
        "fluency": [r.fluency for r in read],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, default=Path("runs/loop_seeds"))
    parser.add_argument("--json", type=Path)
    recorder = Recorder(parser)
    given = parser.parse_args()
    found: dict[int, dict[str, Any]] = {}
    for seed in given.seeds:
        root = given.folder / f"seed-{seed}"
        path = prepare(root, seed)
        subprocess.run([sys.executable, "-m", "dpeer.launcher.cli", "loop", str(path)], check=True)
        found[seed] = outcome(root / "rounds" / "loop")
    rose = sum(row["gain"] > 0 for row in found.values())
    clear = sum(row["interval"][0] > 0 for row in found.values())
    print(machine())
    if given.json:
        given.json.write_text(json.dumps({"seeds": found, "rose": rose, "clear": clear}, indent=1))
    print_table(
        "Two rounds of the loop on the toy world",
        ("seed", "weakest", "ability", "gain, 95 %", "P(gain)", "worst share (oracle)", "fluent"),
        [
            (
                f"{seed}",
                " > ".join(row["worst"]),
                " > ".join(f"{a:+.2f}" for a in row["ability"]),
                f"{row['gain']:+.2f} [{row['interval'][0]:.2f}, {row['interval'][1]:.2f}]",
                f"{row['p']:.3f}",
                " > ".join(f"{s:.2f}" for s in row["oracle"]),
                " > ".join(f"{s:.2f}" for s in row["fluency"]),
            )
            for seed, row in found.items()
        ],
        "abilities in logits, from one fit of all rounds",
    )
    print(f"weakest ability up in {rose} of {len(found)} seeds, clearly (95 %) in {clear}")
    figures = [
        Figure("the weakest ability rises", rose / len(found), "share", "higher", NEEDED),
        Figure("and clearly (95 %)", clear / len(found), "share", "higher"),
        Figure("seeds", len(found), "seeds"),
    ]
    recorder.write(given, figures)
    return 0 if rose >= NEEDED * len(found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
