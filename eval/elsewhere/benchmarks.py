"""Published benchmarks by name: each brings its labels into the form of the ratings table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from dpeer.registry import Registry

Benchmark = Callable[[Path], pd.DataFrame]
"""A folder or file as it was published -> ratings, with the columns of `store.schema.RATINGS`.

Raises DataError that names file, row and column. The docstring says the source, and on its first line what it holds.
"""

BENCHMARKS: Registry[Benchmark] = Registry("benchmark", __package__)
