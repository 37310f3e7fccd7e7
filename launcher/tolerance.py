"""`dpeer tolerance`: which tolerance can be had, what it costs, and how many records would prove it.

Pilots of the recipe show what is reachable: equal weights, the worst dimension first (form `worst`), and one pilot that
favours each dimension. Levels are read from the dual split, on which no pilot trains; the certificate's records keep
their worth.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dpeer import chain
from dpeer.config import Config
from dpeer.config_io import resolved_yaml, setting_tree
from dpeer.errors import CheckpointError, ConfigError
from dpeer.escape import markup
from dpeer.files import write_text
from dpeer.launcher.recipe import recipe_path, training_config
from dpeer.objective.bounds import records_for, room
from dpeer.report.text import UNKNOWN, number
from dpeer.report.tolerance import Reach, write_page
from dpeer.training.run_dir import RunDir, same_recipe

LATE = 0.2
"""Share of the last steps over which a level is averaged."""
FAVOUR = 5.0
"""Weight of a favoured dimension, the others having 1."""
EQUAL, WORST = "equal weights", "worst first"


@dataclass(frozen=True, slots=True)
class Levels:
    """Where a pilot ended, by dimension: mean loss on the dual split, its standard error, and the standard deviation of
    one record's part in such a mean."""

    loss: dict[str, float]
    se: dict[str, float]
    spread: dict[str, float]


def explore(config: Config, steps: int | None) -> tuple[list[Reach], Path]:
    """Run the pilots that are not yet done and write the page; returns what was found, by dimension, and the page."""
    from dpeer.launcher.cluster import connect
    from dpeer.launcher.group import Groups
    from dpeer.launcher.train import train
    from dpeer.training.prepare import prepare

    if config.objective.constraint.form not in ("threshold", "worst"):
        raise ConfigError(
            f"objective.constraint.form is {config.objective.constraint.form}: levels of the loss are tolerances of "
            "the forms threshold and worst only. For another form use a sweep over tolerances (dpeer sweep)."
        )
    if config.objective.kind != "preference":
        raise ConfigError(
            "objective.kind is sft: without preferences there is no loss per dimension to hold to a level."
        )
    if config.data.dual == "none":
        raise ConfigError("data.dual is none: levels are read from records on which no pilot trains. Give data.dual.")
    prepared = prepare(config)
    dimensions = prepared.train.dimensions
    arms = pilots(config, dimensions, steps)
    todo = {name: arm for name, arm in arms.items() if not _done(arm)}
    if todo:
        with connect(config.cluster.address):
            groups = Groups(config)
            try:
                for name, arm in todo.items():
                    print(f"pilot {len(arms) - len(todo) + list(todo).index(name) + 1} of {len(arms)}: {name}")
                    if code := train(arm, groups, resume=RunDir(arm.run_dir).manifest.exists()):
                        raise SystemExit(code)
            finally:
                groups.close()
    found = {name: levels(RunDir(arm.run_dir).ledger) for name, arm in arms.items()}
    proof = prepared.proof
    records = {d: int(proof[i]) if proof is not None else 0 for i, d in enumerate(dimensions)}
    reached = reach(found, records, config.objective.certificate.bound)
    return reached, write_page(reached, config.output_dir / f"{config.name}.tolerance" / "tolerance.html", config.name)


def pilots(config: Config, dimensions: Sequence[str], steps: int | None) -> dict[str, Config]:
    """The recipe with other weights, by name; their runs lie in output_dir/NAME.tolerance/."""
    objective = config.objective
    constraint = objective.constraint.model_copy(update={"tolerance": math.inf, "enforce": False})
    free = objective.model_copy(update={"constraint": constraint, "primary": "uniform"})
    worst = objective.constraint.model_copy(update={"form": "worst", "tolerance": 0.0, "enforce": True})
    choices = {EQUAL: free, WORST: objective.model_copy(update={"constraint": worst})}
    for d in dimensions if len(dimensions) > 1 else ():
        choices[f"favouring {d}"] = free.model_copy(
            update={"primary": {other: FAVOUR if other == d else 1.0 for other in dimensions}}
        )
    training = config.training.model_copy(update={"stop_when": "never", "patience": None, "keep": "last"})
    if steps is not None:
        training = training.model_copy(update={"steps": steps, "epochs": None})
    folder = config.output_dir / f"{config.name}.tolerance"
    names = {EQUAL: "equal", WORST: "worst"} | {f"favouring {d}": f"favour-{i}" for i, d in enumerate(dimensions)}
    return {
        name: config.model_copy(
            update={"name": names[name], "output_dir": folder, "objective": chosen, "training": training}
        )
        for name, chosen in choices.items()
    }


def _done(config: Config) -> bool:
    """Finished with this config; a pilot of another config is removed, as the folder is this command's own."""
    files = RunDir(config.run_dir)
    if files.manifest.exists() and not same_recipe(files.read_manifest()["config"], config):
        shutil.rmtree(files.path)
    return files.finished


