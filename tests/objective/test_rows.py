"""Writers and readers of ledger and certificate agree on the rows: what is written, declared and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NotRequired, get_args, get_origin, get_type_hints

import pytest

from dpeer.integrity import parse_state
from dpeer.objective import rows
from dpeer.report import run as reader

RUNS = sorted((Path(__file__).parents[1] / "old_runs").glob("*/*"))


def fault(value: Any, kind: Any, where: str, whole: bool = True) -> str | None:
    """Where a JSON value differs in its keys from a declared row; what is missing counts where it must be `whole`."""
    if hasattr(kind, "__total__"):
        hints = get_type_hints(kind)
        missing = _required(kind) - set(value) if whole else set()
        if strange := (set(value) - set(hints)) | missing:
            return f"{where}: {strange}"
        return next((f for k in value if (f := fault(value[k], hints[k], f"{where}.{k}", whole))), None)
    if get_origin(kind) is dict:
        return next((f for k, v in value.items() if (f := fault(v, get_args(kind)[1], f"{where}.{k}", whole))), None)
    if get_origin(kind) is list:
        return next((f for i, v in enumerate(value) if (f := fault(v, get_args(kind)[0], f"{where}.{i}", whole))), None)
    return None


def _required(kind: Any) -> set[str]:
    """`__required_keys__`, which does not see NotRequired in annotations that are text."""
    hints = get_type_hints(kind, include_extras=True)
    return {name for name, hint in hints.items() if get_origin(hint) is not NotRequired}


def fault_of_run(run: Path, whole: bool = True) -> str | None:
    """The first of a run folder's rows that is not as declared."""
    files = (
        ("ledger.jsonl", rows.LedgerRow),
        ("timing.jsonl", rows.TimingRow),
        ("certificate.json", rows.CertificateFile),
    )
    for name, kind in files:
        content = (run / name).read_bytes()
        for row in map(json.loads, content.splitlines()) if name.endswith("l") else [parse_state(content)]:
            if found := fault(row, kind, name, whole):
                return found
    return None


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
def test_earlier_versions_wrote_nothing_that_is_no_longer_declared(run: Path) -> None:
    assert fault_of_run(run, whole=False) is None


def test_a_difference_is_found() -> None:
    assert fault({"rate": 1, "lower": 0, "upper": 1, "m": 3}, rows.RateRow, "rate") is not None


@pytest.mark.parametrize(
    ("model", "row"),
    [
        (reader.Step, rows.LedgerRow),
        (reader.DimensionStep, rows.DimensionRow),
        (reader.ConstraintStep, rows.ConstraintRow),
        (reader.StepTime, rows.TimingRow),
        (reader.Certified, rows.VerdictRow),
        (reader.FullMean, rows.MeanRow),
        (reader.Win, rows.WinRow),
        (reader.HeldoutMean, rows.HeldoutRow),
        (reader.Rate, rows.RateRow),
        (reader.Selection, rows.SelectionRow),
        (reader.Certificate, rows.CertificateFile),
    ],
    ids=lambda kind: kind.__name__,
)
def test_pages_read_only_what_is_written(model: Any, row: Any) -> None:
    assert set(model.model_fields) <= set(get_type_hints(row))
