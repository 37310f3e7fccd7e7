"""Weights that are no numbers are refused where they are read."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from dpeer.errors import ConfigError


def refuse_not_finite(weights: Iterable[tuple[str, Tensor]], source: str) -> None:
    """ConfigError for weights that are NaN or infinite: nothing computed with them would mean anything. `source`: where
    they come from, as in `model PATH`."""
    bad = [n for n, w in weights if w.numel() and not all(map(math.isfinite, map(float, torch.aminmax(w.detach()))))]
    if bad:
        raise ConfigError(
            f"{source}: {len(bad)} of its weights hold NaN or infinite values, among them {', '.join(bad[:3])}. "
            "Its files are damaged, or its own training diverged: give another copy or checkpoint."
        )
