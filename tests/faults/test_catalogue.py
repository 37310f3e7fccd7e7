"""The quick half of the catalogue, and docs/faults.md against all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults import page
from tests.faults.catalogue import CATALOGUE, Fault, play
from tests.faults.stage import Stage

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


def test_the_page_is_that_of_the_table() -> None:
    assert max(Counter(fault.name for fault in CATALOGUE).values()) == 1
    found = page.read()
    assert [row[:3] for row in found] == [page.promise(fault) for fault in CATALOGUE]
    untried = {fault.name for fault in CATALOGUE if fault.needs}  # not on every machine
    assert [row for row in found if row[3] != row[2] and not (row[3] == "not tried" and row[0] in untried)] == []
