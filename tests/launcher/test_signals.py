"""What the driver makes of signals, sent to this very process."""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

import dpeer.launcher.signals
from dpeer.errors import ConfigError, Interrupted
from dpeer.integrity import write_state
from dpeer.launcher.signals import Signals, preempt_signal
from dpeer.training.run_dir import RunDir
from tests.training.test_run_dir import recipe


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def test_pre_emption_waits_however_often_it_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpeer.launcher.signals, "TWICE_S", 0.0)
    with Signals() as signals, signals.deferred():
        for _ in range(3):
            send(signal.SIGUSR1)
        assert signals.received == signal.SIGUSR1 and signals.exit_code == 85


def test_pre_emption_outside_training_ends_at_once_with_its_code() -> None:
    with Signals() as signals:
        with pytest.raises(Interrupted, match="outside training"):
            send(signal.SIGUSR1)
        assert signals.exit_code == 85


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_wish_to_stop_is_no_pre_emption(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpeer.launcher.signals, "TWICE_S", 0.0)
    with Signals() as signals, signals.deferred():
        send(number)
        send(signal.SIGUSR1)  # does not turn it into one
        assert signals.exit_code == code
        with pytest.raises(Interrupted, match="second signal"):
            send(number)


def test_a_closed_terminal_is_ignored_where_it_was_before() -> None:
    """As `nohup` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals, signals.deferred():
            send(signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("begun", [False, True])
def test_resuming_is_advised_only_where_something_began(tmp_path: Path, begun: bool) -> None:
    files = RunDir(tmp_path / "run")
    if begun:
        files.begin(recipe(), {})
    words = (
        "Go on with --resume, which begins at step 1" if begun else "had not begun. Start it again.*without --resume"
    )
    with Signals(files), pytest.raises(Interrupted, match=f"outside training.*{words}"):
        send(signal.SIGTERM)
    if begun:
        write_state(files.checkpoint(2) / "state.json", {})
        assert files.way_on == "The last checkpoint is kept. Go on with --resume."


def test_a_wish_to_stop_after_pre_emption_is_final_but_still_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpeer.launcher.signals, "TWICE_S", 0.0)
    with Signals() as signals, signals.deferred():
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        assert signals.exit_code == 143


def test_another_signal_for_pre_emption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPEER_PREEMPT_SIGNAL", "SIGUSR2")
    before = signal.getsignal(signal.SIGUSR1)
    with Signals() as signals, signals.deferred():
        assert signal.getsignal(signal.SIGUSR1) is before
        send(signal.SIGUSR2)
        assert signals.exit_code == 85
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


@pytest.mark.parametrize("name", ["TERM", "INT", "KILL", "nonsense"])
def test_signals_with_another_meaning_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPEER_PREEMPT_SIGNAL", name)
    with pytest.raises(ConfigError, match=f"DPEER_PREEMPT_SIGNAL={name}"):
        preempt_signal()


def test_the_exit_code_passes_through_signals_of_another_level() -> None:
    with Signals() as outer, pytest.raises(Interrupted) as stopped, Signals():
        send(signal.SIGUSR1)
    assert stopped.value.code == 85 and outer.received is None


@pytest.mark.parametrize("levels", [1, 2])
def test_a_repeat_within_moments_cuts_no_closing_short(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a scheduler sends them: to the step and to its processes, one signal or a second kind at once."""
    closed = []
    with Signals() as outer, pytest.raises(Interrupted) as stopped:
        try:
            with Signals() if levels == 2 else nullcontext(outer) as signals:
                send(signal.SIGUSR1)
        finally:
            send(signal.SIGUSR1)
            send(signal.SIGTERM)
            closed.append(signals.exit_code)
    assert closed == [85] and stopped.value.code == 85
    monkeypatch.setattr(dpeer.launcher.signals, "TWICE_S", 0.0)
    with Signals() as signals:
        for code in (130, 143):
            with pytest.raises(Interrupted):
                send(code - 128)
            send(signal.SIGUSR1)
            assert signals.exit_code == code


def test_compiled_code_that_a_signal_interrupts_counts_as_interrupted() -> None:
    """Ray's waits report a SystemError then, whose causes may go round in a circle."""
    fault = SystemError("returned a result with an exception set")
    fault.__cause__ = SystemError("the same")
    fault.__cause__.__cause__ = fault
    with pytest.raises(Interrupted, match="outside training") as stopped, Signals(again="It goes on."):
        with suppress(Interrupted):
            send(signal.SIGTERM)
        raise fault
    assert stopped.value.code == 143
    with pytest.raises(SystemError), Signals():
        raise fault
