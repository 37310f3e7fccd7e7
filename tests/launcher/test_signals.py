"""What the driver makes of signals, sent to this very process."""

from __future__ import annotations

import os
import signal
import time

import pytest

import dpeer.launcher.signals
from dpeer.errors import ConfigError, Interrupted
from dpeer.launcher.signals import Signals, preempt_signal


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_wish_to_stop_is_no_pre_emption(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpeer.launcher.signals, "TWICE_S", 0.0)
    with Signals() as signals, signals.deferred():
        send(number)
        send(signal.SIGUSR1)  # does not turn it into one
        assert signals.exit_code == code
        with pytest.raises(Interrupted, match="second signal"):
            send(number)


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
