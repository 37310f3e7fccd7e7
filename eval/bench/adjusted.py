"""Rates without the severities of judges: from the rating model, where two judges or more rated the same answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpeer.eval.bench.benchmark import Benchmark
from dpeer.eval.bench.scored import RULE
from dpeer.eval.irt.ability import fair_averages, interval
from dpeer.eval.irt.design import DesignError
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.estimation import estimate
from dpeer.eval.irt.types import Options, Posterior
from dpeer.eval.store.parts import content_id
from dpeer.files import write_text

COLUMNS = ("benchmark", "metric", "model", "rate", "low", "high", "difference", "difference_low", "difference_high")
Found = tuple[list[dict[str, Any]], str]
"""Rows of COLUMNS, and what is to be said of them."""


def usable(ratings: pd.DataFrame) -> pd.DataFrame:
    """The ratings that a fit takes: those of judges that read, not those of a rule, whose errors follow words."""
    return ratings[ratings["judge_family"] != RULE]


def adjusted(
    benchmark: Benchmark,
    ratings: pd.DataFrame,
    base: str,
    scale: tuple[int, ...],
    cache: Path,
    options: Options | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Found:
    """Per metric and model the rate that judges of average severity would give (people, where abilities are on their
    scale, see `fair_averages`), over the spread of items, with the central 95 % of the draws, and its difference to
    that of the base.

    Nothing, and why, where there are not two judges or the ratings cannot tell models, judges and items apart. What
    was found is kept in `cache`, and not computed again for the same ratings.
    """
    options = options or Options()
    rated = usable(ratings)
    if (judges := rated.loc[rated["status"] == "ok", "judge"].nunique()) < 2:
        return (
            [],
            f"{benchmark.title}: no adjusted rates, which need two judges (there {'is 1' if judges else 'is none'}).",
        )
    metrics = [(m.name, *m.adjusted) for m in benchmark.metrics if m.adjusted]
    what = [[n, d, sorted(w.items())] for n, d, w in metrics]
    told = rated[["rating_id", "status", "score", "model", "judge"]].astype(str).to_numpy().tolist()
    key = content_id(ratings=sorted(told), options=repr(options), base=base, metrics=what, scale=list(scale))
    if (kept := _kept(cache, key)) is not None:
        return kept
    try:
        result = estimate(rated, base, options=options, scale=scale, progress=progress)
    except (DesignError, IrtError) as error:
        return [], f"{benchmark.title}: no adjusted rates. {error}"
    assert result.posterior is not None
    rows = [
        row | {"benchmark": benchmark.name, "metric": name}
        for name, dimension, worth in metrics
        for row in _rates(result.posterior, dimension, [worth.get(score, 0.0) for score in scale], base)
    ]
    said = (
        ""
        if result.gate["green"]
        else f"{benchmark.title}: adjusted rates are no claims: {'; '.join(result.gate['reasons'])}."
    )
    write_text(cache, json.dumps({"key": key, "rows": rows, "said": said}, indent=1) + "\n")
    return rows, said


def _kept(cache: Path, key: str) -> Found | None:
    try:
        told = json.loads(cache.read_text(encoding="utf-8"))
        return (told["rows"], told["said"]) if told["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):  # what is made from ratings can be made again
        return None


def _rates(posterior: Posterior, dimension: str, worth: list[float], base: str) -> list[dict[str, Any]]:
    r = posterior.ratings
    if dimension not in r.dimensions:
        return []
    draws = fair_averages(posterior, worth)[:, :, r.dimensions.index(dimension)]
    against = draws - draws[:, [r.models.index(base)]]
    rate, other = (np.stack(interval(x)) for x in (draws, against))
    names = ("rate", "low", "high", "difference", "difference_low", "difference_high")
    return [
        {"model": model} | dict(zip(names, map(float, (*rate[:, m], *other[:, m])), strict=True))
        for m, model in enumerate(r.models)
    ]
