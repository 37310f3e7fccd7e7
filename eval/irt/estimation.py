"""Ratings in, abilities out: the one door, for Python and for the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from dpeer.errors import ConfigError
from dpeer.eval.irt.claims import Claims, in_family
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit, load, save
from dpeer.eval.irt.result import Result
from dpeer.eval.irt.tables import tabulate
from dpeer.eval.irt.types import Options, Posterior, Ratings

CSV, CSV_FILES = "csv", "model-*.csv"


def estimate(
    table: pd.DataFrame | Path | str,
    base: str | None = None,
    *,
    options: Options | None = None,
    wanted: Claims | None = None,
    dimensions: Sequence[str] | None = None,
    scale: Sequence[int] | None = None,
    without: Sequence[str] = (),
    folder: Path | str | None = None,
    start_from: Path | str | Posterior | None = None,
    keep_csv: bool = False,
    unchecked: bool = False,
    started: Callable[[Ratings], None] | None = None,
    warn: Callable[[str], None] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Result:
    """Abilities of models from ratings, with judges' severities, items' difficulties and all other terms of the model.

    table: frame, CSV or Parquet file or folder with the columns model, item, dimension, judge and score (see `encode`)
    base: model that the others are compared with; default: the first
    wanted: smallest effect of interest, and the contrasts that are claimed together; default: all, of any size
    scale: the possible scores; default: all whole numbers from the least to the greatest score
    without: judges whose ratings are left out
    folder: keep the draws there, for `dpeer irt report` and as an anchor of later fits
    start_from: an earlier fit of the same models, judges, dimensions and terms to fewer ratings, or its folder; chains
        go on from there, which takes a fraction of the time; the posterior and the gate are the same
    keep_csv: keep CmdStan's own files in the subfolder csv of `folder`, for `cmdstanpy.from_csv`
    unchecked: leave out the identification check; the gate of such a result is never green
    started, warn, progress: told the encoded ratings, each weakness of the design, and (what, fraction done)

    Raises DataError for a fault in the table, ConfigError for an unknown base, a DesignError (see `design.check`) where
    the ratings cannot tell the models apart, IrtError where there is nothing to estimate or sampling fails.
    """
    if keep_csv and folder is None:
        raise ConfigError("keep_csv has no place to keep the files; give `folder` too, or leave it out")
    options = options or Options()
    ratings = encode(table, dimensions or None, scale, without)
    if base is not None and base not in ratings.models:
        raise ConfigError(f"base {base} has no usable rating; choose one of {', '.join(ratings.models)}")
    in_family(ratings, base or ratings.models[0], wanted or Claims())  # a wrong name is told before hours of sampling
    if started:
        started(ratings)
    start = load(Path(start_from)) if isinstance(start_from, Path | str) else start_from
    fitted = partial(fit, ratings, options, progress, unchecked=unchecked, warn=warn, start=start)
    if folder is None:
        return tabulate(fitted(), base, wanted=wanted)
    folder = Path(folder)
    new = folder / f".{CSV}"
    shutil.rmtree(new, ignore_errors=True)  # of a fit that was killed
    posterior = fitted(keep_csv=new if keep_csv else None, keep=partial(save, folder=folder))
    for old in (folder / CSV).glob(CSV_FILES):  # of an earlier fit, whose draws go now
        old.unlink()
    save(posterior, folder)
    if keep_csv and new.is_dir():
        (folder / CSV).mkdir(exist_ok=True)
        for file in new.glob(CSV_FILES):
            file.rename(folder / CSV / file.name)
        shutil.rmtree(new, ignore_errors=True)
    return tabulate(posterior, base, wanted=wanted)
