"""Reads a run folder. A missing or damaged piece becomes a note for the reader; only a missing ledger is an error."""

from __future__ import annotations

import math
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from dpeer import chain
from dpeer.errors import DpeerError
from dpeer.integrity import Damaged, parse_state

NAN = math.nan
Number = Annotated[float, BeforeValidator(lambda value: NAN if value is None else value)]
Tolerance = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]


UNKNOWN = "configuration, versions and hashes of this run are unknown."
NOTHING = "nothing is known about held-out records."


class NoSteps(DpeerError):
    """A folder without a complete step of training."""


class Row(BaseModel):
    """What the page reads of a line; a ledger may carry more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Means(Row):
    edges: Number = NAN
    loss: Number = NAN
    margin: Number = NAN
    margin_se: Number = NAN
    accuracy: Number = NAN


class DimensionStep(Means):
    """Over the training batch; `dual` over that of the dual split."""

    weight: Number = NAN
    floored: Number = NAN
    dual: Means = Means()


class ConstraintStep(Row):
    tolerance: Tolerance = math.inf
    aim: Number = NAN
    estimate: Number = NAN
    multiplier: Number = NAN
    saturated: bool = False
    relaxed: bool = False
    relaxation: Number = NAN


def _decoded(value: Any) -> Any:
    """Multipliers as the ledger's line of many constraints holds them; none where they are unreadable."""
    if not isinstance(value, str):
        return value
    try:
        return np.frombuffer(b64decode(value, validate=True), dtype="<f4")
    except ValueError:
        return np.zeros(0, dtype="<f4")


class Together(Row):
    """All constraints of a step in which only some have a row. `multipliers`: empty where all are 0."""

    constraints: int = 0
    violated: int = 0
    active: int = 0
    saturated: int = 0
    multipliers: Annotated[Any, BeforeValidator(_decoded)] = ()


class Step(Row):
    step: int
    tokens: Number = NAN
    golden_nll: Number = NAN
    golden_logp: Number = NAN
    rejected_logp: Number = NAN
    dual_selected: Number = NAN
    dimensions: dict[str, DimensionStep] = {}
    constraints: dict[str, ConstraintStep] = {}
    all_constraints: Together | None = None


class StepTime(Row):
    step: int
    seconds: Number = NAN
    tokens_per_second: Number = NAN
    reference_wait_s: Number = NAN
    hfu: Number = NAN
    mfu: Number = NAN
    ceiling: Number = NAN
    memory_allocated: Number = NAN
    memory_reserved: Number = NAN
    tokens_per_micro_step: Number = NAN
    phases: dict[str, Number] = {}


class FullMean(Row):
    """The mean of edges counted in full, with its t interval; `clipped`: share of edges above the bound."""

    estimate: Number = NAN
    lower: Number = NAN
    upper: Number = NAN
    skewness: Number = NAN
    lowest_margin: Number = NAN
    highest_value: Number = NAN
    clipped: Number = NAN


class Sample(Row):
    """What the policy said after a step."""

    step: int
    prompt: str
    reply: str


class Stop(Row):
    """Why training ended before its last step."""

    step: int
    reason: Literal["certified", "patience"]
    look: int = 0
    confidence: Number = NAN
    patience: int = 0


class Certified(Row):
    """One constraint on held-out records; tolerances from `lower` to `upper` would be undecided."""

    name: str
    dimensions: tuple[str, ...] = ()
    estimate: Number = NAN
    tolerance: Tolerance = math.inf
    lower: Number = NAN
    upper: Number = NAN
    records: int = 0
    edges: int = 0
    verdict: Literal["satisfied", "violated", "undecided"]
    extra_records: int | None = None
    mean: FullMean = FullMean()

    @property
    def constrained(self) -> bool:
        return math.isfinite(self.tolerance)


class Rate(Row):
    """A share in [0, 1] of `n` records, with its interval."""

    rate: Number
    lower: Number = NAN
    upper: Number = NAN
    n: int = 0


class Selection(Row):
    overall: Rate
    masks: dict[str, Rate] = {}


class HeldoutMean(Row):
    """Means over the held-out edges of one dimension."""

    loss: Number = NAN
    accuracy: Number = NAN


class Win(Row):
    """Share of a dimension's edges with a margin above 0, and its lower bound."""

    rate: Number = NAN
    lower: Number = NAN


class Certificate(Row):
    """`bound`: up to what an edge counts; nan in the files of versions that certified the mean itself."""

    confidence: float = 0.95
    bound: Number = NAN
    prompts: int | None = None
    rarest: Number = NAN
    wins: dict[str, Win] = {}
    masks: dict[str, tuple[Certified, ...]] = {}
    dimensions: dict[str, HeldoutMean] = {}
    constraints: tuple[Certified, ...] = ()
    selection: Selection | None = None
    heldout_records: int | None = None

    @property
    def constrained(self) -> tuple[Certified, ...]:
        """The constraints that have a finite tolerance."""
        return tuple(c for c in self.constraints if c.constrained)


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder in memory. `ledger` is never empty and rises in step; `notes` say what is missing or damaged."""

    path: Path
    manifest: dict[str, Any]
    ledger: tuple[Step, ...]
    timing: tuple[StepTime, ...]
    certificate: Certificate | None
    notes: tuple[str, ...]
    samples: tuple[Sample, ...] = ()
    stop: Stop | None = None

    @property
    def dimensions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(d for step in self.ledger for d in step.dimensions))

    @property
    def constraints(self) -> tuple[str, ...]:
        """Names of the constraints with a finite tolerance; maximum likelihood has none."""
        if self.get("config.objective.kind") == "sft":
            return ()
        named = ((name, c) for step in self.ledger for name, c in step.constraints.items())
        return tuple(dict.fromkeys(name for name, c in named if math.isfinite(c.tolerance)))

    @property
    def lagrangian(self) -> bool:
        """True if training enforced its constraints, not only measured them."""
        return bool(self.constraints) and self.get("config.objective.constraint.enforce", True)

    def get(self, dotted: str, default: Any = None) -> Any:
        """The manifest's entry under a dotted key, e.g. "config.objective.beta"; `default` if absent or null."""
        value: Any = self.manifest
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value


