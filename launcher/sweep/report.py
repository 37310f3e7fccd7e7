"""`dpeer sweep report`: replies for the oracle where the toy world is swept, then the page and its tables."""

from __future__ import annotations

import os
from pathlib import Path

from rich.progress import track

from dpeer.errors import ConfigError
from dpeer.launcher.sweep.folder import SweepFolder
from dpeer.report.sweep_page import write_sweep_report


def write_report(folder: SweepFolder, abilities: Path | None = None) -> Path:
    """The page of all finished cells; `abilities` is a folder of `dpeer irt fit` whose models are named as cells."""
    manifest = folder.read_manifest()
    if manifest["prompts"]:
        _replies(folder, Path(manifest["prompts"]), manifest["cells"])
    return write_sweep_report(folder.path, _abilities(abilities) if abilities else None)


def _replies(folder: SweepFolder, prompts: Path, cells: list[dict[str, object]]) -> None:
    """What each cell's model says to the prompts, sampled once."""
    from dpeer.launcher.replies import NAME, replies

    runs = [(folder.run(str(c["name"])), int(str(c["seed"]))) for c in cells]
    missing = [(run, seed) for run, seed in runs if run.finished and not (run.path / NAME).exists()]
    if not missing:
        return
    if not prompts.is_file():
        raise ConfigError(
            f"prompts: {prompts} is not a file. Give the toy world's prompts.jsonl, or leave the key out."
        )
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for run, seed in track(missing, "replies for the oracle"):
        replies(run.export, prompts, run.path, seed)


def _abilities(fit: Path) -> dict[str, dict[str, float]]:
    """Model -> dimension -> ability in logits. ConfigError: the fit's diagnostics allow no claim."""
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.tables import tabulate

    fitted = tabulate(load(fit))
    if not fitted.gate["green"]:
        reasons = "; ".join(fitted.gate["reasons"])
        raise ConfigError(f"--abilities {fit}: its diagnostics allow no claim ({reasons}). Fit it again, for longer.")
    abilities: dict[str, dict[str, float]] = {}
    for row in fitted.tables["ability"].itertuples():
        abilities.setdefault(str(row.model), {})[str(row.dimension)] = float(row.ability)
    return abilities
