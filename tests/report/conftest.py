"""A realistic run folder, made up: noisy losses that fall towards a tolerance, multipliers that follow."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MASKS = ("A+E", "A+T", "A+C", "E+T", "E+C", "T+C", "A+E+T", "A+E+C", "A+T+C", "E+T+C", "A+E+T+C")
LEVELS = {"E": 0.62, "A": 0.30, "T": 0.44, "C": 0.22}


def config(kind: str = "preference", form: str = "threshold", tolerance: Any = 0.4, steps: int = 80) -> dict[str, Any]:
    return {
        "name": "lagrangian",
        "seed": 0,
        "model": {"path": "Qwen/Qwen3-8B", "revision": None, "dtype": "fp32", "lora": None},
        "data": {"train": "qisein/PersonaKnob", "heldout": None, "max_tokens": 4096},
        "objective": {
            "kind": kind,
            "loss": "sigmoid",
            "beta": 0.5,
            "golden_nll": 3.0,
            "primary": "uniform",
            "constraint": {"form": form, "tolerance": tolerance, "slack": 0.0},
            "dual": {"controller": "ascent", "eta": 0.3, "max": 20.0},
        },
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
    } | changes  # fmt: skip


def selection() -> dict[str, Any]:
    masks = {
        m: {"rate": 0.5 + 0.04 * k, "lower": 0.35 + 0.04 * k, "upper": 0.6 + 0.036 * k, "n": 20}
        for k, m in enumerate(MASKS)
    }
    return {"overall": {"rate": 0.71, "lower": 0.647, "upper": 0.766, "n": 220}, "masks": masks}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(name, steps=..., settings=config(...), certificate=True) -> run folder."""

    def make(
        name: str = "run", steps: int = 80, settings: dict[str, Any] | None = None, certificate: bool = True
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        settings = settings or config()
        dimensions = LEVELS if settings["objective"]["kind"] == "preference" else {}
        rng, multipliers = random.Random(0), dict.fromkeys(dimensions, 0.0)
        write_lines(folder / "ledger.jsonl", [step_line(s, rng, dimensions, multipliers) for s in range(1, steps + 1)])
        write_lines(
            folder / "timing.jsonl",
            [
                {"step": s, "seconds": 0.8, "tokens_per_second": 11400 + rng.gauss(0, 300), "reference_wait_s": 0.02}
                for s in range(1, steps + 1)
            ],
        )
        manifest = {
            "config": settings,
            "versions": {"dpeer": "0.1.0", "torch": "2.13.0"},
            "git": "0123abcd",
            "data": {
                "train": {"sha256": "ab" * 32, "records": 1331, "edges": {"E": 847, "A": 847}, "dropped": 3, "cut": 0},
                "heldout": {"sha256": "cd" * 32, "records": 220, "edges": {"E": 140, "A": 140}, "dropped": 0, "cut": 0},
            },
            "model": {"hash": "11" * 32},
            "reference": {"hash": "22" * 32},
            "created": "2026-05-01T10:00:00+00:00",
            "finished": "2026-05-01T10:05:00+00:00" if certificate else None,
            "world": {"policy_workers": 2, "reference_workers": 1},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        if certificate:
            halves = {"E": 0.09, "A": 0.05, "T": 0.06, "C": 0.05}
            found = {
                "confidence": 0.95,
                "constraints": [certified(d, LEVELS[d], halves[d]) for d in dimensions],
                "selection": selection(),
                "heldout_records": 220,
            }
            (folder / "certificate.json").write_text(json.dumps(found))
        return folder

    return make
