"""DeepSpeed's shards are pickles, which can run any code when they are loaded: what they name is looked at before."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from dpeer.errors import CheckpointError, DamagedCheckpoint

WRITTEN = {  # what DeepSpeed itself puts into them, beside what torch's `weights_only` allows
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


def refuse_foreign_code(folder: Path) -> None:
    """CheckpointError for a shard below `folder` that names a function or class which no checkpoint of dpeer has."""
    for path in sorted(folder.rglob("*.pt")):
        refuse_foreign(path)


def refuse_foreign(path: Path) -> None:
    """The same of one shard. Nothing is unpickled here: the instructions are read (a few milliseconds), the tensors are
    not."""
    try:
        foreign = sorted(set(get_unsafe_globals_in_checkpoint(str(path))) - WRITTEN)
    except (UnpicklingError, EOFError, ValueError, RuntimeError) as error:
        raise DamagedCheckpoint(
            f"{path}: is no checkpoint as torch.save writes it ({str(error).splitlines()[0][:120]}), so what it "
            "would run cannot be told. It is damaged or not of dpeer's making: use an earlier checkpoint."
        ) from error
    if foreign:
        raise CheckpointError(
            f"{path}: asks for {', '.join(foreign[:3])} when it is loaded, which no checkpoint of dpeer does: it "
            "could run any code as you, so it was not loaded. Use a checkpoint whose origin you know."
        )


def outline(path: Path) -> dict[str, Any]:
    """What a shard holds, with nothing run but what dpeer's own shards name. Under torch's FakeTensorMode no tensor is
    read, and each says where in the file its storage begins."""
    refuse_foreign(path)
    with safe_globals(
        [getattr(import_module(module), name) for module, _, name in (w.rpartition(".") for w in WRITTEN)]
    ):
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved
