"""TensorBoard always, Weights & Biases when asked for."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from dpeer.config import Config
from dpeer.errors import ConfigError
from dpeer.training.run_dir import RunDir


class Trackers:
    """Sends each ledger line to the trackers as flat scalars; a resumed run continues the same curves."""

    def __init__(self, config: Config, files: RunDir, start: int) -> None:
        self.config, self.files, self.start = config, files, start
        self.wandb: Any = None

    def __enter__(self) -> Trackers:
        from torch.utils.tensorboard import SummaryWriter

        if self.config.training.wandb_project:
            try:
                import wandb
            except ImportError as error:
                raise ConfigError(
                    f"training.wandb_project = {self.config.training.wandb_project}: wandb is not installed. "
                    "Install it (pip install wandb) or leave the key empty."
                ) from error
            self.wandb = wandb.init(
                project=self.config.training.wandb_project,
                name=self.config.name,
                id=self.config.name,
                resume="allow",
                config=self.config.model_dump(mode="json"),
            )
        self.writer = SummaryWriter(str(self.files.path / "tensorboard"), purge_step=self.start + 1)
        self.excepthook = threading.excepthook
        threading.excepthook = self._told_later
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.writer.close()
        finally:
            threading.excepthook = self.excepthook
        if self.wandb:
            self.wandb.finish()

    def _told_later(self, fault: threading.ExceptHookArgs) -> None:
        """A full disk ends TensorBoard's thread; `log` and `close` raise its error in the driver, where it is told."""
        if not (isinstance(fault.exc_value, OSError) and type(fault.thread).__name__ == "_AsyncWriterThread"):
            self.excepthook(fault)

    def log(self, entry: dict[str, Any], timing: Mapping[str, Any]) -> None:
        values = flat_scalars(entry) | flat_scalars(timing, "timing/")
        for name, value in values.items():
            self.writer.add_scalar(name, value, entry["step"])
        if self.wandb:
            self.wandb.log(values, step=entry["step"])


def flat_scalars(entry: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested ledger line by slash-separated name; null and text are left out."""
    scalars: dict[str, float] = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            scalars |= flat_scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            scalars[prefix + key] = float(value)
    return scalars
