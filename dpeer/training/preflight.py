"""Checks before a run that belong to the method. Each returns what it found in words, or raises a DpeerError."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet
from dpeer.errors import CheckpointError, ClusterError
from dpeer.integrity import read_state
from dpeer.objective.certificate import provable
from dpeer.objective.constraints import build_constraints, certified
from dpeer.objective.controllers import CONTROLLERS
from dpeer.objective.preference import edge_loss
from dpeer.training.checkpoint import refuse_other_run
from dpeer.training.heldout import heldout_edges
from dpeer.training.policy import allowance
from dpeer.training.prepare import Prepared
from dpeer.training.reference import cache_path, read_cache
from dpeer.training.run_dir import RunDir
from dpeer.training.together import refuse_misfits, way_back

Rows = Sequence[Sequence[float]]  # log-probability of each response, record by record


def objective(config: Config, prepared: Prepared) -> str:
    """Tolerances and weights name the data's dimensions."""
    found = prepared.lagrangian(config)
    return f"{len(found.constraints.names)} constraints over {', '.join(found.dimensions)}; {found.steps} steps"


def out_of_reach(config: Config, prepared: Prepared) -> list[str]:
    """What cannot happen in this run whatever the model learns: a proof, a constraint that ever binds, a cap."""
    objective, dimensions = config.objective, prepared.train.dimensions
    constraints = build_constraints(objective.constraint, dimensions)
    if objective.kind == "sft" or not objective.constraint.enforce or not constraints.form.bounds_loss:
        return []
    lines = []
    proof = prepared.proof
    start = float(edge_loss(torch.zeros(1, dtype=torch.float64), objective))
    for d, asked in zip(dimensions, certified(constraints, objective).bounds.tolist(), strict=True):
        records = 0 if proof is None else int(proof[dimensions.index(d)])
        if records and asked < (least := provable(records, objective)):
            lines.append(
                f"{d}: {records} held-out records cannot prove {asked:g}, not even of a model that has no loss; they "
                f"can prove {least:.2g} at best"
            )
    for d, asked in zip(dimensions, constraints.tolerances.tolist(), strict=True):
        if start <= asked < math.inf and not constraints.form.simplex:
            lines.append(f"{d}: {asked:g} is met before training, whose loss begins at {start:.3g}")
    if objective.dual.controller == "pi" and math.isinf(objective.dual.relaxed_cost):
        controller = CONTROLLERS["pi"](objective.dual)
        steps = config.training.total_steps(len(prepared.train.trees))
        most = (controller.kp + controller.ki * steps) * start
        if most < objective.dual.max:
            cap = f"dual.max = {objective.dual.max:g}"
            lines.append(f"no multiplier can reach {cap} in {steps} steps; at most {most:.3g}")
    return lines


def tokens(prepared: Prepared) -> str:
    """What `prepare`, which raises a DataError for an unsound record, has let through."""
    names = {"train": "training", "dual": "dual", "heldout": "held-out"}
    sets = {names[name]: data for name, data in prepared.splits.items()}
    shown = [f"{len(s.trees)} {n} records" + (f" ({s.dropped} dropped)" if s.dropped else "") for n, s in sets.items()]
    read = [line for line in prepared.reading if not line.startswith(" ")]
    return "; ".join([f"{', '.join(shown)}: every prompt is a prefix of prompt + response", *read])


def chat_template(config: Config, prepared: Prepared) -> str:
    """The template is the one that the run began with; `prepare` has compared it with the reference's."""
    mine = prepared.facts["chat_template"]["hash"]
    recorded = _recorded(config, "chat_template")
    if recorded is not None and recorded["hash"] != mine:
        raise CheckpointError(
            f"{config.run_dir} began with chat template {recorded['hash'][:12]}, that of {config.model.path} "
            f"now has {mine[:12]}. Restore its files or model.chat_template, or give the new run another name."
        )
    return f"{mine[:12]}" + (", as recorded in the run" if recorded else "")