RowT = TypeVar("RowT", Step, StepTime, Sample)


def _read_lines(path: Path, kind: type[RowT], manifest: dict[str, Any]) -> tuple[list[RowT], list[str]]:
    """Whole lines in order, and what is said of the others. A missing file has none."""
    rows: list[RowT] = []
    damaged: list[str] = []
    content = path.read_bytes() if path.is_file() else b""
    changed = set(chain.broken(chain.whole_lines(path), manifest.get("chain")))
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip() and number not in changed:
            continue
        try:
            row = kind.model_validate_json(line)
            damaged.append(str(number)) if number in changed else rows.append(row)
        except ValidationError:
            damaged.append(str(number))
    notes = []
    if damaged:
        numbers = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        lines = "line is" if len(damaged) == 1 else "lines are"
        why = "bytes have changed: restore it from a copy" if changed else "a killed run leaves one"
        notes.append(f"{path.name}: {len(damaged)} damaged {lines} left out (line {numbers}); {why}.")
    return rows, notes


def _read_steps(path: Path, kind: type[RowT], manifest: dict[str, Any]) -> tuple[tuple[RowT, ...], list[str]]:
    """Rows by rising step. A step that a resumed run repeated counts once, as it was written last."""
    lines, notes = _read_lines(path, kind, manifest)
    rows = {row.step: row for row in lines}
    if repeated := len(lines) - len(rows):
        notes.append(f"{path.name}: {repeated} steps were written twice (a resumed run); the later lines count.")
    return tuple(rows[step] for step in sorted(rows)), notes


def _read_manifest(path: Path) -> tuple[dict[str, Any], list[str]]:
    if not path.is_file():
        return {}, [f"{path.name} is missing: {UNKNOWN}"]
    try:
        manifest = parse_state(path.read_bytes())
    except Damaged as error:
        return {}, [f"{path.name} is damaged ({error}): {UNKNOWN} Restore it from a copy."]
    if not manifest.get("finished"):
        return manifest, ["This run has not finished; everything below is an interim state."]
    return manifest, []


def _read_certificate(path: Path) -> tuple[Certificate | None, list[str]]:
    if not path.is_file():
        return None, ["There is no certificate: nothing is known about held-out records."]
    try:
        return Certificate.model_validate(parse_state(path.read_bytes()), strict=False), []
    except Damaged as error:
        return None, [
            f"{path.name} is damaged ({error}): {NOTHING} Remove it and go on with --resume: it is made again."
        ]
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the file"
        return None, [f"{path.name} is damaged ({where}: {fault['msg']}): {NOTHING}"]


def _read_stop(path: Path) -> tuple[Stop | None, list[str]]:
    if not path.is_file():
        return None, []
    try:
        return Stop.model_validate(parse_state(path.read_bytes())), []
    except (Damaged, ValidationError):
        return None, [f"{path.name} is damaged: training ended early, and why is unknown. Restore it from a copy."]


def read_run(run_dir: Path) -> Run:
    """Read the files of a run folder.

    Raises:
        NoSteps: the folder has no ledger, or the ledger has no complete step.
    """
    ledger_path = run_dir / "ledger.jsonl"
    if not ledger_path.is_file():
        raise NoSteps(
            f"{run_dir} has no ledger.jsonl, so there is nothing to report: it is not a run folder, or its training "
            "has not completed a step. Give the folder that `dpeer train` printed (output_dir/name of the recipe)."
        )
    manifest, manifest_notes = _read_manifest(run_dir / "manifest.json")
    ledger, ledger_notes = _read_steps(ledger_path, Step, manifest)
    if not ledger:
        raise NoSteps(
            f"{ledger_path} holds no complete step, so there is nothing to report: the run stopped before its first "
            "step ended. Start it again with `dpeer train RECIPE`."
        )
    ended = manifest.get("ledger")
    if ended is not None and chain.checksum((chain.whole_lines(ledger_path) or [""])[-1]) != ended:
        ledger_notes.append(f"{ledger_path.name} does not end as it did when the run was finished: restore it.")
    certificate, certificate_notes = _read_certificate(run_dir / "certificate.json")
    timing, timing_notes = _read_steps(run_dir / "timing.jsonl", StepTime, manifest)
    samples, sample_notes = _read_lines(run_dir / "samples.jsonl", Sample, manifest)
    stop, stop_notes = _read_stop(run_dir / "stop.json")
    return Run(
        path=run_dir,
        manifest=manifest,
        ledger=ledger,
        timing=timing,
        certificate=certificate,
        notes=tuple(manifest_notes + certificate_notes + ledger_notes + timing_notes + sample_notes + stop_notes),
        samples=tuple(samples),
        stop=stop,
    )
