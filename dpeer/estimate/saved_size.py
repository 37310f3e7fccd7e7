"""How large the things are that a run writes, or keeps in host memory: from the config alone, without a weight."""

from __future__ import annotations

from dataclasses import dataclass

from dpeer.config import Config
from dpeer.estimate.footprint import count_weights
from dpeer.estimate.memory import checkpoint_bytes, export_parts, offloaded
from dpeer.files import ROOM
from dpeer.model.lm import DTYPES, load_shape, towers

TOWERS = 4  # bytes of their parameters at most: they are copied as they are


@dataclass(frozen=True, slots=True)
class SavedSize:
    """Sizes in bytes. checkpoint: one, all ranks together. export: the exported folder's weights.
    consolidation: largest use of host memory by rank 0 while it writes and checks the export. towers: parameters that
    are not loaded but copied into the export. activations: those of a full pack in the host's memory, all its
    ranks together, where the recipe keeps them there."""

    parameters: int
    trained: int
    checkpoint: int
    export: int
    consolidation: int
    towers: int = 0
    activations: int = 0

    def disk(self, keep_checkpoints: int) -> int:
        """Free bytes that a fresh run needs: a checkpoint is written before the oldest goes, an export likewise."""
        return (keep_checkpoints + 1) * self.checkpoint + 2 * self.export


def saved_size(config: Config, *, frozen: bool = True) -> SavedSize:
    """What the recipe's model takes on disk and, while it is exported, in host memory. `frozen`: checkpoints hold what
    is not trained too, as DeepSpeed's do; the plain engine's do not."""
    spec = config.model
    weights = count_weights(spec, load_shape(spec.path, spec.revision))
    written = weights.total * DTYPES[spec.export_dtype].itemsize
    copied = towers(spec.path, spec.revision)
    return SavedSize(
        parameters=weights.total,
        trained=weights.trained,
        checkpoint=checkpoint_bytes(config, weights, frozen=frozen),
        export=written + copied * TOWERS + ROOM,  # that of further files is nothing beside their weights
        consolidation=int(sum(part.high for part in export_parts(config, weights))),
        towers=copied,
        activations=int(offloaded(config, weights, max(config.training.tokens_per_pack, config.data.max_tokens))),
    )
