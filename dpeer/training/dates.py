"""The day that a run's chat template is told: the one on which the run began, whenever and wherever it goes on."""

from __future__ import annotations

from datetime import date, datetime

from dpeer.config import Config
from dpeer.training.run_dir import RunDir


def dated(config: Config) -> Config:
    """The config with its day: the recipe's, else the one that the run of this name began on, else today."""
    if config.data.date:
        return config
    day = began(RunDir(config.run_dir)) or date.today()
    return config.model_copy(update={"data": config.data.model_copy(update={"date": day})})


def began(files: RunDir) -> date | None:
    """The day in a run's manifest; in one of an earlier version, which told templates the day of each start, the day
    of its first."""
    if not files.manifest.exists():
        return None
    manifest = files.read_manifest()
    given = manifest.get("config", {}).get("data", {}).get("date")
    try:
        return date.fromisoformat(given) if given else datetime.fromisoformat(manifest["created"]).astimezone().date()
    except (KeyError, TypeError, ValueError):
        return None
