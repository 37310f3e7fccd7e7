"""What `model.stan` says at given values of its parameters."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpeer.eval.irt.cmdstan import compile_model
from dpeer.eval.irt.stan_data import Problem
from dpeer.eval.irt.types import Floats, Options


def at_start(problem: Problem, start: dict[str, Any], options: Options, folder: Path) -> dict[str, Floats]:
    """Everything that the program writes at the given values: one draw, with steps too short to move."""
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps(problem.data))
    (folder / "start.json").write_text(json.dumps(start))
    path = folder / "draw.csv"
    command = [
        str(compile_model(lambda text: None)),
        *("id=1", "random", "seed=1", "data", f"file={folder / 'data.json'}", f"init={folder / 'start.json'}"),
        *("output", f"file={path}", "sig_figs=12", "method=sample", "num_samples=1", "num_warmup=0"),
        *("adapt", "engaged=0", "algorithm=hmc", "engine=nuts", "max_depth=1", "stepsize=1e-12"),
    ]
    environment = os.environ | {"STAN_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    return blocks_of(pd.read_csv(path, comment="#", float_precision="round_trip").iloc[0])


def gradients(problem: Problem, start: dict[str, Any], folder: Path) -> tuple[Floats, Floats]:
    """Derivatives of the log density by all parameters: the program's, and finite differences of the density."""
    (folder / "data.json").write_text(json.dumps(problem.data))
    (folder / "start.json").write_text(json.dumps(start))
    command = [
        *(
            str(compile_model(lambda text: None)),
            "data",
            f"file={folder / 'data.json'}",
            f"init={folder / 'start.json'}",
        ),
        *("output", f"file={folder / 'out.csv'}", "diagnose", "test=gradient", "error=1e9"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    rows = [line.split() for line in done.stdout.partition("param idx")[2].splitlines()[1:]]
    found = np.array([[float(x) for x in row] for row in rows if len(row) == 5])
    assert found.size, done.stdout[-500:] + done.stderr
    return found[:, 2], found[:, 3]


def blocks_of(row: pd.Series) -> dict[str, Floats]:
    """[1, ...] each; the columns of an array are named `block.i.j`."""
    found: dict[str, Floats] = {}
    for name, part in row.groupby([column.split(".")[0] for column in row.index], sort=False):
        places = [tuple(int(i) - 1 for i in column.split(".")[1:]) or (0,) for column in part.index]
        found[str(name)] = np.zeros((1, *(np.max(places, axis=0) + 1)))
        for place, value in zip(places, part, strict=True):
            found[str(name)][(0, *place)] = value
    return found
