"""heldout.safetensors: a run's held-out margins, from which its certificate can be computed again without a model."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dpeer.errors import DpeerError
from dpeer.files import follow_umask
from dpeer.objective.controllers import Memory
from dpeer.objective.heldout import HeldoutEdges

FORM = "form."


@dataclass(frozen=True, eq=False)
class Heldout:
    """edges: as `certify` takes them; dimensions: D names; form: what the constraint form remembers of training."""

    edges: HeldoutEdges
    dimensions: tuple[str, ...]
    form: Memory


def write_heldout(path: Path, heldout: Heldout) -> None:
    """Write the file whole or not at all."""
    edges = heldout.edges
    assert edges.masks is not None
    remembered = {f"{FORM}{name}": values.double().cpu().contiguous() for name, values in heldout.form.items()}
    tensors = {"margins": edges.margins, "dims": edges.dims, "records": edges.records, "masks": edges.masks}
    names = {"dimensions": json.dumps(heldout.dimensions), "mask_names": json.dumps(edges.mask_names)}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        save_file(tensors | remembered, temporary, names)
        follow_umask(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_heldout(path: Path) -> Heldout | None:
    """What `write_heldout` wrote; None without the file. DpeerError: it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            t = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            names = {key: tuple(json.loads(value)) for key, value in file.metadata().items()}
        edges = HeldoutEdges(t["margins"], t["dims"], t["records"], t["masks"], names["mask_names"])
        form = {name.removeprefix(FORM): values for name, values in t.items() if name.startswith(FORM)}
        return Heldout(edges, names["dimensions"], form)
    except (SafetensorError, KeyError, ValueError, AttributeError) as error:
        raise DpeerError(
            f"{path} is not readable ({error}). Remove it: certificate.json stays as it is, and only corrections for a "
            "choice among runs need this file."
        ) from error
