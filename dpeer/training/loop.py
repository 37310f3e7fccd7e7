"""Training without Ray: `torchrun --nproc-per-node N -m dpeer.training.loop RECIPE.yaml [key=value ...]`.

The same ranks, steps and files as under the driver; references are colocated. It goes on from the newest checkpoint,
so that torchrun's own restarts resume.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import torch.distributed as dist

from dpeer.config import Config
from dpeer.config_io import load_config
from dpeer.errors import ConfigError, DpeerError
from dpeer.files import write_json
from dpeer.training import checkpoint, world
from dpeer.training.rank import TrainingRank
from dpeer.training.run_dir import RunDir
from dpeer.training.scoring import Scores, merge


def run(config: Config, here: world.World) -> None:
    """Train to the end on this rank of an initialised process group."""
    if config.cluster.reference != "colocated":
        raise ConfigError(
            f"cluster.reference = {config.cluster.reference}: without Ray there are no other workers; "
            "set it to colocated."
        )
    files, first = RunDir(config.run_dir), here.rank == 0
    rank = TrainingRank(config, here)
    if first:
        files.begin_or_resume(config, rank.prepared.facts)
        files.clear_partial()
        files.checkpoints.mkdir(exist_ok=True)
    box = [files.saved_steps() if first else None]
    dist.broadcast_object_list(box)  # rank 0 decides: the others may see an older state of the file system
    saved = box[0] or []
    if first and not saved:
        files.refuse_lost_checkpoints()
    if saved and first:
        rank.convert(files.checkpoint(saved[-1]))
    dist.barrier()
    done = rank.load(files.checkpoint(saved[-1])) if saved else 0
    if first:
        files.truncate(done)
    for step in range(done + 1, rank.policy.steps + 1):
        began = time.perf_counter()
        entry = rank.train_step()
        seconds = time.perf_counter() - began
        if first:
            timing = {"step": step, "seconds": seconds, "tokens_per_second": entry["tokens"] / seconds}
            files.append(entry, timing | {"reference_wait_s": 0.0})
            print(f"step {step}/{rank.policy.steps}  objective {entry['objective']:.4f}", flush=True)
        if step % config.training.checkpoint_every == 0 or step == rank.policy.steps:
            rank.save(files.temporary_checkpoint(step))
            dist.barrier()
            if first:
                files.sync()
                checkpoint.commit(files.temporary_checkpoint(step), files.checkpoint(step))
                files.prune(config.training.keep_checkpoints)
    _finish(rank, files, here)


def _finish(rank: TrainingRank, files: RunDir, here: world.World) -> None:
    if rank.prepared.heldout:
        records = len(rank.prepared.heldout.trees)
        policy, reference = (
            merge(_gather(scores, here), records) for scores in (rank.score_heldout(), rank.score_heldout_reference())
        )
        if here.rank == 0:
            write_json(files.certificate, rank.certificate(policy, reference))
    rank.export(files.export)
    if here.rank == 0:
        files.finish()


def _gather(scores: Scores, here: world.World) -> list[Scores]:
    shares: list[Scores] = [{}] * here.size
    dist.all_gather_object(shares, scores)
    return shares


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print("usage: torchrun --nproc-per-node N -m dpeer.training.loop RECIPE.yaml [key=value ...]", file=sys.stderr)
        return 2
    try:
        config = load_config(arguments[0], arguments[1:])
        here = world.start(
            int(os.environ["RANK"]),
            int(os.environ["WORLD_SIZE"]),
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            config.cluster.timeout_s,
            gpu=config.cluster.gpus_per_worker > 0,
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            join_timeout_s=config.cluster.join_timeout_s,
        )
        run(config, here)
    except DpeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        world.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