def levels(ledger: Path) -> Levels:
    """From the last steps of a ledger: each step's batch of the dual split is fresh to the policy."""
    lines, files = ledger.read_text(errors="replace").splitlines(), RunDir(ledger.parent)
    manifest = files.read_manifest() if files.manifest.exists() else {}
    damaged = next(chain.broken(lines, manifest.get("chain")), None)
    if damaged or not chain.complete(lines, manifest):
        what = f"line {damaged} has changed since it was written" if damaged else "its last lines are missing"
        raise CheckpointError(f"{ledger}: {what}. Remove the folder {ledger.parent}; the pilot is trained again.")
    split = manifest.get("data", {}).get("dual", {}).get("edges") or {}
    rows = [json.loads(line)["dimensions"] for line in lines]
    tail = rows[-max(1, round(LATE * len(rows))) :]
    loss, se, spread = {}, {}, {}
    for d in tail[-1]:
        seen = [row[d]["dual"] for row in tail if row[d]["dual"]["edges"]]
        edges = sum(row["edges"] for row in seen)
        if not edges:
            loss[d] = se[d] = spread[d] = math.nan
            continue
        loss[d] = sum(row["loss"] * row["edges"] for row in seen) / edges
        known = [(row["edges"], row["loss_se"] ** 2) for row in seen if row["loss_se"] is not None]
        total = sum(n for n, _ in known)
        passes = max(1.0, edges / (split.get(d) or edges))  # a record that is seen again says nothing new
        se[d] = math.sqrt(passes * sum(n * n * square for n, square in known)) / total if known else math.nan
        spread[d] = math.sqrt(sum(n * square for n, square in known) / len(known)) if known else math.nan
    return Levels(loss, se, spread)


def reach(found: Mapping[str, Levels], records: Mapping[str, int], bound: float) -> list[Reach]:
    """What each dimension can have.

    The suggested tolerance has two parts. The level to aim at: half way between the pilot of equal weights and the one
    that serves the worst dimension first, which can be had by all at once if losses are convex along the path from one
    to the other; for a dimension that equal weights neglect, the lower level of the second pilot. And the room that a
    proof on `records` needs. price: loss that the other dimensions give up, together, per unit that the favoured one
    gains over equal weights.
    """
    equal, worst = found[EQUAL], found[WORST]
    result = []
    for d, level in equal.loss.items():
        base = min(worst.loss[d], (worst.loss[d] + level) / 2)
        favoured = found.get(f"favouring {d}", equal)
        gained = level - favoured.loss[d]
        given = sum(favoured.loss[o] - equal.loss[o] for o in equal.loss if o != d)
        allowed = max(0.1 * base, 0.02)
        variance = worst.spread[d] ** 2
        result.append(
            Reach(
                dimension=d,
                equal=level,
                worst=worst.loss[d],
                favoured=favoured.loss[d],
                error=worst.se[d],
                price=given / gained if gained > 2 * equal.se[d] else math.nan,
                suggested=_rounded(base + (room(variance, records[d], bound) if records[d] else worst.se[d])),
                records=records[d],
                needed=records_for(allowed, variance, bound) if variance > 0 else None,
            )
        )
    return result


def _rounded(value: float) -> float:
    """Up to two decimals, never below the value."""
    return math.ceil(100 * value - 1e-9) / 100


def apply(path: Path, recipe: str, overrides: Sequence[str], reached: Sequence[Reach]) -> None:
    """Write the recipe with its `--set` settings and the suggested tolerances, under a name of its own.

    ConfigError: the file exists.
    """
    import yaml

    if path.exists():
        raise ConfigError(f"--apply {path}: the file exists; give a new name")
    tolerance = json.dumps({r.dimension: r.suggested for r in reached})
    name = json.dumps(f"{training_config(recipe, overrides).name}-held")
    settings = [*overrides, f"name={name}", f"objective.constraint.tolerance={tolerance}"]
    wanted = training_config(recipe, settings)
    file = recipe_path(recipe)
    tree = {"extends": str(file.resolve()) if file == Path(recipe) else recipe, **setting_tree(settings)}
    write_text(path, yaml.safe_dump(tree, sort_keys=False))
    if training_config(str(path)) != wanted:  # --set replaces a mapping, a recipe that extends merges it
        write_text(path, resolved_yaml(wanted))


def show(console: Console, reached: Sequence[Reach]) -> None:
    table = Table(title="Mean loss per pair on records that no pilot trained on", title_justify="left")
    table.add_column("dimension", no_wrap=True)
    for name in (EQUAL, WORST, "best reachable", "price", "suggested", "records", "needed to prove 10 % above"):
        table.add_column(name, justify="right")
    for r in reached:
        numbers = (f"{r.equal:.3f}", f"{r.worst:.3f} ± {r.error:.3f}", f"{r.favoured:.3f}")
        price = "free" if r.price <= 0 else number(r.price, 2)
        table.add_row(
            markup(r.dimension), *numbers, price, f"{r.suggested:.2f}", f"{r.records}", f"{r.needed or UNKNOWN}"
        )
    console.print(table)
