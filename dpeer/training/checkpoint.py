"""Checkpoints of a policy group: weights, optimizer, dual state, cursor and a probe that proves a load worked.

`save` writes into a temporary folder; `commit` (rank 0, after all ranks have returned) renames it. DeepSpeed's shards
are pickles of the run's own making: resume only runs that you trust. Exported models are safetensors.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dpeer.errors import CheckpointError
from dpeer.objective.dual import DualState
from dpeer.training.policy import Policy
from dpeer.training.run_dir import write_json
from dpeer.training.scoring import Scores

SHARDS = "deepspeed"
UNIVERSAL = "universal"


def save(policy: Policy, folder: Path, facts: dict[str, Any]) -> None:
    """Write this rank's shard into `folder`; rank 0 adds state.json last. `facts` (hashes) are checked on load."""
    policy.phase = f"saving step {policy.step}"
    policy.engine.save_checkpoint(
        str(folder), tag=SHARDS, client_state={"torch_rng": torch.get_rng_state()}, save_latest=False
    )
    probe = _probe(policy)
    if policy.world.rank == 0:
        write_json(
            folder / "state.json",
            {
                "step": policy.step,
                "world_size": policy.world.size,
                "dual": policy.dual.to_dict(),
                "probe": {str(k): v for k, v in probe.items()},
                "facts": facts,
            },
        )


def commit(temporary: Path, final: Path) -> None:
    """Make a checkpoint visible, once every rank has returned from `save`."""
    os.replace(temporary, final)


def load(policy: Policy, folder: Path, facts: dict[str, Any]) -> None:
    """Restore a policy group, at the same or another number of ranks; refuses what does not belong or did not load."""
    policy.phase = f"loading {folder.name}"
    state = json.loads((folder / "state.json").read_text())
    for key, value in facts.items():
        if state["facts"].get(key) != value:
            raise CheckpointError(
                f"{folder}: belongs to another run: {key} was {state['facts'].get(key)}, now {value}. "
                "Restore it or start anew."
            )
    same = state["world_size"] == policy.world.size
    if same:
        _, client = policy.engine.load_checkpoint(str(folder), tag=SHARDS)
        torch.set_rng_state(client["torch_rng"])
    else:
        _load_universal(policy, folder)
    policy.step = state["step"]
    policy.dual = DualState.from_dict(state["dual"])
    _check_probe(policy, folder, state["probe"], 1e-6 if same else 1e-4)


def _load_universal(policy: Policy, folder: Path) -> None:
    """Convert the shards once (rank 0) to DeepSpeed's universal form, then load it at the present world size."""
    target = folder / UNIVERSAL
    if policy.world.rank == 0 and not target.exists():
        temporary = folder / f".{UNIVERSAL}"
        shutil.rmtree(temporary, ignore_errors=True)
        convert = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
        convert += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
        convert += ["--input_folder", str(folder / SHARDS), "--output_folder", str(temporary)]
        done = subprocess.run(convert, capture_output=True, text=True)
        if done.returncode:
            raise CheckpointError(f"{folder}: cannot be converted to another number of ranks: {done.stderr[-600:]}")
        os.replace(temporary, target)
    dist.barrier()
    policy.engine._config.load_universal_checkpoint = True
    policy.engine.load_checkpoint(str(folder), tag=UNIVERSAL)
    policy.engine._config.load_universal_checkpoint = False


def _probe(policy: Policy) -> Scores:
    """Log-probs of the first record: what the restored model must reproduce. Every rank gets them."""
    shares: list[Scores | None] = [None] * policy.world.size
    dist.all_gather_object(shares, policy.score(policy.data.trees[:1]))
    return {k: v for share in shares if share for k, v in share.items()}


def _check_probe(policy: Policy, folder: Path, expected: dict[str, list[float]], tolerance: float) -> None:
    found = _probe(policy)
    for key, values in expected.items():
        for before, after in zip(values, found[int(key)], strict=True):
            if not abs(before - after) <= tolerance * max(1.0, abs(before)):
                raise CheckpointError(
                    f"{folder}: the restored model gives log-prob {after:.8g} where the saved one gave {before:.8g} "
                    f"(relative tolerance {tolerance:.0e}). The weights did not load; use an earlier checkpoint."
                )
