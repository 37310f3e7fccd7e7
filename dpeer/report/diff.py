"""Why two runs differ: config, data, model and reference, code and versions, and where the ledgers first diverge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpeer import chain
from dpeer.errors import DpeerError
from dpeer.integrity import Damaged, parse_state
from dpeer.training.run_dir import differences, may_change

PARTS = {
    "config": ("config",),
    "data": ("data",),
    "model and reference": ("model", "reference"),
    "code and versions": ("git", "versions"),
}
"""Heading -> the manifest's keys under it."""


@dataclass(frozen=True)
class Difference:
    """`matters`: whether it can change what a step computes."""

    part: str
    key: str
    a: Any
    b: Any
    matters: bool


@dataclass(frozen=True)
class Divergence:
    """The first ledger step in which any field differs, and all fields of it that do: (field, a, b)."""

    step: int
    fields: list[tuple[str, Any, Any]]


@dataclass(frozen=True)
class RunDiff:
    """`steps`: length of either ledger. `ledger`: where any field first differs; `policy`: where anything does that the
    policy computed, constraints and multipliers apart, which differ from the start where tolerances do."""

    differences: list[Difference]
    steps: tuple[int, int]
    ledger: Divergence | None
    policy: Divergence | None

    @property
    def same(self) -> bool:
        settings = any(d.matters for d in self.differences)
        return not settings and self.ledger is None and self.steps[0] == self.steps[1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe but for infinities."""
        return {
            "same": self.same,
            "differences": [asdict(d) for d in self.differences],
            "steps": list(self.steps),
            "ledger": asdict(self.ledger) if self.ledger else None,
            "policy": asdict(self.policy) if self.policy else None,
        }


def diff_runs(a: Path, b: Path) -> RunDiff:
    """Compare two run folders. DpeerError: one of them has no readable manifest or ledger."""
    manifests = [_manifest(path) for path in (a, b)]
    free = ("name", *set.intersection(*(set(may_change(_training(m))) for m in manifests)))
    differences = [
        Difference(part, key, old, new, part != "config" or not key.startswith(free))
        for part, names in PARTS.items()
        for name in names
        for key, old, new in _under(name, manifests[0].get(name), manifests[1].get(name))
    ]
    one, other = _ledger(a), _ledger(b)
    return RunDiff(differences, (len(one), len(other)), _divergence(one, other), _divergence(one, other, _computed))


def _divergence(
    a: list[dict[str, Any]], b: list[dict[str, Any]], counts: Callable[[str], bool] = lambda field: True
) -> Divergence | None:
    for one, other in zip(a, b, strict=False):
        if fields := [f for f in differences(one, other) if counts(f[0])]:
            return Divergence(int(one["step"]), fields)
    return None


def _computed(field: str) -> bool:
    return not field.startswith(("constraints.", "dual_digest")) and not field.endswith(".weight")


def largest(divergence: Divergence) -> tuple[str, Any, Any]:
    """The field that differs most relative to its size; fields that are not both numbers come first."""

    def gap(row: tuple[str, Any, Any]) -> float:
        _, old, new = row
        if not all(isinstance(v, int | float) for v in (old, new)):
            return math.inf
        return float(abs(new - old) / max(abs(old), abs(new)))

    return max(divergence.fields, key=gap)


def _training(manifest: dict[str, Any]) -> dict[str, Any]:
    config = manifest.get("config")
    return dict(config.get("training") or {}) if isinstance(config, dict) else {}


def _under(name: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Differences below one key of the manifest; those of the config by their recipe key."""
    return differences(old, new, "" if name == "config" else name)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        return parse_state(path.read_bytes())
    except FileNotFoundError:
        raise DpeerError(f"{path}: not there. Give two run folders, as `dpeer train` printed them.") from None
    except Damaged as error:
        raise DpeerError(f"{path}: damaged ({error}); the run cannot be compared. Restore it from a copy.") from None


def _ledger(folder: Path) -> list[dict[str, Any]]:
    """The whole lines; a run that is being written may end in half of one. DpeerError: one has changed since."""
    path = folder / "ledger.jsonl"
    lines, manifest = chain.whole_lines(path), _manifest(folder)
    number = next(chain.broken(lines, manifest.get("chain")), None)
    if number or not chain.complete(lines, manifest):
        what = f"line {number} has changed since it was written" if number else "its last lines are missing"
        raise DpeerError(
            f"{path}: {what}; the run cannot be compared. Restore the file from a copy; `dpeer fsck` says what else "
            "is damaged."
        )
    entries = []
    for line in lines:
        try:
            entries.append({key: value for key, value in json.loads(line).items() if key != "chain"})
        except (ValueError, AttributeError):
            break
    return entries
