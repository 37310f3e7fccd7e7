"""A whole run by its recipe: reference cache, steps, kill -9, resume, certificate, export; then the same with LoRA.

The killed run must go on as one that nobody disturbed: to the bit on a CPU, to rounding on a GPU, whose attention adds
gradients in no fixed order.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from dpeer.config_io import load_config
from dpeer.toyworld import world as toyworld
from dpeer.toyworld.model import bpe
from dpeer.training import world
from dpeer.training.rank import TrainingRank
from gpu_stages.shapes import LLAMA_1B, TINY, make, result

STEPS, SAVE, VOCABULARY = 4, 2, 1024
APART = {"cuda": 1e-3, "cpu": 0.0}
"""Allowed between losses of the killed and of the undisturbed run."""


def run(device: str, quick: bool, out: Path) -> dict[str, Any]:
    logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp())
    write_inputs(folder, device)
    seconds = {"straight": train(folder, "straight", device, out)}
    seconds["killed"] = train(folder, "killed", device, out, kill_after=SAVE)
    seconds["resumed"] = train(folder, "killed", device, out)
    straight, killed = (ledger(folder / "runs" / name) for name in ("straight", "killed"))
    first = [d["loss"] for d in straight[0]["dimensions"].values() if d["edges"]]
    checks = {
        "all steps once": [row["step"] for row in killed] == list(range(1, STEPS + 1)),
        "first losses are ln 2": max(abs(x - math.log(2)) for x in first) < (1e-6 if device == "cpu" else 0.02),
        "goes on as if undisturbed": apart(straight, killed) <= APART[device],
        "export can be read": readable(folder / "runs" / "killed" / "export", device),
    }
    if not quick:
        seconds["LoRA"] = train(folder, "lora", device, out, changes=("model.lora={rank: 8}", "cluster.engine=plain"))
        checks["LoRA: all steps"] = len(ledger(folder / "runs" / "lora")) == STEPS
        checks["LoRA: export can be read"] = readable(folder / "runs" / "lora" / "export", device)
        taken = builds(folder / "recipe.yaml", device)
        checks["later builds take no more memory than the first"] = max(taken) <= min(taken) + 2**20
    wrong = [name for name, good in checks.items() if not good]
    lines = [
        f"seconds: {', '.join(f'{name} {s:.0f}' for name, s in seconds.items())}",
        f"losses of the killed run and of the undisturbed one: {apart(straight, killed):.1e} apart",
        "right" if not wrong else f"WRONG: {', '.join(wrong)}",
    ]
    return result(not wrong, lines, checks=checks, run_seconds=seconds)


def write_inputs(folder: Path, device: str) -> None:
    """A world of records, a random model with a tokenizer of these records, and a recipe."""
    made = toyworld.write_world(folder / "world", 3, n_train=24, n_heldout=12, n_prompts=1, n_pretrain=5)
    tokenizer = bpe([r.responses[0].text for r in made.train.records], VOCABULARY)
    fields = (LLAMA_1B if device == "cuda" else TINY) | {
        "vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": True,
    }  # fmt: skip
    make(fields, device, torch.bfloat16 if device == "cuda" else torch.float32).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    dtype, zero = ("bf16", "zero3") if device == "cuda" else ("fp32", "cpu")
    recipe = {
        "output_dir": str(folder / "runs"),
        "model": {"path": str(folder / "model"), "dtype": dtype, "gradient_checkpointing": True},
        "data": {
            "train": str(folder / "world" / "train.jsonl"), "heldout": str(folder / "world" / "test.jsonl"),
            "dual": "25%", "max_tokens": 512,
        },
        "objective": {"golden_nll": 1.0, "constraint": {"tolerance": 0.25}},
        "training": {
            "steps": STEPS, "records_per_step": 8, "checkpoint_every": SAVE, "sample_prompts": 1,
            "optimizer": {"lr": 1e-5 if device == "cuda" else 1e-3},
        },
        "cluster": {
            "reference": "cache", "engine": "deepspeed", "deepspeed": zero,
            "gpus_per_worker": 1 if device == "cuda" else 0,
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def train(
    folder: Path, name: str, device: str, out: Path, changes: tuple[str, ...] = (), kill_after: int | None = None
) -> float:
    """Train by `python -m dpeer.launcher.torchrun`, or go on; returns seconds. Ended by SIGKILL once the checkpoint of
    step `kill_after` is there."""
    settings = [part for change in (f"name={name}", *changes) for part in ("--set", change)]
    log = out / f"path-{name}{'-killed' if kill_after else ''}.log"
    began = time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "dpeer.launcher.torchrun", str(folder / "recipe.yaml"), *settings],
            stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            mark = folder / "runs" / name / "checkpoints" / f"step-{kill_after or 0:07d}" / "state.json"
            while process.poll() is None and not (kill_after and mark.exists()):
                time.sleep(0.02)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
    if process.returncode != (-signal.SIGKILL if kill_after else 0):
        end = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise RuntimeError(f"run {name} ended with {process.returncode}: {end}")
    return time.monotonic() - began


def builds(recipe: Path, device: str) -> list[int]:
    """Bytes that are left on the device after each of four runs in one process, a step and all (0 on a CPU). Joins a
    process group, which leaves torchrun's variables in the environment: nothing may be started after it."""
    here = world.alone(600, gpu=device == "cuda")
    left = []
    for engine in ("deepspeed", "deepspeed", "plain", "plain"):
        rank = TrainingRank(load_config(recipe, ["name=builds", f"cluster.engine={engine}"]), here)
        rank.read_cache()
        rank.train_step()
        rank.close()
        left.append(torch.cuda.memory_allocated() if device == "cuda" else 0)
    world.stop()
    return left


def ledger(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def apart(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> float:
    """Largest difference of a dimension's loss in any step."""
    pairs = [
        (x["dimensions"][d]["loss"], y["dimensions"][d]["loss"])
        for x, y in zip(a, b, strict=True)
        for d in x["dimensions"]
        if x["dimensions"][d]["edges"]
    ]
    return max(abs(x - y) for x, y in pairs)


def readable(export: Path, device: str) -> bool:
    """transformers alone loads it and finds finite logits."""
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.inference_mode():
        return bool(model.to(device)(torch.arange(5, device=device)[None]).logits.isfinite().all())
