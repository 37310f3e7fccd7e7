"""`dpeer slurm`, and what the job scripts ask of the command line."""

from __future__ import annotations

from typing import Annotated

import typer


def slurm(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Name of a shipped recipe, or a YAML file.")],
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")],
    gpus: Annotated[int, typer.Option(min=0, help="GPUs per node; 0 trains on CPUs.")] = 8,
    time: Annotated[str | None, typer.Option(help="Time limit, e.g. 24:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Account.")] = None,
    signal: Annotated[str, typer.Option(help="Pre-emption signal; USR2 where NCCL uses USR1.")] = "USR1",
    grace: Annotated[int, typer.Option(min=1, help="Seconds before the end at which it is sent.")] = 600,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="Further option of sbatch, e.g. --constraint=h200; repeat."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. training.steps=100; repeat.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write and print script and config, and stop.")] = False,
) -> None:
    """Train a recipe as a Slurm job: writes RUN/slurm/job.sh and config.yaml, and submits."""
    from dpeer.launcher.recipe import training_config
    from dpeer.launcher.slurm import Request, idle_gpus, submit, write_job

    config = training_config(recipe, set_ or ())
    request = Request(nodes, gpus, time, partition, account, signal, grace, tuple(sbatch or ()))
    script = write_job(config, request)
    if idle := idle_gpus(config, request):
        typer.echo(
            f"note: {idle} of {nodes * gpus} GPUs stay idle; cluster.policy_workers and cluster.reference_workers say "
            "how many are used",
            err=True,
        )
    if dry_run:
        for path in (script, script.with_name("config.yaml")):
            typer.echo(f"# {path}\n{path.read_text()}")
        return
    typer.echo(f"job {submit(script)}: {script}")


def wait_for_nodes(
    count: Annotated[int, typer.Argument(min=1, help="Nodes that must have joined.")],
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that each must offer.")] = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")] = 600,
) -> None:
    """Wait until the Ray cluster at RAY_ADDRESS is complete."""
    from dpeer.launcher import cluster

    cluster.wait_for_nodes(count, gpus, timeout)
