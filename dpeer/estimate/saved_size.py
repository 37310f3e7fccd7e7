"""How large the things are that a run writes: from the config alone, without loading a weight."""

from __future__ import annotations

from dataclasses import dataclass

from dpeer.config import Config
from dpeer.estimate.footprint import count_weights
from dpeer.model.lm import DTYPES, load_shape

ADAM = 12  # bytes of a trained parameter in a checkpoint: fp32 master weight and two moments


@dataclass(frozen=True, slots=True)
class SavedSize:
    """Sizes in bytes. checkpoint: one, all ranks together. export: the exported folder's weights.
    consolidation: largest use of host memory by rank 0 while it gathers and writes the export."""

    parameters: int
    trained: int
    checkpoint: int
    export: int
    consolidation: int

    def disk(self, keep_checkpoints: int) -> int:
        """Free bytes that a fresh run needs: a checkpoint is written before the oldest goes, an export likewise."""
        return (keep_checkpoints + 1) * self.checkpoint + 2 * self.export


def saved_size(config: Config, *, frozen: bool = True) -> SavedSize:
    """What the recipe's model takes on disk and, while it is exported, in host memory. `frozen`: checkpoints hold what
    is not trained too, as DeepSpeed's do; the plain engine's do not."""
    spec = config.model
    weights = count_weights(spec, load_shape(spec.path, spec.revision))
    compute, exported = (DTYPES[d].itemsize for d in (spec.dtype, spec.export_dtype))
    gathered, written = weights.total * compute, weights.total * exported
    return SavedSize(
        parameters=weights.total,
        trained=weights.trained,
        checkpoint=weights.trained * ADAM + frozen * (weights.total - weights.trained) * compute,
        export=written,
        consolidation=gathered + written + (written if compute != exported else 0),
    )
