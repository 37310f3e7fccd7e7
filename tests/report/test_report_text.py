"""How values are written and what a run is said to have found."""

from __future__ import annotations

import math

import pytest

from dpeer.report.run import Rate, read_run
from dpeer.report.text import (
    exact,
    finding,
    flatten,
    interval,
    listing,
    method_name,
    number,
    percent,
    progress,
    subtitle,
)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0.000"),
        (-0.0, "0.000"),
        (0.4, "0.400"),
        (0.08, "0.080"),
        (0.9999, "1.00"),
        (9.999, "10.0"),
        (-52.13, "\u221252.1"),
        (12345.6, "12,346"),
        (0.00012345, "0.000123"),
        (-1e-9, "0.000"),
        (math.nan, "\u2013"),
        (math.inf, "none"),
    ],
)
def test_number(value, written):
    assert number(value) == written


def test_shares_and_lists():
    shares = [k / 1000 for k in range(1001)]
    assert [percent(s) for s in shares] == [f"{int(f'{s:.2f}'.replace('.', ''))}\u00a0%" for s in shares]
    assert percent(0.705).replace("\u00a0", " ") == "70 %" and percent(math.nan) == "\u2013"
    assert interval(Rate(rate=0.71, lower=0.62, upper=0.79, n=90)).replace("\u00a0", " ") == "71 % [62, 79]"
    assert [listing(names) for names in ([], ["A"], ["A", "T"], ["A", "T", "E"])] == ["", "A", "A and T", "A, T and E"]
    assert (exact(0.4), exact(math.inf)) == ("0.4", "none")


def test_flatten_gives_keys_and_values_as_set_takes_them():
    tree = {"a": {"b": 1, "c": {"d": None}}, "e": [0.9, 0.95], "f": {}, "g": True, "h": "x"}
    assert list(flatten(tree)) == [
        ("a.b", "1"), ("a.c.d", "null"), ("e", "[0.9, 0.95]"), ("f", "{}"), ("g", "true"), ("h", "x")
    ]  # fmt: skip


def _set_verdicts(amend, folder, verdicts):
    def change(content):
        rows = [row | {"verdict": v} for row, v in zip(content["constraints"], verdicts, strict=False)]
        return content | {"constraints": rows}

    amend(folder / "certificate.json", change)


@pytest.mark.parametrize(
    ("verdicts", "found", "open_"),
    [
        ("vsus", "2 of 4 dimensions meet their tolerance on held-out records", "Violated: E. Undecided: T."),
        ("ssss", "All 4 dimensions meet their tolerance on held-out records", ""),
        ("vvsv", "1 of 4 dimensions meets its tolerance on held-out records", "Violated: E, A and C."),
        ("uuuu", "0 of 4 dimensions meet their tolerance on held-out records", "Undecided: E, A, T and C."),
        ("s", "1 of 1 dimension meets its tolerance on held-out records", ""),
    ],
)
def test_finding_counts_satisfied_constraints_only(make_run, amend, verdicts, found, open_):
    folder = make_run(steps=2)
    _set_verdicts(amend, folder, [{"v": "violated", "s": "satisfied", "u": "undecided"}[v] for v in verdicts])
    run = read_run(folder)
    assert finding(run) == found and subtitle(run) == open_


def test_finding_speaks_of_constraints_where_they_join_dimensions(make_run):
    run = read_run(make_run(steps=2, constraint={"form": "balance", "tolerance": 0.1}))
    assert finding(run) == "6 of 12 constraints hold on held-out records"


def test_finding_of_an_unfinished_run_and_of_sft(make_run):
    unfinished = read_run(make_run("u", steps=3, certificate=False))
    assert finding(unfinished) == "Lagrangian DPO: unfinished, 3 of 80 steps and no certificate yet"
    assert progress(unfinished) == "3 of 80 steps"
    sft = read_run(make_run("s", steps=80, kind="sft"))
    expected = "Supervised fine-tuning, no constraints: golden ranks first in 71 % of held-out records"
    assert finding(sft).replace("\u00a0", " ") == expected


def test_measured_constraints_do_not_make_a_run_lagrangian(make_run):
    measured = {"form": "threshold", "tolerance": 0.4, "enforce": False}
    run = read_run(make_run(steps=2, constraint=measured, primary="pooled"))
    assert method_name(run) == "Pooled DPO" and not run.lagrangian
    assert finding(run) == "2 of 4 dimensions meet their tolerance on held-out records"


@pytest.mark.parametrize(
    ("primary", "name"),
    [
        ("pooled", "Pooled DPO"),
        ("uniform", "DPO with equal weights per dimension"),
        ({"E": 1.0, "A": 2.0}, "DPO with fixed weights"),
    ],
)
def test_method_name_of_unconstrained_runs(make_run, amend, primary, name):
    folder = make_run(steps=2, primary=primary)
    amend(folder / "ledger.jsonl", lambda line: line | {"constraints": {}})
    assert method_name(read_run(folder)) == name
