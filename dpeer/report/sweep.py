"""A sweep's folder in memory: its cells by setting, and the axis along which the settings lie."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpeer import chain
from dpeer.errors import DpeerError
from dpeer.integrity import Damaged, parse_state
from dpeer.report.run import NAN, HeldoutMean, Run, read_run
from dpeer.toyworld import world as toyworld

if TYPE_CHECKING:
    from dpeer.config import Objective
    from dpeer.heldout_file import Heldout

REPLIES = "replies.jsonl"


@dataclass(frozen=True)
class SweepCell:
    """One finished run. `shares`: what the toy world's oracle reads in its replies, `fluency` among them.
    `reference`: the cell whose export is its reference model."""

    index: int
    name: str
    label: str
    seed: int
    values: dict[str, Any]
    run: Run
    shares: dict[str, float] = field(default_factory=dict)
    reference: SweepCell | None = None

    def heldout(self, measure: str) -> dict[str, float]:
        """Dimension -> held-out mean: "loss" (nats per edge) or "accuracy"."""
        return {d: getattr(mean, measure) for d, mean in self.means.items()}

    @cached_property
    def means(self) -> dict[str, HeldoutMean]:
        """Held-out means by dimension, from the margins of `margins` where those differ from the certificate's."""
        certificate = self.run.certificate
        if self.reference is None or certificate is None or (known := self.margins) is None:
            return certificate.dimensions if certificate else {}
        from dpeer.objective.heldout import heldout_means

        rows = heldout_means(known.edges, self.objective, known.dimensions)
        return {d: HeldoutMean.model_validate(row) for d, row in rows.items()}

    @cached_property
    def margins(self) -> Heldout | None:
        """Held-out margins, measured from the reference that cells without a `reference` have; None where they are not
        on disk. As r = beta (log pi - log pi_ref), margins add up along a chain of references.

        DpeerError: the file is damaged.
        """
        from dpeer.heldout_file import read_heldout

        own = read_heldout(self.run.path / "heldout.safetensors")
        if own is None or self.reference is None:
            return own
        theirs = self.reference.margins
        if theirs is None or not theirs.edges.same_pairs(own.edges):
            return None
        ratio = self.objective.beta / self.reference.objective.beta
        return replace(own, edges=replace(own.edges, margins=own.edges.margins + ratio * theirs.edges.margins))

    @property
    def objective(self) -> Objective:
        from dpeer.config import Objective

        return Objective.model_validate(self.run.get("config.objective", {}))


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
        manifest = parse_state((path / "sweep.json").read_bytes())
    except FileNotFoundError:
        raise DpeerError(
            f"{path} has no sweep.json, so it is not a sweep's folder. Give the folder that `dpeer sweep run` printed."
        ) from None
    except Damaged as error:
        raise DpeerError(f"{path / 'sweep.json'} {error}. Delete it; `dpeer sweep run FILE` writes it again.") from None
    finished, unfinished = _cells(path, manifest["cells"])
    if not finished:
        raise DpeerError(f"{path}: none of its {len(unfinished)} cells is finished, so there is nothing to report yet.")
    grid = manifest.get("grid")  # not in the manifests of earlier versions
    values = [{k: v for k, v in c["values"].items() if grid is None or k in grid} for c in manifest["cells"]]
    axis = find_axis(values, list(dict.fromkeys(c["label"] for c in manifest["cells"])))
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


def _cells(folder: Path, entries: Sequence[Mapping[str, Any]]) -> tuple[list[SweepCell], list[str]]:
    """Finished cells of a manifest, each with its `reference`, and the names of the others."""
    runs = {c["name"]: run for c in entries if (run := _finished(folder / c["name"]))}
    by_name = {c["name"]: c for c in entries}
    exports = {str(Path(run.get("config.output_dir", ".")) / name / "export"): name for name, run in runs.items()}

    def cell(name: str) -> SweepCell:
        c, run = by_name[name], runs[name]
        reference = exports.get(str(run.get("config.model.reference_path") or run.get("config.model.path")))
        shares = _shares(folder / name / REPLIES)
        return SweepCell(
            c["index"], name, c["label"], c["seed"], c["values"], run, shares, cell(reference) if reference else None
        )

    return [cell(name) for name in runs], [name for name in by_name if name not in runs]


def _finished(folder: Path) -> Run | None:
    if not (folder / "manifest.json").is_file() or not (folder / "ledger.jsonl").is_file():
        return None
    run = read_run(folder)
    return run if run.get("finished") else None


def _shares(replies: Path) -> dict[str, float]:
    if not replies.is_file():
        return {}
    lines = chain.whole_lines(replies)
    if next(chain.broken(lines), None):
        raise DpeerError(f"{replies} has changed since it was written. Delete it; `dpeer sweep run` samples it again.")
    read = toyworld.share([json.loads(line)["reply"] for line in lines])
    return {**read.good, "fluency": read.fluency}
