"""A fit on disk: manifest.json (names, options, facts) and draws.npz (ratings and draws as arrays)."""

from __future__ import annotations

import hashlib
import os
import secrets
import zipfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.types import THINNED, Comparisons, Options, Posterior, Ratings
from dpeer.files import SILENT_S, clear_temporary
from dpeer.integrity import read_state, write_state

FORMAT = 1
SINGLE = THINNED
"""Draws that are stored in single precision."""
_NAMES = (
    *("models", "items", "judges", "dimensions", "criteria", "scale"),
    *("statuses", "status_by_judge", "unrated", "notes", "people", "tokens", "price", "currency", "groups", "sources"),
)


def save(posterior: Posterior, folder: Path) -> None:
    """Write `folder`/manifest.json and draws.npz; an interrupted save leaves no manifest, or the former fit."""
    folder.mkdir(parents=True, exist_ok=True)
    clear_temporary(folder, silent_s=SILENT_S)
    ratings = posterior.ratings
    apart = (*_NAMES, "comparisons")
    arrays = {f"ratings.{f.name}": getattr(ratings, f.name) for f in fields(Ratings) if f.name not in apart}
    arrays |= {f"comparisons.{f.name}": getattr(ratings.comparisons, f.name) for f in fields(Comparisons)}
    for name, values in posterior.draws.items():
        arrays[f"draws.{name}"] = values.astype(np.float32) if name in SINGLE else values
    arrays |= {f"sampler.{name}": values for name, values in posterior.sampler.items()}
    arrays |= {f"left.{name}": values for name, values in posterior.left.items()}
    draws, manifest = folder / "draws.npz", folder / "manifest.json"
    new_draws = draws.with_name(f".{draws.name}.{secrets.token_hex(8)}.tmp")
    try:
        with new_draws.open("wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        manifest_data = {
            "format": FORMAT,
            "sha256": _sha256(new_draws),
            "ratings": {name: getattr(ratings, name) for name in _NAMES},
            "options": asdict(posterior.options),
            "facts": posterior.facts,
        }
        manifest.unlink(missing_ok=True)
        os.replace(new_draws, draws)
        write_state(manifest, manifest_data)
    finally:
        new_draws.unlink(missing_ok=True)


def load(folder: Path) -> Posterior:
    """The fit that `save` wrote; raises IrtError where it is missing, unfinished or damaged."""
    if not (folder / "manifest.json").exists():
        raise IrtError(f"{folder}: no finished fit here (no manifest.json); run `dpeer irt fit`")
    manifest_data = read_state(folder / "manifest.json", "Fit again.", IrtError)
    if manifest_data.get("format") != FORMAT:
        raise IrtError(f"{folder}: not a fit of this version of dpeer (format {FORMAT}); fit again")
    try:
        if _sha256(folder / "draws.npz") != manifest_data["sha256"]:
            raise IrtError(
                f"{folder}/draws.npz does not belong to its manifest; it was changed or cut short: fit again"
            )
        with np.load(folder / "draws.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, zipfile.BadZipFile) as error:
        raise IrtError(f"{folder}/draws.npz cannot be read ({error}); fit again") from error

    def part(prefix: str) -> dict[str, Any]:
        return {n.removeprefix(f"{prefix}."): v for n, v in arrays.items() if n.startswith(f"{prefix}.")}

    names = manifest_data["ratings"]
    tuples: dict[str, Any] = {n: tuple(names[n]) for n in ("models", "items", "judges", "dimensions", "scale")}
    ratings = Ratings(
        **tuples,
        criteria=tuple((d, c) for d, c in names["criteria"]),
        statuses=names["statuses"],
        status_by_judge=names["status_by_judge"],
        unrated={kind: tuple(lost) for kind, lost in names.get("unrated", {}).items()},
        notes=tuple(names.get("notes", ())),
        people=tuple(names.get("people", ())),
        tokens=names.get("tokens", {}),
        price=names.get("price", {}),
        currency=names.get("currency", ""),
        groups=tuple(names.get("groups", ())),
        sources=names.get("sources", {}),
        comparisons=Comparisons(**part("comparisons")),
        **part("ratings"),
    )
    draws = {n: v.astype(np.float64) for n, v in part("draws").items()}
    options, facts = Options(**manifest_data["options"]), manifest_data["facts"]
    return Posterior(ratings, options, draws, part("sampler"), facts, part("left"))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
