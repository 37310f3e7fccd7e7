"""Fits in a bundle: tables, gate, claims and page from the draws, and the ratings that the draws are of."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpeer.integrity import Damaged

if TYPE_CHECKING:
    from dpeer.eval.irt.types import Posterior, Ratings


def pages(posterior: Posterior, folder: Path, asked: Mapping[str, Any]) -> None:
    """Write tables, figures and page of a fit. asked: base, smallest and family, where they were given."""
    from dpeer.eval.irt.claims import Claims
    from dpeer.eval.irt.tables import tabulate
    from dpeer.launcher.fitting import page_of

    claims = Claims(float(asked.get("smallest_effect") or 0), tuple(map(str, asked.get("family") or ())))
    page_of(tabulate(posterior, asked.get("base"), None, claims), folder)


def wanted(folder: Path) -> dict[str, Any]:
    """What a fit's last report was asked for; empty where it has none."""
    path = folder / "tables" / "facts.json"
    facts = json.loads(path.read_bytes()) if path.exists() else {}
    return {key: facts[key] for key in ("base", "smallest_effect", "family") if key in facts}


def of_table(ratings: Ratings, table: Path) -> list[str]:
    """In which parts the ratings of a fit are not those of a table; empty where they are the same."""
    from dpeer.eval.irt.encode import encode
    from dpeer.eval.irt.ratings_files import read

    rows = read(table)
    lost, there = ratings.unrated, set(rows["dimension"])
    judges = {*ratings.judges, *lost.get("judge", ())}
    dimensions = None if lost.get("dimension") else [d for d in ratings.dimensions if d in there]
    theirs = encode(rows, dimensions, ratings.scale, tuple(sorted(set(rows["judge"]) - judges)))
    theirs = replace(theirs, tokens=ratings.tokens, price=ratings.price, currency=ratings.currency)
    return [*_differing(ratings, theirs), *_differing(ratings.comparisons, theirs.comparisons, "comparisons.")]


def _differing(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    wrong = []
    for field in fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(a, np.ndarray):
            same = a.shape == b.shape and np.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)
        else:
            same = field.name in ("comparisons", "notes", "unrated") or a == b
        if not same:
            wrong.append(f"{prefix}{field.name}")
    return wrong


def refuse_unfolding(path: Path) -> None:
    """Damaged: arrays that would be larger than their file, or hold objects, which only a forger stores."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise Damaged("holds arrays that are larger than itself")
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > path.stat().st_size:
                raise Damaged(f"holds {member.filename} compressed, and fits are not")
            with archive.open(member) as stream:
                form: Any = np.lib.format
                first = form.read_magic(stream) == (1, 0)
                shape, _, kind = (form.read_array_header_1_0 if first else form.read_array_header_2_0)(stream)
                if kind.hasobject or kind.kind not in "fiub":
                    raise Damaged(f"holds {member.filename} of type {kind}, and draws are numbers")
                if min(shape, default=0) < 0 or int(np.prod(shape, dtype=object)) * kind.itemsize > member.file_size:
                    raise Damaged(f"holds {member.filename} with more elements than bytes")


def refuse_misshapen(posterior: Posterior) -> None:
    """Damaged: draws whose axes are not the names beside them, or ratings that point outside these."""
    from dpeer.eval.irt.types import AXES

    r = posterior.ratings
    sizes = {axis: len(names) for axis, names in r.names.items()}
    for name, axes in AXES.items():
        if name in posterior.draws and posterior.draws[name].shape[2:] != tuple(sizes[a] for a in axes):
            raise Damaged(f"holds draws of {name} whose shape is not that of the names beside them")
    ends = {"response_model": "model", "response_item": "item", "dimension": "dimension", "judge": "judge",
            "criterion": "criterion"}  # fmt: skip
    for name, axis in ends.items():
        if not _within(getattr(r, name), sizes[axis]):
            raise Damaged(f"holds ratings whose {name} is no {axis}")
    if not _within(r.response, len(r.response_model)) or not _within(r.category, len(r.scale)):
        raise Damaged("holds ratings of no response, or off the scale")
    if {len(getattr(r, n)) for n in ("response", "dimension", "criterion", "judge", "category")} != {len(r)}:
        raise Damaged("holds ratings of unequal length")


def _within(values: np.ndarray, size: int) -> bool:
    return values.ndim == 1 and (not len(values) or (int(values.min()) >= 0 and int(values.max()) < size))
