"""The data set that a loop makes for itself with `dpeer build`, before its first round."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpeer.config_io import load_section
from dpeer.errors import ConfigError
from dpeer.launcher.recipe import BUILD, beside

if TYPE_CHECKING:
    from dpeer.eval.build.spec import BuildSpec

SPLITS = {"train": "train", "dual": "dual", "heldout": "test"}
"""What a training recipe calls the splits of a build."""


def build_spec(name: str, loop_file: Path) -> BuildSpec:
    from dpeer.eval.build.spec import BuildSpec

    return load_section(BuildSpec, beside(name, loop_file, BUILD), shipped=BUILD)


def places(spec: BuildSpec, named: set[str]) -> dict[str, str]:
    """Where the splits will lie, by key of `data`, without dual or held-out records that the loop file has `named`.

    Raises ConfigError where a split would be empty."""
    wanted = {key: split for key, split in SPLITS.items() if key == "train" or key not in named}
    for key, split in wanted.items():
        if not any(counts.of(split) for counts in spec.wanted.values()):
            raise ConfigError(
                f"build: {spec.name} makes no records of its split {split}, which data.{key} of each round needs. Set "
                f"records.{split} in the spec, or give data.{key} in `changes`, such as 10%."
            )
    parquet = spec.folder / "parquet"
    return {key: f"{parquet}@{split}" for key, split in wanted.items()}


def make(spec: BuildSpec, console: Console) -> None:
    """Make the data set, or what a stopped build left to make. Raises ConfigError where no record came of it."""
    from dpeer.eval.build.build import build, refuse_nothing_made
    from dpeer.eval.build.files import write
    from dpeer.eval.build.summary import show
    from dpeer.launcher.cluster import connect

    built = build(spec, partial(connect, spec.evaluation.farm.address), console=console)
    write(built)
    show(built, console)
    refuse_nothing_made(built)
