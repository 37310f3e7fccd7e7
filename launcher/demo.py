"""`dpeer demo`: the whole job on a laptop, in a world whose truth is known.

Four ways to train the same base model (golden likelihood, pooled DPO, uniform weights, Lagrangian) run one after the
other in the same worker groups; the oracle then reads what each model says. Finished parts are skipped on a second run.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import ray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.table import Table

from dpeer.config import Config
from dpeer.errors import ConfigError
from dpeer.integrity import read_state, stamped, write_state
from dpeer.launcher import demo_evaluation
from dpeer.launcher.cluster import connect
from dpeer.launcher.commands.open import command
from dpeer.launcher.demo_configs import ARMS, HELDOUT_RECORDS, TRAIN_RECORDS, UNIFORM, arm_config
from dpeer.launcher.group import Groups, wanted
from dpeer.launcher.replies import replies
from dpeer.launcher.train import train
from dpeer.report.comparison import ArmRow, write_comparison
from dpeer.report.index import write_index
from dpeer.report.run import Certificate
from dpeer.toyworld import world as toyworld
from dpeer.training.run_dir import RunDir, same_recipe

MARKS = {"satisfied": "✓", "violated": "✗", "undecided": "?", "": " "}


def run(root: Path = Path("runs/demo"), seed: int = 0) -> int:
    """Run what is not yet done, print the table, write demo.html; returns 0 or the code of the arm that stopped."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # of this process, which only samples; workers set their own
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)  # models this small: more threads only wait for each other
    logging.disable_progress_bar()
    console, began = Console(highlight=False), time.monotonic()
    arms = {arm: arm_config(arm, root, seed) for arm in ARMS}
    base = prepare_world(root, seed, console)
    todo = [arm for arm, config in arms.items() if not _up_to_date(config)]
    if todo:
        with connect(arms[todo[0]].cluster.address):
            gpus = ray.cluster_resources().get("GPU", 0)
            arms = {arm: fitted(config, gpus) for arm, config in arms.items()}
            groups = Groups(arms[todo[0]])
            try:
                for arm in todo:
                    console.rule(f"[bold]{arm.title}", align="left")
                    if code := train(arms[arm], groups, resume=RunDir(arms[arm].run_dir).manifest.exists()):
                        return code
            finally:
                groups.close()
    prompts = root / "world" / "prompts.jsonl"
    certificates = {arm.title: _certificate(config) for arm, config in arms.items()}
    rows = [_row("base", replies(base, prompts, base, seed))]
    for arm, config in arms.items():
        answers = replies(config.run_dir / "export", prompts, config.run_dir, seed)
        rows.append(_row(arm.title, answers, certificates[arm.title], config.run_dir / "report.html"))
    page = write_comparison(rows, root / "demo.html", baseline=UNIFORM, subject=ARMS[-1].title)
    console.rule("[bold]judges and abilities", align="left")
    judged = demo_evaluation.evaluate(root, seed, console)
    show(console, rows, {name: _verdicts(c) for name, c in certificates.items()})
    models = {"base": "base"} | {arm.title: arm.run for arm in ARMS}
    demo_evaluation.show(console, judged.result, judged.realised, models, list(rows[0].shares))
    last = arms[ARMS[-1]].run_dir
    for label, path in {
        "model": last / "export",
        "ledger": last / "ledger.jsonl",
        "certificate": last / "certificate.json",
        "report": last / "report.html",
        "comparison": page,
        "abilities": judged.page,
    }.items():
        console.print(f"{label:12}{path}", soft_wrap=True)
    console.print(f"{'time':12}{time.monotonic() - began:.0f} s")
    index, _ = write_index(root)
    console.print(f"{'everything':12}{index}, or: {command()} open {root}", soft_wrap=True)
    return 0


def fitted(config: Config, gpus: float) -> Config:
    """On a machine with fewer GPUs than workers: one rank, which also scores the reference, before training."""
    if not 0 < gpus < sum(wanted(config).values()):
        return config
    few = config.cluster.model_copy(update={"policy_workers": 1, "reference": "cache"})
    return config.model_copy(update={"cluster": few})


