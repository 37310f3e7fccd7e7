"""A sweep's folder in memory: its cells by setting, and the axis along which the settings lie."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpeer.errors import DpeerError
from dpeer.report.run import NAN, Run, read_run
from dpeer.toyworld import world as toyworld

REPLIES = "replies.jsonl"


@dataclass(frozen=True)
class SweepCell:
    """One finished run. `shares`: what the toy world's oracle reads in its replies, `fluency` among them."""

    index: int
    name: str
    label: str
    seed: int
    values: dict[str, Any]
    run: Run
    shares: dict[str, float] = field(default_factory=dict)

    def heldout(self, measure: str) -> dict[str, float]:
        """Dimension -> held-out mean: "loss" (nats per edge) or "accuracy"."""
        certificate = self.run.certificate
        return {d: getattr(mean, measure) for d, mean in certificate.dimensions.items()} if certificate else {}


@dataclass(frozen=True)
class Setting:
    """Cells that differ in their seed only, by rising seed. `x`: place on the axis, nan for a baseline beside it."""

    label: str
    x: float
    series: str
    cells: tuple[SweepCell, ...]

    @property
    def baseline(self) -> bool:
        return math.isnan(self.x)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(c.seed for c in self.cells)

    def over(self, value: Callable[[SweepCell], float]) -> list[float]:
        """A value of every cell."""
        return [value(c) for c in self.cells]


@dataclass(frozen=True)
class Axis:
    """What lies along x: a numeric config key, or, with `key` empty, the settings one after the other."""

    key: str
    ticks: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """E.g. "tolerance", "tolerance of T", "beta"; "setting" for settings in a row."""
        return self.key.replace("constraint.tolerance.", "tolerance of ").rpartition(".")[2] or "setting"

    @property
    def tolerance(self) -> bool:
        return "constraint.tolerance" in self.key


@dataclass(frozen=True)
class SweepData:
    path: Path
    name: str
    axis: Axis
    settings: tuple[Setting, ...]
    planned: int
    """Cells that the sweep has in all."""
    unfinished: tuple[str, ...]

    @property
    def cells(self) -> tuple[SweepCell, ...]:
        return tuple(sorted((c for s in self.settings for c in s.cells), key=lambda c: c.index))

    @property
    def dimensions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(d for c in self.cells for d in c.run.dimensions))

    @property
    def lines(self) -> dict[str, list[Setting]]:
        """Settings along the axis, by series."""
        lines: dict[str, list[Setting]] = {}
        for s in sorted((s for s in self.settings if not s.baseline), key=lambda s: s.x):
            lines.setdefault(s.series, []).append(s)
        return lines

    @property
    def baselines(self) -> list[Setting]:
        return [s for s in self.settings if s.baseline]


def read_sweep(path: Path) -> SweepData:
    """Read the finished cells of a sweep's folder. DpeerError: no sweep there, or no cell of it is finished."""
    try:
        manifest = json.loads((path / "sweep.json").read_text())
    except FileNotFoundError:
        raise DpeerError(
            f"{path} has no sweep.json, so it is not a sweep's folder. Give the folder that `dpeer sweep run` printed."
        ) from None
    finished, unfinished = [], []
    for c in manifest["cells"]:
        run = _finished(path / c["name"])
        if run is None:
            unfinished.append(c["name"])
            continue
        shares = _shares(path / c["name"] / REPLIES)
        finished.append(SweepCell(c["index"], c["name"], c["label"], c["seed"], c["values"], run, shares))
    if not finished:
        raise DpeerError(f"{path}: none of its {len(unfinished)} cells is finished, so there is nothing to report yet.")
    axis = find_axis(
        [c["values"] for c in manifest["cells"]], list(dict.fromkeys(c["label"] for c in manifest["cells"]))
    )
    return SweepData(path, manifest["name"], axis, _settings(finished, axis), len(manifest["cells"]), tuple(unfinished))


def find_axis(values: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Axis:
    """The varied key with at least two finite numbers, a tolerance before others; else the settings in a row."""
    keys = dict.fromkeys(key for v in values for key in v)
    numeric = [k for k in keys if len({v[k] for v in values if k in v and math.isfinite(place(v[k]))}) > 1]
    chosen = next((k for k in numeric if "tolerance" in k), numeric[0] if numeric else "")
    return Axis(chosen, () if chosen else tuple(labels))


def place(value: Any) -> float:
    """Where a config value lies on an axis; nan for what is no finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else NAN


def _settings(cells: Sequence[SweepCell], axis: Axis) -> tuple[Setting, ...]:
    groups: dict[str, list[SweepCell]] = {}
    for cell in cells:
        groups.setdefault(cell.label, []).append(cell)
    settings = []
    for label, group in groups.items():
        values = group[0].values
        x = place(values.get(axis.key)) if axis.key else float(axis.ticks.index(label))
        others = {k: v for k, v in values.items() if k != axis.key} if axis.key else {}
        series = ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in others.items())
        settings.append(Setting(label, x, series, tuple(sorted(group, key=lambda c: c.seed))))
    return tuple(settings)


def _finished(folder: Path) -> Run | None:
    if not (folder / "manifest.json").is_file() or not (folder / "ledger.jsonl").is_file():
        return None
    run = read_run(folder)
    return run if run.get("finished") else None


def _shares(replies: Path) -> dict[str, float]:
    if not replies.is_file():
        return {}
    read = toyworld.share([json.loads(line)["reply"] for line in replies.read_text(encoding="utf-8").splitlines()])
    return {**read.good, "fluency": read.fluency}
