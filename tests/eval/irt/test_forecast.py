"""What is said of time, memory and disk before chains run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.forecast import at_once, check_room, memory, seconds
from dpeer.eval.irt.types import Options, Posterior


def test_chains_side_by_side_are_limited_by_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(16))
    monkeypatch.setattr("dpeer.eval.irt.forecast.free_memory", lambda: 3.5 * memory(10**6))
    assert [at_once(4, threads, 1000) for threads in (1, 8, 32)] == [4, 2, 1]
    assert [at_once(4, 1, n) for n in (88_000, 1_000_000, 10_000_000)] == [4, 3, 1]


def test_a_draw_of_the_pilot_tells_the_time_of_all_chains() -> None:
    options = Options(chains=4, warmup=0, draws=100)
    assert seconds(0.5, options, 4) == 50 and seconds(0.5, options, 2) == 100 and seconds(0.5, options, 3) == 100
    assert seconds(0.5, Options(chains=1, warmup=100, draws=100), 1) > 100, "warm-up costs more than draws"


def test_a_fit_that_does_not_fit_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, disk = 2 * memory(10**6), SimpleNamespace(free=10**9)
    monkeypatch.setattr("dpeer.eval.irt.forecast.free_memory", lambda: free)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: disk)
    check_room(tmp_path, 10**6, 10_000, Options(draws=1000), 4)
    with pytest.raises(IrtError, match=r"one chain of 10,000,000 ratings needs about .* of memory.*--dimension"):
        check_room(tmp_path, 10**7, 10_000, Options(), 4)
    with pytest.raises(IrtError, match=r"5\.7 GB here, and .* has 0\.9 GB left.*TMPDIR.*--draws"):
        check_room(tmp_path, 10**6, 100_000, Options(draws=1000), 4)


def test_fits_say_what_they_expected(posterior: Posterior) -> None:
    assert posterior.facts["expected_seconds"] > 0 and posterior.facts["seconds_per_draw"] > 0
