"""Writers and readers of ledger and certificate agree on the rows: what is written, declared and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from dpeer.objective import rows
from dpeer.report import run as reader

RUNS = sorted((Path(__file__).parents[1] / "old_runs").glob("*/*"))


def fault(value: Any, kind: Any, where: str) -> str | None:
    """Where a JSON value differs in its keys from a declared row."""
    if hasattr(kind, "__total__"):
        hints = get_type_hints(kind)
        if strange := (set(value) - set(hints)) | (kind.__required_keys__ - set(value)):
            return f"{where}: {strange}"
        return next((f for k in value if (f := fault(value[k], hints[k], f"{where}.{k}"))), None)
    if get_origin(kind) is dict:
        return next((f for k, v in value.items() if (f := fault(v, get_args(kind)[1], f"{where}.{k}"))), None)
    if get_origin(kind) is list:
        return next((f for i, v in enumerate(value) if (f := fault(v, get_args(kind)[0], f"{where}.{i}"))), None)
    return None


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
def test_files_hold_the_declared_rows(run: Path) -> None:
    for line in (run / "ledger.jsonl").read_text().splitlines():
        assert fault(json.loads(line), rows.LedgerRow, "ledger") is None
    for line in (run / "timing.jsonl").read_text().splitlines():
        assert fault(json.loads(line), rows.TimingRow, "timing") is None
    assert fault(json.loads((run / "certificate.json").read_text()), rows.CertificateFile, "certificate") is None


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
