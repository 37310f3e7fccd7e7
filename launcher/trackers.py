"""Where a run's curves go beside its own files: TensorBoard, Weights & Biases, MLflow, Trackio.

They only report: whatever one of them raises costs a warning and that tracker, never the run.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from dpeer.config import Config
from dpeer.errors import ConfigError
from dpeer.training.run_dir import RunDir

Say = Callable[[str], object]
Scalars = dict[str, float]
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
MOST_DIMENSIONS = 16
TOLD = ("loss", "accuracy", "weight")
"""Of each of more dimensions; loss and accuracy on the dual split, where there is one."""
NOT_IN_MLFLOW = re.compile(r"[^\w\-. /:]")


class Tracker(Protocol):
    def log(self, values: Scalars, step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, config: Config, files: RunDir, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(files.path / "tensorboard"), purge_step=start + 1)

    def log(self, values: Scalars, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # One event with all of them: the writer's own call for each takes many times as long.
        written = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.writer.file_writer.add_summary(Summary(value=written), step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    def __init__(self, config: Config, files: RunDir, start: int) -> None:
        settings = {"config": config.model_dump(mode="json"), "id": config.name, "resume": "allow"}
        self.run = import_module("wandb").init(project=project(config), name=config.name, **settings)

    def log(self, values: Scalars, step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    def __init__(self, config: Config, files: RunDir, start: int) -> None:
        settings = {"config": config.model_dump(mode="json"), "resume": "allow"}
        self.run = import_module("trackio").init(project=project(config), name=config.name, **settings)

    def log(self, values: Scalars, step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    def __init__(self, config: Config, files: RunDir, start: int) -> None:
        self.mlflow = import_module("mlflow")
        self.mlflow.set_experiment(project(config))
        found = self.mlflow.search_runs(filter_string=f"tags.dpeer = '{config.name}'", output_format="list")
        again = {"run_id": found[0].info.run_id} if found and start else {}
        self.mlflow.start_run(run_name=config.name, tags={"dpeer": config.name}, **again)

    def log(self, values: Scalars, step: int) -> None:
        self.mlflow.log_metrics({NOT_IN_MLFLOW.sub("_", name): value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


TRACKERS: dict[str, Callable[[Config, RunDir, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def project(config: Config) -> str:
    return config.training.wandb_project or "dpeer"


def names(config: Config) -> tuple[str, ...]:
    """The recipe's trackers; a project of Weights & Biases asks for that one too."""
    given = config.training.trackers
    return tuple(dict.fromkeys([*given, *(["wandb"] if config.training.wandb_project else [])]))


def check_trackers(config: Config) -> None:
    """Before anything is built: ConfigError for a tracker that is not installed, or that nobody has logged in to."""
    for name in names(config):
        if find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"training.trackers: {name} is not installed. Install it (pip install {PACKAGES[name]}), or leave it "
                "out of training.trackers and training.wandb_project."
            )
    if "wandb" in names(config) and os.environ.get("WANDB_MODE") not in ("offline", "disabled", "dryrun"):
        key: object = "unknown"
        with suppress(Exception):  # of whatever version; its own complaint costs a warning later
            key = import_module("wandb").api.api_key
        if not key:
            raise ConfigError(
                "training.trackers: nobody is logged in to wandb here. Run `wandb login`, set WANDB_API_KEY, or keep "
                "its files on this machine with WANDB_MODE=offline."
            )


class Trackers:
    """Sends each ledger line to the trackers as flat scalars; a resumed run continues the same curves."""

    def __init__(self, config: Config, files: RunDir, start: int, warn: Say = print) -> None:
        self.config, self.files, self.start, self.warn = config, files, start, warn
        self.open: dict[str, Tracker] = {}

    def __enter__(self) -> Trackers:
        self.excepthook = threading.excepthook
        threading.excepthook = self._told_later
        for name in names(self.config):
            if tracker := self._safely(name, partial(TRACKERS[name], self.config, self.files, self.start)):
                self.open[name] = tracker
        return self

    def __exit__(self, *exc: object) -> None:
        for name, tracker in list(self.open.items()):
            self._safely(name, tracker.close)
        threading.excepthook = self.excepthook

    def log(self, entry: dict[str, Any], timing: Mapping[str, Any]) -> None:
        values = flat_scalars(readable(entry)) | flat_scalars(timing, "timing/")
        for name, tracker in list(self.open.items()):
            self._safely(name, partial(tracker.log, values, entry["step"]))

    def _safely(self, name: str, act: Callable[[], Any]) -> Any:
        """The result; a tracker that raises is told of once and left out from then on."""
        try:
            return act()
        except Exception as error:
            self.open.pop(name, None)
            first = next((line for line in str(error).splitlines() if line.strip()), "no message")
            self.warn(f"{name} reports no longer ({type(error).__name__}: {first[:200]}); training goes on without it")
            return None

    def _told_later(self, fault: threading.ExceptHookArgs) -> None:
        """A full disk ends TensorBoard's thread; `log` and `close` raise its error in the driver, where it is told."""
        if not (isinstance(fault.exc_value, OSError) and type(fault.thread).__name__ == "_AsyncWriterThread"):
            self.excepthook(fault)


def readable(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A ledger line less what nobody has curves of: of many dimensions the numbers that tell them apart are left."""
    dimensions = entry.get("dimensions", {})
    if len(dimensions) <= MOST_DIMENSIONS:
        return dict(entry)
    followed = {d: row.get("dual", row) | {"weight": row["weight"]} for d, row in dimensions.items()}
    return {**entry, "dimensions": {d: {key: row[key] for key in TOLD} for d, row in followed.items()}}


def flat_scalars(entry: Mapping[str, Any], prefix: str = "") -> Scalars:
    """Numbers of a nested ledger line by slash-separated name; null and text are left out."""
    scalars: Scalars = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            scalars |= flat_scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            scalars[prefix + key] = float(value)
    return scalars
