"""When a group counts as stalled, and whom the report names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dpeer.launcher.watchdog import SILENT, State, Watch, differing, headline, look, report
from dpeer.training.calls import Scores
from dpeer.training.pulse import Pulse
from dpeer.training.scoring import merge

STEP = Pulse("step 3: forward and backward", 2, 10, beating=True)
LOADING = Pulse("loading step-0000004", 4, 3)


def watch(seen: list[dict[int, Pulse | None]], limit: float = 30, every: float = 10) -> list[bool]:
    """What the watch says after each look, one every `every` seconds."""
    dog = Watch(limit, 0)
    return [dog.stalled(s, every * (i + 1)) for i, s in enumerate(seen)]


def test_beating_group_never_stalls() -> None:
    assert not any(watch([{0: replace(STEP, beats=n), 1: STEP} for n in range(20)]))


def test_group_without_a_beat_stalls_after_the_limit() -> None:
    assert watch([{0: STEP, 1: STEP}] * 5) == [False, False, False, True, True]  # first seen after 10 s


def test_one_slow_rank_is_no_stall_while_it_beats() -> None:
    waiting = replace(STEP, phase="step 3: statistics")
    assert not any(watch([{0: waiting, 1: replace(STEP, beats=n)} for n in range(20)]))


def test_loading_and_saving_have_no_beats_to_count() -> None:
    assert not any(watch([{0: LOADING, 1: LOADING}] * 20))


def test_silence_is_a_stall_in_any_phase() -> None:
    assert watch([{0: None}] * 5) == [False, False, True, True, True]
    assert watch([{0: LOADING, 1: None}] * 5)[-1]
    assert watch([{0: STEP, 1: None}] * 5)[-1]


def test_missed_answers_now_and_then_are_no_silence() -> None:
    """Loading may hold the interpreter for longer than a health call waits."""
    seen: list[dict[int, Pulse | None]] = [{0: None if n % 3 else LOADING} for n in range(30)]
    assert not any(watch(seen))


def test_returned_rank_is_progress() -> None:
    dog = Watch(30, 0)
    assert not dog.stalled({0: STEP, 1: STEP}, 10)
    dog.moved(35)
    assert not dog.stalled({1: STEP}, 60)
    assert dog.stalled({1: STEP}, 66)


def test_each_rank_was_last_seen_to_move_when_it_beat() -> None:
    """What is seen first may have been so for long."""
    dog = Watch(30, 0)
    for now, beats in ((10, 0), (20, 1), (30, 2)):
        dog.stalled({0: STEP, 1: replace(STEP, beats=beats), 2: None}, now)
    assert [dog.moved_at(rank) for rank in range(3)] == [0, 30, 0]


def test_phases_restore_what_was_before() -> None:
    pulse = Pulse()
    pulse.enter("exporting")
    with pulse.during("scoring", beating=True):
        assert (pulse.phase, pulse.beating) == ("scoring", True)
    assert (pulse.phase, pulse.beating, pulse.beats) == ("exporting", False, 3)


def state(rank: int, place: str = "policy.py:110 in train_step", waits_in: str | None = None) -> State:
    return State(f"rank {rank}", "step 3: statistics", place, waits_in, f"stack of {rank}")


@pytest.mark.parametrize(
    ("states", "suspects"),
    [
        ([state(0), State("rank 1", SILENT), state(2, waits_in="all_reduce")], [1]),
        ([state(0, waits_in="all_reduce"), state(1), state(2, waits_in="all_reduce")], [1]),
        ([state(0), state(1), state(2, "engine.py:7 in x"), state(3)], [2]),
        ([state(0), state(1, "engine.py:7 in x")], [0, 1]),
        ([state(0), state(1)], []),
        ([state(0, waits_in="all_reduce"), state(1, waits_in="all_reduce")], []),
    ],
)
def test_ranks_that_differ(states: list[State], suspects: list[int]) -> None:
    assert [s.name for s in differing(states)] == [f"rank {r}" for r in suspects]
    said = headline(states)
    if suspects:
        assert said.startswith(f"rank {suspects[0]} is ")
    else:
        assert "at the same place" in said and "network" in said
    text = report("title", states)
    assert text.startswith("title\n") and all(f"--- rank {i} ---" in text for i in range(len(states)))
    assert ("no stacks" in text) == any(s.phase == SILENT for s in states)


def test_stack_of_a_thread_inside_dpeer() -> None:
    begun, released = threading.Event(), threading.Event()

    class Shares(list[Scores]):
        def __iter__(self) -> Iterator[Scores]:
            begun.set()
            released.wait()
            return super().__iter__()

    thread = threading.Thread(target=merge, args=(Shares([{0: [1.0]}]), 1), name="working")
    thread.start()
    begun.wait()
    seen = look()
    released.set()
    thread.join()
    assert seen["place"].startswith("calls.py:") and seen["place"].endswith("in merge")
    assert seen["waits_in"] is None and "thread working" in seen["stacks"] and "released.wait()" in seen["stacks"]