def reference(config: Config, prepared: Prepared) -> str:
    """The reference weights are those that the run began with."""
    mine = prepared.facts["reference"]["hash"]
    recorded = _recorded(config, "reference")
    if recorded is not None and recorded["hash"] != mine:
        raise CheckpointError(
            f"{config.run_dir} began with reference {recorded['hash'][:12]}, "
            f"{config.model.reference_path or config.model.path} now holds {mine[:12]}: margins would be measured from "
            "other weights. Restore the model's files, or give the new run another name."
        )
    return f"weights {mine[:12]}" + (", as recorded in the run" if recorded else "")


def run_folder(config: Config, prepared: Prepared) -> str:
    """A run of this name, if there is one, can go on with this recipe."""
    files = RunDir(config.run_dir)
    refuse_misfits(files, say=lambda line: None)
    if not files.manifest.exists():
        return f"{files.path}: new"
    if files.finished:
        return f"{files.path}: finished"
    files.check_resumable(config, prepared.facts)
    saved = files.saved_steps()
    if not saved:
        files.refuse_lost_checkpoints()
    return f"{files.path}: goes on from step {saved[-1] if saved else 0} with --resume"


def checkpoints(config: Config, prepared: Prepared) -> str:
    """No checkpoint in the run's folder belongs to another model, reference or data set."""
    files = RunDir(config.run_dir)
    saved = files.saved_steps()
    for step in saved:
        folder = files.checkpoint(step)
        state = read_state(folder / "state.json", way_back(files, step))
        refuse_other_run(folder, state["facts"], prepared.facts)
    return f"{len(saved)} on disk, all of this run" if saved else "none on disk"


def identity(config: Config, data: TokenizedSet, policy: Rows, reference: Rows) -> str:
    """Before the first update every margin is 0 and every sigmoid loss ln 2, on the first records of `data`."""
    gaps = [
        (abs(a - b) / len(r), allowance(config.model.dtype, len(r)))
        for tree, mine, theirs in zip(data.trees, policy, reference, strict=False)
        for r, a, b in zip(tree.responses, mine, theirs, strict=True)
    ]
    worst, limit = max(gaps, key=lambda gap: gap[0] / gap[1])
    if not worst <= limit:
        raise ClusterError(
            f"policy and reference differ by {worst:.2e} nats per token (allowed {limit:.0e}), but must be equal "
            "before the first update. They load other weights or another precision: check model.path, "
            "model.reference_path, and that all nodes see the same files."
        )
    subset = TokenizedSet(data.dimensions, data.trees[: len(policy)], 0, 0)
    margins = heldout_edges(config, subset, policy, reference).margins.tolist()
    loss = sum(math.log1p(math.exp(-m)) for m in margins) / max(1, len(margins))
    return f"largest gap {worst:.1e} nats per token; mean loss {loss:.6f} (ln 2 = {math.log(2):.6f})"


def reference_cache(config: Config, data: TokenizedSet, reference: Rows) -> str:
    """The cached log-probabilities, if there are any, are those that the reference gives now."""
    path = cache_path(config, data)
    cached = read_cache(path, data)
    if cached is None:
        return "none yet; the run fills it"
    for tree, ours, expected in zip(data.trees, cached, reference, strict=False):
        for r, a, b in zip(tree.responses, ours, expected, strict=True):
            if not abs(a - b) / len(r) <= allowance(config.model.dtype, len(r)):
                raise CheckpointError(
                    f"reference cache {path}: holds log-prob {a:.6g} where the reference now gives {b:.6g} (record "
                    f"{tree.index}). Delete it; it is made again."
                )
    return f"{len(reference)} records recomputed, equal"


def _recorded(config: Config, key: str) -> dict[str, Any] | None:
    """A fact in the manifest of the run of this name, if there is one."""
    files = RunDir(config.run_dir)
    if not files.manifest.exists():
        return None
    value: dict[str, Any] | None = files.read_manifest().get(key)
    return value
