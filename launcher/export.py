"""`dpeer export`: what a run ended with, or an unfinished one's newest checkpoint, as a Hugging Face model."""

from __future__ import annotations

from pathlib import Path

from dpeer.config import Config
from dpeer.errors import CheckpointError
from dpeer.files import write_text
from dpeer.integrity import read_state
from dpeer.launcher.cluster import connect
from dpeer.launcher.group import Groups
from dpeer.report.card import model_card
from dpeer.training.calls import PolicyCalls
from dpeer.training.keepsake import found_again, recall
from dpeer.training.run import EXPORTING, load
from dpeer.training.run_dir import RunDir
from dpeer.training.together import refuse_misfits, way_back


def export_run(run_dir: Path, output: Path | None = None, model: Path | None = None) -> Path:
    """Export to `output` (default RUN/export), reloaded and compared before it is called done; returns the folder.

    Needs the run's folder and the model that training started from, at `model` where it has been moved; no data.
    """
    files = RunDir(run_dir)
    if not files.manifest.is_file():
        raise CheckpointError(f"{run_dir}: no manifest.json here. Give the folder of a run, e.g. runs/NAME.")
    saved = files.saved_steps()
    if not saved:
        raise CheckpointError(f"{run_dir}: no complete checkpoint yet. Train on with --resume.")
    folder = output or files.export
    if folder.exists():
        raise CheckpointError(f"{folder} exists. Remove it, or choose another folder with --output.")
    refuse_misfits(files)
    manifest = files.read_manifest()
    config, step = Config.model_validate(manifest["config"]), manifest.get("exported_step") or saved[-1]
    # The recorded folder may be another one than this by now: its checkpoint says which engine can read it.
    engine = read_state(files.checkpoint(step) / "state.json", way_back(files, step)).get("engine", "deepspeed")
    alone = {"engine": engine, "reference": "cache", "reference_workers": 1}  # no reference is needed
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update=alone)})
    config = found_again(config, manifest.get("folder"), model)
    prepared = recall(manifest, config)
    with connect(config.cluster.address):
        groups = Groups(config)
        try:
            policy = groups.policy()
            policy.build(config, prepared=prepared)
            load(policy, files, step)
            for line in policy.call(EXPORTING, PolicyCalls.export, folder)[0]:
                print(line, flush=True)
        finally:
            groups.close()
    write_text(folder / "README.md", model_card(run_dir))
    return folder
