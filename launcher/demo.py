"""`dpeer demo`: the whole training half on a laptop, in a world whose truth is known.

Four ways to train the same base model (golden likelihood, pooled DPO, uniform weights, Lagrangian) run one after the
other in the same worker groups; the oracle then reads what each model says. Finished parts are skipped on a second run.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.table import Table

from dpeer.config import Config
from dpeer.config_io import load_config, resolved
from dpeer.data import toyworld
from dpeer.report.comparison import ArmRow, write_comparison
from dpeer.training.run_dir import RunDir, write_json
from launcher.cluster import connect
from launcher.recipe import recipe_path
from launcher.train import Groups, train

UNENFORCED = "objective.constraint.enforce=false"


@dataclass(frozen=True, slots=True)
class Arm:
    title: str
    run: str
    changes: tuple[str, ...]


ARMS = (
    Arm(
        "SFT on golden",
        "sft",
        ("objective.kind=sft", UNENFORCED, "training.steps=60", "training.records_per_step=16", "training.optimizer.lr=2e-3"),
    ),
    Arm("pooled DPO", "pooled", ("objective.primary=pooled", UNENFORCED)),
    Arm("uniform (λ = 0)", "uniform", (UNENFORCED,)),
    Arm("Lagrangian", "lagrangian", ()),
)


def run(root: Path = Path("runs/demo"), seed: int = 0) -> int:
    """Run what is not yet done, print the table, write demo.html; returns the exit code of the first arm that stopped."""
    console, began, cpu = Console(highlight=False), time.monotonic(), _cpu_seconds()
    arms = {arm: arm_config(arm, root, seed) for arm in ARMS}
    base = prepare_world(root, seed, console)
    todo = [arm for arm, config in arms.items() if not _up_to_date(config)]
    if todo:
        with connect(arms[todo[0]].cluster):
            groups = Groups(arms[todo[0]])
            try:
                for arm in todo:
                    console.rule(f"[bold]{arm.title}", align="left")
                    if code := train(arms[arm], groups, resume=RunDir(arms[arm].run_dir).manifest.exists()):
                        return code
            finally:
                groups.close()
    rows = [_row("base", base, None, seed)]
    rows += [_row(arm.title, config.run_dir / "export", config.run_dir, seed) for arm, config in arms.items()]
    page = write_comparison(rows, root / "demo.html")
    show(console, rows)
    last = arms[ARMS[-1]].run_dir
    for label, path in {
        "model": last / "export",
        "ledger": last / "ledger.jsonl",
        "certificate": last / "certificate.json",
        "report": last / "report.html",
        "comparison": page,
    }.items():
        console.print(f"{label:12}{path}", soft_wrap=True)
    console.print(f"{time.monotonic() - began:.0f} s on the clock, {_cpu_seconds() - cpu:.0f} CPU seconds")
    return 0


def arm_config(arm: Arm, root: Path, seed: int) -> Config:
    places = (
        f"output_dir={root}",
        f"model.path={root / 'base'}",
        f"data.train={root / 'world' / 'train.jsonl'}",
        f"data.heldout={root / 'world' / 'test.jsonl'}",
    )
    return load_config(recipe_path("demo"), (f"name={arm.run}", f"seed={seed}", *places, *arm.changes))


def prepare_world(root: Path, seed: int, console: Console) -> Path:
    """The toy world's records and the base model, made once per seed."""
    from dpeer.model.toy import build_base

    base, stamp = root / "base", root / "world.json"
    if base.exists() and stamp.exists() and json.loads(stamp.read_text()) == {"seed": seed}:
        return base
    if root.exists():
        console.print(f"{root} holds another demo; starting over.")
        shutil.rmtree(root)
    world = toyworld.write_world(root / "world", seed)
    with Progress("{task.description}", BarColumn(20), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("base model", total=600)
        build_base(base, world.pretrain, seed, 600, lambda step, loss: progress.update(task, completed=step + 1))
    write_json(stamp, {"seed": seed})
    return base


def _up_to_date(config: Config) -> bool:
    """True for a finished run of the same config. A run of another config is removed: the demo's folder is its own."""
    files = RunDir(config.run_dir)
    if files.manifest.exists():
        if json.loads(files.manifest.read_text())["config"] == resolved(config):
            return files.finished
        shutil.rmtree(files.path)
    return False


def _row(title: str, model: Path, run_dir: Path | None, seed: int) -> ArmRow:
    """What the oracle reads in one model's sampled replies to fresh prompts; kept beside the model."""
    from dpeer.model.toy import sample

    kept = (run_dir or model) / "replies.jsonl"
    prompts = [json.loads(line)["prompt"] for line in (model.parents[0 if run_dir is None else 1] / "world/prompts.jsonl").open()]
    if not kept.exists():
        replies = sample(model, prompts, seed)
        kept.write_text("".join(json.dumps({"prompt": p, "reply": r}) + "\n" for p, r in zip(prompts, replies, strict=True)))
    replies = [json.loads(line)["reply"] for line in kept.open()]
    read = toyworld.share(replies)
    verdicts: list[Any] = []
    if run_dir:
        verdicts = [c["verdict"] for c in json.loads((run_dir / "certificate.json").read_text())["constraints"]]
    return ArmRow(
        name=title,
        shares=read.good,
        n=len(replies),
        fluency=read.fluency,
        satisfied=verdicts.count("satisfied") if verdicts else None,
        constraints=len(verdicts) or None,
        report=run_dir / "report.html" if run_dir else None,
    )


def show(console: Console, rows: list[ArmRow]) -> None:
    dimensions = list(rows[0].shares)
    table = Table(title="Share of good behaviour per dimension (oracle, fresh prompts)", title_justify="left")
    table.add_column("model")
    for name in (*dimensions, "worst", "mean", "fluency", "tolerance met"):
        table.add_column(name, justify="right")
    for row in rows:
        shares = [row.shares[d] for d in dimensions]
        met = f"{row.satisfied} of {row.constraints}" if row.constraints else "-"
        numbers = (*shares, min(shares), sum(shares) / len(shares), row.fluency)
        table.add_row(row.name, *(f"{x:.2f}" for x in numbers), met)
    console.print(table)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