def prepare_world(root: Path, seed: int, console: Console) -> Path:
    """The toy world's records and the base model, made once per seed."""
    from dpeer.toyworld.model import build_base

    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
        raise ConfigError(f"{root}: no folder can be made there ({reason}); give --output another one") from None
    base, stamp = root / "base", root / "world.json"
    made = {"seed": seed, "train": TRAIN_RECORDS, "heldout": HELDOUT_RECORDS}
    if base.exists() and stamped(stamp, made):
        return base
    clear(root, console)
    world = toyworld.write_world(root / "world", seed, TRAIN_RECORDS, HELDOUT_RECORDS)
    with Progress("{task.description}", BarColumn(20), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("base model", total=600)
        build_base(base, world.pretrain, seed, 600, lambda step, loss: progress.update(task, completed=step + 1))
    write_state(stamp, made)
    return base


def clear(root: Path, console: Console) -> None:
    """Remove what an earlier demo has made in its folder. Raises ConfigError for a folder that is no demo's."""
    own = [root / name for name in ("world", "base", "judges", "judges.json", "evaluation", "demo.html", "index.html")]
    own += [root / arm.run for arm in ARMS]
    stale = [path for path in own if path.exists()]
    stamp = root / "world.json"
    others = sorted(path.name for path in root.iterdir() if path not in own) if root.is_dir() else []
    if others and not stamp.exists():
        raise ConfigError(
            f"{root} holds {others[0]} and is no folder of a demo, which would remove things there; give --output a "
            "new or empty folder"
        )
    if stale:
        console.print(f"{root} holds another demo; starting over.")
    for path in (stamp, *stale):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _up_to_date(config: Config) -> bool:
    """True for a finished run of the same config. A run of another config is removed: the demo's folder is its own."""
    files = RunDir(config.run_dir)
    if files.manifest.exists():
        if same_recipe(files.read_manifest()["config"], config):
            return files.finished
        shutil.rmtree(files.path)
    return False


def _certificate(config: Config) -> Certificate:
    return Certificate.model_validate(
        read_state(RunDir(config.run_dir).certificate, "Remove it and start the demo again.")
    )


def _verdicts(certificate: Certificate) -> dict[str, str]:
    return {c.name: c.verdict for c in certificate.constraints}


def _row(title: str, replies: list[str], certificate: Certificate | None = None, report: Path | None = None) -> ArmRow:
    """What the oracle reads in a model's replies, beside what its certificate says."""
    read, readings = toyworld.share(replies), [toyworld.oracle(reply) for reply in replies]
    given = list(_verdicts(certificate).values()) if certificate else []
    return ArmRow(
        name=title,
        shares=read.good,
        n=len(replies),
        fluency=read.fluency,
        satisfied=given.count("satisfied") if given else None,
        constraints=len(given) or None,
        report=report,
        note=", ".join(f"{n} {v}" for v in ("violated", "undecided") if (n := given.count(v))),
        selection=certificate.selection.overall if certificate and certificate.selection else None,
        good={d: tuple(r[d] == "good" for r in readings) for d in read.good},
        fluent=tuple("none" not in r.values() for r in readings),
    )


def show(console: Console, rows: list[ArmRow], verdicts: dict[str, dict[str, str]]) -> None:
    dimensions = list(rows[0].shares)
    title = "Share of good behaviour per dimension (oracle, fresh prompts)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for name in (*dimensions, "worst", "mean", "fluent", "golden"):
        table.add_column(name, justify="right")
    for row in rows:
        by_dimension = verdicts.get(row.name, {})
        cells = [f"{row.shares[d]:.2f} {MARKS[by_dimension.get(d, '')]}" for d in dimensions]
        overall = (row.shares[row.worst], row.mean, row.fluency)
        selection = f"{row.selection.rate:.2f}" if row.selection else ""
        table.add_row(row.name, *cells, *(f"{x:.2f}" for x in overall), selection)
    console.print(table)
    console.print("tolerance on held-out records: ✓ met  ✗ violated  ? undecided at 95 %")
    console.print("golden: share of held-out records whose golden answer ranks first\n")
