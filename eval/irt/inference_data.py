"""A posterior as ArviZ takes it: an xarray DataTree with named dimensions and coordinates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dpeer.errors import DpeerError
from dpeer.eval.irt.types import AXES, THINNED, Posterior

SAMPLE_STATS = {"divergent": "diverging", "energy": "energy", "treedepth": "tree_depth", "stepsize": "step_size"}
"""Names of the sampler's columns: ours and ArviZ's."""


def inference_data(posterior: Posterior | None) -> Any:
    """xarray.DataTree with the groups posterior, sample_stats and observed_data. Needs arviz-base.

    Raises DpeerError where there are no draws or the package is missing.
    """
    if posterior is None:
        raise DpeerError("this result holds tables without draws; use `dpeer.eval.irt.fit.load` on the fit's folder")
    try:
        from arviz_base import from_dict
    except ModuleNotFoundError:
        raise DpeerError("ArviZ needs the package arviz-base: pip install 'dpeer[arviz]'") from None
    ratings = posterior.ratings
    groups = {
        "posterior": {name: values for name, values in posterior.draws.items() if name not in THINNED},
        "sample_stats": {SAMPLE_STATS[n]: v for n, v in posterior.sampler.items() if n in SAMPLE_STATS},
        "observed_data": {"score": np.asarray(ratings.scale)[ratings.category]},
    }
    coords = ratings.names | {"dimension_": ratings.dimensions}
    dims = {name: list(axes) for name, axes in AXES.items()}
    dims |= {"correlation": ["dimension", "dimension_"], "score": ["rating"]}  # no axis twice
    return from_dict(groups, coords={axis: list(names) for axis, names in coords.items()}, dims=dims)


def write_netcdf(posterior: Posterior, path: Path) -> Path:
    """The same as a netCDF file with a group each, which `arviz.from_netcdf` reads; returns the path.

    Raises DpeerError where a package is missing.
    """
    try:
        import h5netcdf  # noqa: F401
    except ModuleNotFoundError:
        raise DpeerError("netCDF files need the package h5netcdf: pip install 'dpeer[arviz]'") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        inference_data(posterior).to_netcdf(temporary, engine="h5netcdf")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
