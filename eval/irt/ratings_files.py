"""Ratings tables as files: which columns matter, and how CSV, Parquet and folders of parts are read."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dpeer.errors import DataError
from dpeer.eval.store.schema import OTHERS
from dpeer.integrity import Damaged, verify

NAMES = ("model", "item", "dimension", "judge")
GROUP = "item_group"
"""Column that says of which kind an item is; ratings of `dpeer judge` have none, tables made elsewhere may."""
TEXTS = (
    *NAMES,
    *("rating_id", "response_id", "criterion", "status", "order"),
    *("model_family", "judge_family", "model_hash", "judge_hash", "rubric_hash", "mode", GROUP),
    *("other_model", "other_response_id", "other_model_family"),
)


def own_form(path: Path) -> bool:
    """Whether `encode` reads it: a folder, or a CSV or Parquet file with the columns of a table of ratings. What cannot
    be read is left to that."""
    if path.is_dir() or not path.exists():
        return True
    try:
        if path.suffix.lower() == ".csv":
            columns = list(pd.read_csv(path, nrows=0, dtype=str))
        elif path.suffix == ".parquet":
            import pyarrow.parquet as pq

            columns = pq.read_schema(path).names
        else:
            return False
    except (OSError, ValueError):  # Arrow's and the parser's are ValueErrors
        return True
    return {*NAMES, "score"} <= set(columns)


def judged(path: Path) -> bool:
    """Whether `dpeer judge` or `dpeer ratings import` wrote it: a folder, or Parquet with an id for each rating."""
    if path.is_dir() or path.suffix != ".parquet":
        return path.is_dir()
    import pyarrow.parquet as pq

    return {"rating_id", "status"} <= set(pq.read_schema(path).names)


def read(path: Path) -> pd.DataFrame:
    """Columns that matter of a file, or of all Parquet parts below a folder."""
    wanted = {*TEXTS, *OTHERS, "score", "sample", "response_length", "prompt_tokens", "output_tokens"}
    if path.suffix.lower() == ".csv" and path.is_file():
        kinds, empty = dict.fromkeys(TEXTS, str), {"score": [""], "response_length": [""]}
        try:
            return pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=empty)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from error
    files = sorted(path.rglob("[!.]*.parquet")) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise DataError(f"{path}: no ratings here; give a CSV or Parquet file, or the ratings folder of `dpeer judge`")
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    for file in files:
        try:
            verify(file.read_bytes())
        except Damaged as error:
            raise DataError(
                f"{file} {error}. Restore it from a copy, or delete it: `dpeer judge RECIPE` makes it again, with any "
                "ratings that are lost."
            ) from error
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    try:
        schema = pa.unify_schemas([pq.read_schema(file) for file in files], promote_options="permissive")
        whole = set(NAMES) <= set(schema.names)  # or the names of folders say the rest
        rows = ds.dataset(
            files, format="parquet", schema=schema if whole else None, partitioning=None if whole else "hive"
        )
        return rows.to_table(columns=[c for c in rows.schema.names if c in wanted]).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error
