"""The second half of `dpeer demo`: the trained models answer, three judges of known severity rate, abilities follow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.table import Table

from dpeer.eval.config import EvalConfig
from dpeer.eval.irt.result import Result
from dpeer.eval.irt.types import Options
from dpeer.eval.toy_judges import READING_STEPS, SEVERITIES, TUNING_STEPS
from dpeer.integrity import stamped, write_state
from dpeer.launcher.cluster import connect
from dpeer.launcher.demo_configs import evaluation_config

SAMPLED = 800
"""Replies of the base model among the judges' training texts."""
PAIRS = 2200


class Evaluated(NamedTuple):
    """`realised`: severity of each judge in logits by the oracle's reading of what it rated."""

    result: Result
    page: Path
    realised: dict[str, float]


def evaluate(root: Path, seed: int, console: Console) -> Evaluated:
    """Judges, responses, ratings, fit and page; whatever is there already is kept."""
    from dpeer.eval.generate import generate
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.tables import tabulate
    from dpeer.eval.judge import judge
    from dpeer.launcher.fitting import run_fit

    config = evaluation_config(root, seed)
    prepare_judges(root, seed, console)
    link = partial(connect, config.farm.address)
    generate(config, link, console=console)
    ratings = judge(config, link, console=console)
    realised, folder = _realised(config, ratings), config.folder / "irt"
    options = Options(seed=seed + 1)
    made = {"ratings": sha256(ratings.read_bytes()).hexdigest(), "options": asdict(options)}
    stamp = folder / "made.json"
    if stamped(stamp, made):
        return Evaluated(tabulate(load(folder), "base"), folder / "report.html", realised)
    result, page = run_fit(ratings, folder, options, "base", (), console)
    write_state(stamp, made)
    return Evaluated(result, page, realised)


def _realised(config: EvalConfig, ratings: Path) -> dict[str, float]:
    from dpeer.eval.realised import expected_counts, severities
    from dpeer.eval.responses import responses_folder
    from dpeer.eval.store.parts import read_table
    from dpeer.eval.store.schema import RESPONSES

    names = list(SEVERITIES)
    counts = expected_counts(pd.read_parquet(ratings), read_table(responses_folder(config), RESPONSES), names)
    return dict(zip(names, map(float, severities(counts)), strict=True))


def prepare_judges(root: Path, seed: int, console: Console) -> None:
    """Train the three judges once per seed and base model."""
    from dpeer.eval.toy_judges import train_judges, training_texts
    from dpeer.model.identity import model_hash
    from dpeer.toyworld.model import sample

    folder, stamp = root / "judges", root / "judges.json"
    made = {"seed": seed, "base": model_hash(str(root / "base")), "steps": [READING_STEPS, TUNING_STEPS]}
    if stamped(stamp, made):
        return
    shutil.rmtree(folder, ignore_errors=True)
    rows = [json.loads(line) for line in (root / "world" / "pretrain.jsonl").open(encoding="utf-8")]
    pairs = [(row["prompt"], row["response"]) for row in rows[:PAIRS]]
    prompts = [prompt for prompt, _ in pairs[:SAMPLED]]
    texts = training_texts(pairs, list(zip(prompts, sample(root / "base", prompts, seed), strict=True)), seed)
    with Progress("{task.description}", BarColumn(20), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("judges", total=READING_STEPS + TUNING_STEPS * len(SEVERITIES))
        train_judges(root / "base", texts, folder, seed, progress=lambda name, step: bar.advance(task))
    write_state(stamp, made)


def show(
    console: Console, result: Result, realised: Mapping[str, float], names: dict[str, str], dimensions: Sequence[str]
) -> None:
    """Abilities per model, severities as planted, realised and recovered, and whether the fit may be trusted.

    `realised` has the severity of each judge, `names` maps a row's title to the model's name in the ratings.
    """
    table = Table(title="Ability in logits by the judges' ratings (± half of the 95 % interval)", title_justify="left")
    table.add_column("model", no_wrap=True)
    for d in dimensions:
        table.add_column(d, justify="right", no_wrap=True)
    rows = result.tables["ability"].set_index(["model", "dimension"])
    for title, name in names.items():
        cells = [rows.loc[(name, d)] for d in dimensions]
        table.add_row(title, *(f"{c.ability:+.2f} ±{(c.ability_high - c.ability_low) / 2:.2f}" for c in cells))
    console.print(table)
    table = Table(title="Severity of the judges in logits", title_justify="left")
    for column in ("judge", "planted", "realised", "recovered", "95 % interval"):
        table.add_column(column, justify="left" if column == "judge" else "right")
    judges = result.tables["judges"].set_index("judge")
    for name, planted in SEVERITIES.items():
        row = judges.loc[name]
        interval = f"{row.severity_low:+.2f} to {row.severity_high:+.2f}"
        table.add_row(name, *(f"{x:+.2f}" for x in (planted, realised[name], row.severity)), interval)
    console.print(table)
    reasons = "; ".join(result.gate["reasons"])
    console.print(
        "Diagnostics of the fit: " + (f"no claim can be made: {reasons}" if reasons else "all green"), soft_wrap=True
    )
