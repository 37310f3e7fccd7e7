"""`dpeer slurm`, and what the Slurm scripts ask of the command line."""

from __future__ import annotations

from typing import Annotated

import typer


def wait_for_nodes(
    count: Annotated[int, typer.Argument(min=1, help="Nodes that must have joined.")],
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that each must offer.")] = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")] = 600,
) -> None:
    """Wait until the Ray cluster at RAY_ADDRESS is complete."""
    from launcher import cluster

    cluster.wait_for_nodes(count, gpus, timeout)
