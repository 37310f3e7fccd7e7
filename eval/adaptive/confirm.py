"""The fit of `dpeer irt fit` that has the last word on the contrasts, each from where the one before it ended."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dpeer.eval.adaptive.task import Task
from dpeer.eval.irt.design import DiscriminationAliased
from dpeer.eval.irt.diagnostics import missing_draws
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.estimation import estimate
from dpeer.eval.irt.fit_folder import load, save
from dpeer.eval.irt.restart import continues
from dpeer.eval.irt.result import Result
from dpeer.eval.irt.types import Floats, Options, Posterior


@dataclass(frozen=True, slots=True, eq=False)
class Last:
    """What the last fit says of the contrasts."""

    mean: Floats  # [D, M]
    sd: Floats  # [D, M]
    against_claims: list[str]
    sampled: bool
    """Whether its chains passed their diagnostics: others decide nothing."""


def posterior(what: Task, ratings: pd.DataFrame, scale: Sequence[int], folder: Path, number: int) -> Last:
    """The last fit.

    Fits are kept in `folder` by the number of their round: chains go on from the newest one of an earlier round, read
    from the disk, so that a run that was killed anywhere finds the same as one that was not.
    """
    base = what.models[what.design.base]
    places = _earlier(folder, number)
    start = _read(places[-1]) if places else None

    def fitted(options: Options) -> Result:
        fits = start is not None and continues(start, encode(ratings, None, scale), options)
        return estimate(ratings, base, options=options, scale=scale, start_from=start if fits else None)

    try:
        result = fitted(Options())
    except DiscriminationAliased:
        result = fitted(Options(model="rasch"))
    assert result.posterior is not None
    save(result.posterior, folder / f"fit-{number:03d}")
    for old in places[:-1]:  # the newest stays: this round may have to be done again
        shutil.rmtree(old)
    r = result.posterior.ratings
    theta = result.posterior.flat("theta")
    contrast = theta - theta[:, [r.models.index(base)]]
    shape = (len(what.dimensions), len(what.models))
    mean, sd = np.zeros(shape), np.full(shape, np.inf)
    at = np.ix_([what.dimensions.index(d) for d in r.dimensions], [what.models.index(m) for m in r.models])
    mean[at], sd[at] = contrast.mean(axis=0).T, contrast.std(axis=0).T
    return Last(mean, sd, list(result.gate["reasons"]), missing_draws(result.posterior) == 0)


def _earlier(folder: Path, number: int) -> list[Path]:
    """Finished fits of earlier rounds, the newest last."""
    finished = sorted(path.parent for path in folder.glob("fit-*/manifest.json"))
    return [path for path in finished if path.name < f"fit-{number:03d}"]


def _read(place: Path) -> Posterior | None:
    """None where it is damaged: it only saves time."""
    try:
        return load(place)
    except IrtError:
        return None
