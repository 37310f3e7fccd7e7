"""Job scripts for Slurm, made from a recipe. The part that runs inside the job is slurm/lib.sh."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpeer.config import Config
from dpeer.config_io import resolved_yaml
from dpeer.errors import ClusterError
from dpeer.escape import sbatch
from dpeer.files import PACKAGE, write_text

LIBRARY = PACKAGE / "slurm" / "lib.sh"


@dataclass(frozen=True)
class Request:
    """What is asked of Slurm."""

    nodes: int
    gpus: int
    """GPUs per node; 0 trains on CPUs."""
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    signal: str = "USR1"
    """Pre-emption signal, sent `grace_s` seconds before the end."""
    grace_s: int = 600
    options: Sequence[str] = ()
    """Further options of sbatch, each as --name=value."""

    def directives(self, job_name: str) -> list[str]:
        named = {
            "job-name": job_name,
            "nodes": self.nodes,
            "gpus-per-node": self.gpus or None,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "signal": f"B:{self.signal}@{self.grace_s}",
        }
        # singleton: jobs of one name and user wait for each other, so that a run is never trained twice at a time.
        fixed = ["--exclusive", "--mem=0", "--requeue", "--open-mode=append", "--dependency=singleton"]
        return [*(f"--{key}={value}" for key, value in named.items() if value is not None), *fixed, *self.options]


def job_script(config: Config, config_path: Path, request: Request) -> str:
    """The whole batch script: it needs no file of dpeer's but the installed package."""
    head = [f"#SBATCH {sbatch(directive)}" for directive in request.directives(config.name)]
    library = LIBRARY.read_text().partition("\n")[2]  # less the directive for shellcheck
    run = f"run_on_ray dpeer train {shlex.quote(str(config_path))} --auto-resume"
    made = f"# Trains '{config.name}'. Made by `dpeer slurm`; submit it from the folder where that was run."
    lint = "# shellcheck disable=SC2317  # functions are called by name"
    signal = f"export DPEER_PREEMPT_SIGNAL={request.signal} DPEER_GRACE_S={request.grace_s}"
    return "\n".join(["#!/bin/bash", made, *head, lint, signal, "", library, run, ""])


def refuse_misfit(config: Config, request: Request) -> None:
    """ClusterError when the recipe's workers do not fit the GPUs that are asked for."""
    from dpeer.launcher.cluster import unplaceable
    from dpeer.launcher.group import wanted

    groups = wanted(config)
    if not _on_gpus(config, request):
        return
    workers, per_node = sum(groups.values()), {"GPU": float(request.gpus)}
    if unplaceable([{"GPU": 1.0}] * workers, [per_node] * request.nodes):
        raise ClusterError(
            f"--nodes {request.nodes} --gpus {request.gpus}: {' + '.join(f'{n} {role}' for role, n in groups.items())} "
            f"workers with a GPU each do not fit {request.nodes} x {request.gpus} GPUs. Ask for "
            "more nodes, or set cluster.policy_workers and cluster.reference_workers."
        )


def _on_gpus(config: Config, request: Request) -> bool:
    from dpeer.launcher.gpus import resolved_gpus

    return resolved_gpus(config, request.gpus).cluster.on_gpus


def idle_gpus(config: Config, request: Request) -> int:
    """GPUs asked for that no worker of the recipe uses."""
    from dpeer.launcher.group import wanted

    used = sum(wanted(config).values()) if _on_gpus(config, request) else 0
    return request.nodes * request.gpus - used if used else 0


def write_job(config: Config, request: Request) -> Path:
    """Write job.sh and config.yaml to RUN/slurm; returns the path of the script."""
    refuse_misfit(config, request)
    folder = config.run_dir / "slurm"
    write_text(folder / "config.yaml", resolved_yaml(config))
    script = folder / "job.sh"
    write_text(script, job_script(config, folder / "config.yaml", request))
    return script


def submit(script: Path) -> str:
    """sbatch; returns the number of the job. Raises ClusterError with Slurm's own words."""
    try:
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True)
    except FileNotFoundError:
        raise ClusterError(
            f"sbatch is not on PATH here; the job is in {script}. Submit it on a login node: sbatch {script}"
        ) from None
    if done.returncode:
        raise ClusterError(f"Slurm refused {script}: {done.stderr.strip()}")
    return done.stdout.strip()
