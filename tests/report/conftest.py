"""A realistic run folder, made up: noisy losses that fall towards a tolerance, multipliers that follow."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

MASKS = ("A+E", "A+T", "A+C", "E+T", "E+C", "T+C", "A+E+T", "A+E+C", "A+T+C", "E+T+C", "A+E+T+C")
LEVELS = {"E": 0.62, "A": 0.30, "T": 0.44, "C": 0.22}


def config(steps: int = 80, **objective: Any) -> dict[str, Any]:
    return {
        "name": "lagrangian",
        "seed": 0,
        "model": {"path": "Qwen/Qwen3-8B", "revision": None, "dtype": "fp32", "lora": None},
        "data": {"train": "qisein/PersonaKnob", "heldout": None, "max_tokens": 4096},
        "objective": {
            "kind": "preference",
            "loss": "sigmoid",
            "beta": 0.5,
            "golden_nll": 3.0,
            "primary": "uniform",
            "constraint": {"form": "threshold", "tolerance": 0.4, "slack": 0.0},
            "dual": {"controller": "ascent", "eta": 0.3, "max": 20.0},
        }
        | objective,
        "cluster": {"policy_workers": 2, "reference": "workers", "reference_workers": 1},
        "training": {"steps": steps, "epochs": None, "records_per_step": 32},
    }


def step_line(
    step: int, rng: random.Random, dimensions: dict[str, float], multipliers: dict[str, float]
) -> dict[str, Any]:
    """One ledger line; moves `multipliers` on, as a run would."""
    fall = math.exp(-step / 18)
    losses = {
        d: max(0.02, level + (math.log(2) - level) * fall + rng.gauss(0, 0.04)) for d, level in dimensions.items()
    }
    raised = {d: 0.25 + multipliers[d] for d in dimensions}
    line = {
        "step": step,
        "objective": sum(losses.values()) / max(1, len(losses)),
        "golden_nll": 1.1 + 0.4 * fall + rng.gauss(0, 0.02),
        "golden_logp": -51.8 - 5 * (1 - fall) + rng.gauss(0, 0.6),
        "rejected_logp": -53.0 - 22 * (1 - fall) + rng.gauss(0, 0.8),
        "grad_norm": 1.3,
        "lr": 1e-3,
        "tokens": 9120,
        "records": 32,
        "dimensions": {
            d: {
                "edges": 0 if d == "T" and step % 7 == 3 else 24,
                "loss": None if d == "T" and step % 7 == 3 else loss,
                "loss_se": 0.04,
                "margin": 2 * (math.log(2) - loss),
                "margin_se": 0.12,
                "accuracy": 0.8,
                "weight": raised[d] / sum(raised.values()),
            }
            for d, loss in losses.items()
        },
        "constraints": {
            d: {
                "dimensions": [d],
                "tolerance": 0.4,
                "estimate": loss,
                "se": 0.04,
                "slack": 0.4 - loss,
                "multiplier": multipliers[d],
                "active": multipliers[d] > 0,
                "saturated": False,
                "edges": 24,
            }
            for d, loss in losses.items()
        },
    }
    for d, loss in losses.items():
        multipliers[d] = max(0.0, multipliers[d] + 0.3 * (loss - 0.4))
    return line


def certified(name: str, estimate: float, half: float, tolerance: Any = 0.4, **changes: Any) -> dict[str, Any]:
    eps = math.inf if tolerance in (None, "inf") else tolerance
    inside, outside = estimate + half <= eps, estimate - half > eps
    verdict = "satisfied" if inside else "violated" if outside else "undecided"
    return {
        "name": name, "dimensions": [name], "estimate": estimate, "tolerance": tolerance, "lower": estimate - half,
        "upper": estimate + half, "se": half / 2.5, "records": 120, "edges": 160, "verdict": verdict,
        "extra_records": 310 if verdict == "undecided" else None,
        "mean": {
            "estimate": estimate + 0.01, "se": half / 2, "lower": estimate - half, "upper": estimate + half + 0.02,
            "effective_records": 118.0, "skewness": 2.5, "lowest_margin": -7.5, "highest_value": 7.5006,
            "clipped": 0.0125,
        },
    } | changes  # fmt: skip


def selection() -> dict[str, Any]:
    masks = {
        m: {"rate": 0.5 + 0.04 * k, "lower": 0.35 + 0.04 * k, "upper": 0.6 + 0.036 * k, "n": 20}
        for k, m in enumerate(MASKS)
    }
    return {"overall": {"rate": 0.71, "lower": 0.647, "upper": 0.766, "n": 220}, "masks": masks}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def balance_step(line: dict[str, Any]) -> dict[str, Any]:
    """The same step under form `balance`: one constraint per ordered pair, "E over A" first to fall behind."""
    losses = {d: entry["loss"] for d, entry in line["dimensions"].items()}
    line["constraints"] = {
        f"{i} over {j}": {
            "dimensions": [i, j],
            "tolerance": 0.1,
            "estimate": None if None in (losses[i], losses[j]) else losses[i] - losses[j],
            "multiplier": max(0.0, 0.02 * line["step"] * (LEVELS[i] - LEVELS[j] - 0.1)),
            "saturated": (i, j) == ("E", "C"),
        }
        for i, j in permutations(losses, 2)
    }
    return line


def watched_step(line: dict[str, Any]) -> dict[str, Any]:
    """The same step with a dual split, on which T over-fits, and multipliers that aim below the tolerance."""
    for d, row in line["dimensions"].items():
        worse = 0.2 if d == "T" and line["step"] > 20 else 0.0
        loss = None if row["loss"] is None else row["loss"] + worse
        row["floored"] = 0.0
        row["dual"] = {"edges": 8, "loss": loss, "margin": row["margin"] - worse, "accuracy": 0.7 - worse}
        line["constraints"][d]["aim"] = 0.33
    return line | {"dual_selected": 0.625}


def add_dual_split(folder: Path) -> None:
    ledger = [watched_step(json.loads(line)) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    write_lines(folder / "ledger.jsonl", ledger)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["data"]["dual"] = {"sha256": "ef" * 32, "records": 130, "edges": dict.fromkeys(LEVELS, 83)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    prompts, steps = ("What shall I plant?", "Is <b>this</b> & that true?"), range(0, len(ledger) + 1, 20)
    samples = [{"step": s, "prompt": p, "reply": f"reply {s}"} for s in steps for p in prompts]
    write_lines(folder / "samples.jsonl", samples)


@pytest.fixture
def amend() -> Callable[[Path, Callable[[Any], Any]], None]:
    """amend(file.json, change): rewrite a JSON file with `change(content)`; of a .jsonl file, each line."""

    def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
        if path.suffix == ".jsonl":
            write_lines(path, [change(json.loads(line)) for line in path.read_text().splitlines()])
        else:
            path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return rewrite


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(name, steps=..., certificate=True, kind="sft", ...) -> run folder; further keys go to `objective`."""

    def make(
        name: str = "run", steps: int = 80, certificate: bool = True, watched: bool = False, **objective: Any
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        dimensions = {} if objective.get("kind") == "sft" else LEVELS
        balance = objective.get("constraint", {}).get("form") == "balance"
        rng, multipliers = random.Random(0), dict.fromkeys(dimensions, 0.0)
        ledger = [step_line(s, rng, dimensions, multipliers) for s in range(1, steps + 1)]
        write_lines(folder / "ledger.jsonl", [balance_step(line) for line in ledger] if balance else ledger)
        write_lines(
            folder / "timing.jsonl",
            [
                {"step": s, "seconds": 0.8, "tokens_per_second": 11400 + rng.gauss(0, 300), "reference_wait_s": 0.02}
                for s in range(1, steps + 1)
            ],
        )
        manifest = {
            "method": 2,
            "config": config(**objective),
            "versions": {"dpeer": "0.1.0", "torch": "2.13.0", "ray": None},
            "git": "0123abcd",
            "data": {
                "train": {"sha256": "ab" * 32, "records": 1331, "edges": dict.fromkeys(LEVELS, 847), "dropped": 3},
                "heldout": {"sha256": "cd" * 32, "records": 220, "edges": dict.fromkeys(LEVELS, 140), "dropped": 0},
            },
            "model": {"hash": "11" * 32},
            "reference": {"hash": "22" * 32},
            "created": "2026-05-01T10:00:00+00:00",
            "finished": "2026-05-01T10:05:00+00:00" if certificate else None,
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))
        if certificate:
            halves = {"E": 0.09, "A": 0.05, "T": 0.06, "C": 0.05}
            singles = [certified(d, LEVELS[d], halves[d]) for d in dimensions]
            pairs = [
                certified(f"{i} over {j}", LEVELS[i] - LEVELS[j], 0.06, 0.1, dimensions=[i, j])
                for i, j in permutations(dimensions, 2)
            ]
            found = {
                "confidence": 0.95,
                "bound": 6.0,
                "prompts": 215,
                "rarest": 3 / 215,
                "wins": {d: {"rate": 0.88, "lower": 0.81, "edges": 160, "records": 120} for d in dimensions},
                "masks": {"A+E": [certified("A", 0.2, 0.3)], "A+T": [certified("T", 0.2, 0.1)]},
                "constraints": pairs if balance else singles,
                "selection": selection(),
                "heldout_records": 220,
            }
            (folder / "certificate.json").write_text(json.dumps(found))
        if watched:
            add_dual_split(folder)
        return folder

    return make
