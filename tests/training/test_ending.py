"""Which checkpoint counts as the best, when patience ends, and how much error each look may spend."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeer.training import ending

INF = math.inf
losses = st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0])
edges = st.integers(0, 3)


def row(cells: dict[str, tuple[int, float]], bounded: str = "AT") -> dict[str, Any]:
    """A ledger row with these (edges, loss) per dimension on the dual split, as JSON has it."""
    dual = {d: {"edges": n, "loss": loss if n else None} for d, (n, loss) in cells.items()}
    return {
        "dimensions": {d: {"loss": 9.0, "dual": means} for d, means in dual.items()},
        "constraints": {d: {"dimensions": [d], "tolerance": 0.4 if d in bounded else "inf"} for d in cells},
    }


rows = st.lists(st.fixed_dictionaries({d: st.tuples(edges, losses) for d in "ATC"}).map(row), min_size=1, max_size=12)


@given(rows, st.integers(1, 5), st.booleans())
def test_the_best_checkpoint_has_the_lowest_worst_loss(ledger: list[dict[str, Any]], every: int, ended: bool) -> None:
    """Against a second account that lists single edges."""
    total = len(ledger) if ended else len(ledger) + 1
    expected: dict[int, float] = {}
    for step in range(1, len(ledger) + 1):
        if step % every and step != total:
            continue
        means = []
        for d in "AT":
            cells = [r["dimensions"][d]["dual"] for r in ledger[max(0, step - every) : step]]
            single = [c["loss"] for c in cells for _ in range(c["edges"])]
            means.append(sum(single) / len(single) if single else INF)
        expected[step] = max(means)
    found = ending.scores(ledger, every, total)
    assert found == pytest.approx(expected)
    best = ending.best(found)
    assert (best is None) == (not found)
    if best is not None:
        assert all(found[best] < score for step, score in found.items() if step > best)
        assert all(found[best] <= score for score in found.values())


def test_a_ledger_without_tolerances_counts_every_dimension() -> None:
    cells = {"A": (1, 0.3), "C": (1, 0.9)}
    assert ending.worst_loss([row(cells, bounded="A")]) == 0.3
    assert ending.worst_loss([row(cells, bounded="")]) == 0.9


def test_pairs_of_dimensions_bound_both() -> None:
    ledger = [row({"A": (1, 0.3), "T": (1, 0.4), "C": (1, 0.9)})]
    ledger[0]["constraints"] = {"A over T": {"dimensions": ["A", "T"], "tolerance": 0.1}}
    assert ending.worst_loss(ledger) == 0.4


def test_best_among_those_on_disk() -> None:
    scores = {4: 0.2, 8: 0.3, 12: 0.3}
    assert ending.best(scores) == 4
    assert ending.best(scores, {8, 10, 12}) == 12
    assert ending.best(scores, {10}) is None


@pytest.mark.parametrize(
    ("scores", "patience", "ends"),
    [
        ([0.5, 0.6, 0.7], 2, True),
        ([0.5, 0.6, 0.7], 3, False),
        ([0.5, 0.6, 0.5], 1, False),  # no worse is as good
        ([0.5, 0.6, 0.4, 0.5], 2, False),
        ([INF, INF], 1, False),
        ([], 1, False),
    ],
)
def test_patience_counts_checkpoints_since_the_best(scores: list[float], patience: int, ends: bool) -> None:
    assert ending.exhausted({4 * (k + 1): score for k, score in enumerate(scores)}, patience) is ends


@given(st.integers(1, 10_000))
def test_looks_together_spend_less_than_one_certificate(looks: int) -> None:
    spent = [1 - ending.confidence(k, 0.95) for k in range(1, looks + 1)]
    assert sum(spent) == pytest.approx(0.05 * looks / (looks + 1), rel=1e-9)  # below 0.05
    assert spent == sorted(spent, reverse=True)
