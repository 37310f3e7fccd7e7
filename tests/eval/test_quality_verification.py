"""Verification: planted faults are named, lenient verifiers pass no more than strict ones, honest data are kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from dpeer.errors import DataError
from dpeer.eval.audit import rates
from dpeer.eval.quality.detect import S_DEVIATION, S_GAP, S_SEVERITY, S_STEP, _design, _stepped
from dpeer.eval.quality.order import named, order
from dpeer.eval.quality.rated import Rated, failing, rated
from dpeer.eval.quality.verify import Verification, verify
from tests.eval import quality_world as world
from tests.eval.quality_world import HONEST, Judge, bad_records

SCALE = range(5)


@pytest.fixture(autouse=True)
def short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "BURN_IN", 200)
    monkeypatch.setattr(rates, "DRAWS", 400)


def given(made: pd.DataFrame, judges: dict[str, Judge], spread: float = 0.4) -> Rated:
    return rated(world.ratings(made, judges, np.random.default_rng(0), spread), SCALE)


def checked(made: pd.DataFrame, judges: dict[str, Judge], spread: float = 0.4) -> Verification:
    return verify(given(made, judges, spread))


def passed(found: Verification, records: set[str]) -> float:
    status = found.records.set_index("record")["status"]
    return float((status[sorted(records)] == "holds").mean())


def dropped(found: Verification, made: pd.DataFrame) -> float:
    """Share of sound records that are said to fail."""
    sound = set(made["record"]) - bad_records(made)
    status = found.records.set_index("record")["status"]
    return float((status[sorted(sound)] == "fails").mean())


@pytest.fixture(scope="module")
def flawed() -> pd.DataFrame:
    return world.truth(15, np.random.default_rng(5), extra=0.06, weak=0.06, poor=0.05)


@pytest.mark.parametrize("judges", [
    HONEST, HONEST | {"lenient": Judge(1.5)}, {"ana": Judge(), "lenient": Judge(1.5)}, {"lenient": Judge(1.5)},
    {"ana": Judge()}, HONEST | {"all": Judge(9)}, HONEST | {"random": Judge(noise=9)},
])  # fmt: skip
def test_bad_records_are_not_passed_whoever_verifies(flawed: pd.DataFrame, judges: dict[str, Judge]) -> None:
    found = checked(flawed, judges)
    assert passed(found, bad_records(flawed)) <= 0.04
    assert dropped(found, flawed) <= (0.05 if len(judges) > 1 else 0.2)
    assert found.wrong < 4  # what it expects is of the size of what there is: at most 3 of 79 bad ones pass


def test_a_lenient_verifier_is_measured_in_points_and_changes_nothing(flawed: pd.DataFrame) -> None:
    found = checked(flawed, HONEST | {"lenient": Judge(1.5)})
    marks = found.verifiers.groupby("judge")["mark"].mean()
    assert 1.0 < marks["lenient"] - marks["ana"] < 1.7  # less than 1.5, as nothing is above the top of the scale
    assert abs(marks["cy"] - marks["ben"] - 0.8) < 0.25
    with_one, without = (set(f.records.loc[f.records["status"] == "fails", "record"]) for f in (
        found, checked(flawed, HONEST)))  # fmt: skip
    assert len(with_one ^ without) <= 0.06 * len(found.records)


def test_honest_data_are_kept() -> None:
    made = world.truth(15, np.random.default_rng(1))
    found = checked(made, HONEST)
    assert not bad_records(made) and dropped(found, made) <= 0.02 and found.holding >= 0.85 * len(found.records)
    assert (found.kinds["failing"] - ~found.kinds["passes"]).abs().max() < 0.05


def test_reasons_name_what_a_bad_generator_does() -> None:
    made = world.truth(3, np.random.default_rng(2))
    of = made.set_index(["record", "response", "dimension"])["fails"]
    of["0-0", "golden", "A"] = True
    of["1-1", "reject_A", "A"] = False
    of["6-2", "reject_C", "E"] = True
    of["6-2", "reject_C", "A"] = True
    of["10-0", "reject_T", "E"] = True
    of["10-0", "reject_T", "T"] = False
    exact = {name: Judge(j.leniency, 0.2) for name, j in HONEST.items()}
    found = checked(made.assign(fails=of.to_numpy()), exact, spread=0.1)
    assert found.reasons() == {
        "0-0": {"golden": "golden fails A"},
        "1-1": {"reject_A": "reject_A does not fail A"},
        "6-2": {"reject_C": "reject_C also fails A and E"},
        "10-0": {"reject_T": "reject_T does not fail T; reject_T also fails E"},
    }
    assert found.holding == 33 - 4


def test_a_generator_whose_rejects_always_fail_one_more_is_seen() -> None:
    made = world.truth(6, np.random.default_rng(3))
    made.loc[(made["response"] == "reject_T") & (made["dimension"] == "E"), "fails"] = True
    found = checked(made, HONEST)
    kinds = found.kinds.set_index(["claim", "dimension"])
    assert kinds.loc[("reject_T", "E"), "failing_low"] > 0.8 and kinds.loc[("golden", "E"), "failing_high"] < 0.15
    both = {
        r for r, m in zip(found.records["record"], found.records["mask"], strict=True) if {"E", "T"} <= {*m.split("+")}
    }
    assert passed(found, both) == 0 and passed(found, set(found.records["record"]) - both) > 0.8


def test_who_does_not_separate_counts_for_nothing_and_is_named() -> None:
    made = world.truth(3, np.random.default_rng(4))
    found = checked(made, {"ana": Judge(blind=("T",)), "yes": Judge(9)})
    counts = found.verifiers.set_index(["judge", "dimension"])["counts"]
    assert counts["ana"].to_dict() == {"A": True, "C": True, "E": True, "T": False} and not counts["yes"].any()
    with_t = found.records["mask"].str.contains("T")
    assert set(found.records.loc[with_t, "status"]) <= {"open", "fails"} and (found.records["status"] == "holds").any()
    assert found.records.loc[with_t, "reason"].str.contains("no verifier tells golden from reject on T").all()
    assert any("Verifier yes does not separate on A" in n for n in found.notes)
    assert any(n.startswith("No verifier tells golden from reject_T on T") for n in found.notes)
    reverse = checked(made.assign(fails=~made["fails"]), {"ana": Judge()})
    assert reverse.holding == 0 and set(reverse.verifiers["note"]) == {"rates rejects above golden"}


def test_checks_tell_rejects_that_do_not_fail_from_verifiers_that_do_not_see() -> None:
    rng = np.random.default_rng(6)
    made = world.truth(3, rng)
    made.loc[(made["response"] == "reject_T") & (made["dimension"] == "T"), "fails"] = False
    checks = [
        {"record": f"check-{d}-{k}", "response": response, "mask": d, "dimension": d, "claimed": bad, "fails": bad}
        for d in world.DIMENSIONS
        for k in range(5)
        for response, bad in (("golden", False), (f"reject_{d}", True))
    ]
    known = world.ratings(pd.DataFrame(checks), HONEST, rng).assign(known=True)
    found = verify(rated(pd.concat([world.ratings(made, HONEST, rng).assign(known=False), known]), SCALE))
    with_t = found.records[found.records["mask"].str.contains("T")]
    assert with_t["reason"].str.contains("reject_T does not fail T").mean() > 0.9
    assert not found.records["record"].str.startswith("check").any() and not found.notes


def test_a_step_of_newton_leads_to_where_an_optimiser_does() -> None:
    rng = np.random.default_rng(0)
    design, counts = _design(2, 4), rng.integers(0, 30, (2, 2, 4)).astype(float)
    counts[:, 1] = counts[:, 1].cumsum(axis=-1)  # the class that passes has more high ratings
    sds = np.repeat([S_STEP, S_SEVERITY, S_GAP, S_DEVIATION], [3, 2, 1, 2])

    def loss(x: np.ndarray) -> float:
        return float(0.5 * np.square(x / sds).sum() - (counts * log_softmax(design @ x, axis=-1)).sum())

    x = np.zeros(8)
    for _ in range(30):
        x = _stepped(design, counts, x)
    np.testing.assert_allclose(x, minimize(loss, np.zeros(8), tol=1e-10).x, atol=2e-3)


def test_values_between_categories_count_in_part(flawed: pd.DataFrame) -> None:
    table = world.ratings(flawed, HONEST, np.random.default_rng(0))
    whole = verify(rated(table, SCALE))
    near = verify(rated(table.assign(score=(table["score"] + 1e-6).clip(0, 4)), SCALE))
    np.testing.assert_allclose(whole.units["p"], near.units["p"], atol=1e-3)
    twice = verify(rated(pd.concat([table, table]), SCALE))
    np.testing.assert_allclose(whole.units["p"], twice.units["p"])


def test_order_is_counted_per_mask_and_severity_plays_no_part() -> None:
    made = world.truth(20, np.random.default_rng(7))
    wrong = made["mask"].eq("C+E") & made["record"].str[-1].isin(list("02468")) & made["dimension"].eq("C")
    made.loc[wrong, "fails"] = made.loc[wrong, "response"].eq("golden")  # half of the cell is the wrong way round
    exact = {name: Judge(j.leniency, 0.3) for name, j in HONEST.items()}
    cells = {(c.mask, c.dimension): c for c in order(given(made, exact, spread=0.1))}
    cell = cells["C+E", "C"]
    assert (cell.edges, cell.upheld, cell.violated) == (20, 10, 10) and cell.rate.low > 0.25
    assert all(c.violated == 0 for key, c in cells.items() if key not in (("C+E", "C"), ("", "C")))
    assert (cells["", "C"].edges, cells["", "C"].violated) == (140, 10)
    assert next(named(list(cells.values()))).startswith("C in C+E: the order is violated in 50")


ROW = {"record": "r", "response": "golden", "mask": "A+T", "dimension": "A", "judge": "j", "score": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": "E"}, "row 1, column dimension: 'E': is not in the mask"),
        ({"mask": "A+E"}, r"column mask: 'A\+T': its record has another mask in another row"),
        ({"response": "reject_E"}, "row 1, column response: a response is golden or reject_D with D one of A, T"),
        ({"score": "high"}, "row 1, column score: 'high': a number is needed, or nothing"),
        ({"score": 9}, r"row 1, column score: 9: lies outside of the scale, 0 to 4"),
        ({"judge": None}, "row 1, column judge: .*: a name is needed"),
    ],
)
def test_faulty_ratings_are_refused_by_row_and_column(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rated(pd.DataFrame([ROW, ROW | change]), SCALE)


def test_what_responses_claim() -> None:
    assert failing("golden#2", ["A"]) == failing("golden", ["A"]) == frozenset()
    assert failing("reject_A+T", ["A", "T"]) == {"A", "T"} and failing("reject_A+T#3", ["A+T", "B"]) == {"A+T"}
    with pytest.raises(DataError, match="no column judge"):
        rated(pd.DataFrame([ROW]).drop(columns="judge"))
    with pytest.raises(DataError, match="none of the ratings has a score"):
        rated(pd.DataFrame([ROW | {"score": None}]))
