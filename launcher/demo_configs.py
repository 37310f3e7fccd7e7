"""What `dpeer demo` trains and how it is judged: configs alone, so that they can be read without torch or Ray."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dpeer.config import Config
from dpeer.config_io import load_section
from dpeer.eval.config import EvalConfig
from dpeer.launcher.recipe import EVALUATION, recipe_path, training_config

TRAIN_RECORDS, HELDOUT_RECORDS = 1200, 800
UNIFORM = "uniform (λ = 0)"
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
        (
            "objective.kind=sft",
            UNENFORCED,
            "training.steps=60",
            "training.records_per_step=16",
            "training.optimizer.lr=2e-3",
        ),
    ),
    Arm("pooled DPO", "pooled", ("objective.primary=pooled", UNENFORCED)),
    Arm(UNIFORM, "uniform", (UNENFORCED,)),
    Arm("Lagrangian", "lagrangian", ()),
)


def arm_config(arm: Arm, root: Path, seed: int) -> Config:
    places = (
        f"output_dir={root}",
        f"model.path={root / 'base'}",
        f"data.train={root / 'world' / 'train.jsonl'}",
        f"data.heldout={root / 'world' / 'test.jsonl'}",
    )
    return training_config("demo", (f"name={arm.run}", f"seed={seed}", *places, *arm.changes))


def evaluation_config(root: Path, seed: int) -> EvalConfig:
    """The shipped recipe with the demo's own places."""
    recipe = recipe_path("demo", EVALUATION)
    shipped = load_section(EvalConfig, recipe)
    moved = {
        kind: [
            {"name": s.name, "path": str(root / Path(s.path).relative_to("runs/demo"))} for s in getattr(shipped, kind)
        ]
        for kind in ("models", "judges")
    }
    changes = (
        f"output_dir={json.dumps(str(root))}",
        f"seed={seed}",
        f"prompts.path={json.dumps(str(root / 'world' / 'prompts.jsonl'))}",
        *(f"{kind}={json.dumps(served)}" for kind, served in moved.items()),
    )
    return load_section(EvalConfig, recipe, changes)
