"""The quick half of the catalogue, and docs/faults.md against all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import page
from tests.faults.catalogue import CATALOGUE, Fault, missed_stop, play
from tests.faults.stage import Stage
from tests.faults.whole import run

QUICK = [fault for fault in CATALOGUE if fault.quick]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("faults"))
    yield stage
    stage.end()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", QUICK, ids=lambda fault: fault.name)
def test_what_is_promised_is_seen(fault: Fault, stage: Stage) -> None:
    played = stage.open("play", stage.begin(fault.begins))
    assert play(fault, played) == fault.promised
    stage.close(played, mounted=False)


def test_a_fault_that_did_not_happen_is_not_held(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    suspended = [fault for fault in CATALOGUE if fault.name.startswith("stop: ")]
    assert len(suspended) == 3 and all(missed_stop(f, False) and not missed_stop(f, True) for f in suspended)
    assert not any(missed_stop(f, False) for f in CATALOGUE if f not in suspended)
    assert run(["no such"], tmp_path) == 1 and "no fault begins with no such" in capsys.readouterr().out


def test_the_page_is_that_of_the_table() -> None:
    assert max(Counter(fault.name for fault in CATALOGUE).values()) == 1
    found = page.read()
    assert [row[:3] for row in found] == [page.promise(fault) for fault in CATALOGUE]
    untried = {fault.name for fault in CATALOGUE if fault.needs}  # not on every machine
    assert [row for row in found if row[3] != row[2] and not (row[3] == "not tried" and row[0] in untried)] == []
