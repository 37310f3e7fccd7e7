"""`dpeer export`: what a run ended with, or an unfinished one's newest checkpoint, as a Hugging Face model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ray

from dpeer.config import Config
from dpeer.errors import CheckpointError
from dpeer.files import write_text
from dpeer.integrity import read_state
from dpeer.launcher.cluster import connect
from dpeer.launcher.group import Groups
from dpeer.report.card import model_card
from dpeer.training.calls import PolicyCalls
from dpeer.training.dates import began
from dpeer.training.keepsake import found_again, recall
from dpeer.training.publish import publish
from dpeer.training.run import EXPORTING, load
from dpeer.training.run_dir import RunDir
from dpeer.training.together import refuse_misfits, way_back


def export_run(run_dir: Path, output: Path | None = None, model: Path | None = None, adapter: bool = False) -> Path:
    """Export to `output` (default RUN/export, or RUN/adapter), which gets its name once it was compared with what
    was trained; returns the folder. `adapter`: only the adapter, for PEFT on top of the base model.

    Needs the run's folder and the model that training started from, at `model` where it has been moved; no data.
    """
    files = RunDir(run_dir)
    if not files.manifest.is_file():
        raise CheckpointError(f"{run_dir}: no manifest.json here. Give the folder of a run, e.g. runs/NAME.")
    saved = files.saved_steps()
    if not saved:
        raise CheckpointError(f"{run_dir}: no complete checkpoint yet. Train on with --resume.")
    folder = output or (files.path / "adapter" if adapter else files.export)
    if folder.exists():
        raise CheckpointError(f"{folder} exists. Remove it, or choose another folder with --output.")
    refuse_misfits(files)
    manifest = files.read_manifest()
    config, step = Config.model_validate(manifest["config"]), manifest.get("exported_step") or saved[-1]
    if adapter and config.model.lora is None:
        raise CheckpointError(f"{run_dir}: trained all weights, so there is no adapter. Leave --adapter out.")
    # The recorded folder may be another one than this by now: its checkpoint says which engine can read it.
    engine = read_state(files.checkpoint(step) / "state.json", way_back(files, step)).get("engine", "deepspeed")
    # No reference is needed; the plain engine takes nothing from DeepSpeed's file.
    alone = {"engine": engine, "reference": "cache", "reference_workers": 1}
    alone |= {"deepspeed": "zero3"} if engine == "plain" else {}
    data = config.data.model_copy(update={"date": config.data.date or began(files)})
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update=alone), "data": data})
    config = found_again(config, manifest.get("folder"), model)
    if prepared := recall(manifest, config):
        base = {"reference_path": None, "reference_revision": None}
        config = config.model_copy(update={"model": config.model.model_copy(update=base)})
    with connect(config.cluster.address):
        config = placed_here(config, ray.cluster_resources())
        groups = Groups(config)
        try:
            policy = groups.policy()
            policy.build(config, prepared=prepared)
            load(policy, files, step)
            made = policy.call(EXPORTING, PolicyCalls.export, folder, adapter)[0]
        finally:
            groups.close()
    for line in made["notes"]:
        print(line, flush=True)
    publish(folder, made)
    write_text(folder / "README.md", model_card(run_dir))
    return folder


def placed_here(config: Config, resources: Mapping[str, float]) -> Config:
    """A recorded config whose policy fits a cluster with these resources: on the CPU where there are no GPUs, and then
    on as many ranks as there are cores for. Checkpoints load at any number of ranks."""
    spec = config.cluster
    if not spec.on_gpus or resources.get("GPU"):
        return config
    ranks = max(1, min(spec.policy_workers, int(resources.get("CPU", 1) / spec.cpus_per_worker)))
    print(f"{config.name}: was trained on GPUs, and none is here: exported on the CPU, by {ranks} ranks.", flush=True)
    changes = {"gpus_per_worker": 0, "policy_workers": ranks, "reference": "cache", "reference_workers": ranks}
    model = config.model.model_copy(update={"kernels": "eager"})
    training = config.training.model_copy(update={"sequence_parallel": 1})
    return config.model_copy(update={"cluster": spec.model_copy(update=changes), "model": model, "training": training})
