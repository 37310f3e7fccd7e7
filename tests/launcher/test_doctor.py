"""What the machine offers, as nvidia-smi tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpeer.launcher.doctor import findings
from dpeer.launcher.nvidia import Card, cards, gpus
from dpeer.launcher.preflight import judge
from dpeer.launcher.preflight.checklist import Warn


def test_a_lost_card_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'NVIDIA H200, 143771 MiB'\necho 'NVIDIA GB10, [N/A]'\n"
        "echo 'Unable to determine the device handle for GPU 0000:41:00.0: Unknown Error'\nexit 15\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpus() == ("NVIDIA H200, 143771 MiB", "NVIDIA GB10, [N/A]")


H200 = "550.54.15, 143771, 143000, 0, 0x0000000000000001"
ILL = "550.54.15, 143771, 9000, 3, 0x0000000000000064"
LOST = "Unable to determine the device handle for GPU 0000:41:00.0: Unknown Error"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi with a sound card, a slowed one that is in use, one with shared memory, and a lost one."""
    lines = [
        f"0, NVIDIA H200, {H200}",
        f"1, NVIDIA H200, {ILL}",
        "2, NVIDIA GB10, 580.95, [N/A], [N/A], [N/A], 0x0",
        LOST,
    ]
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + "exit 15\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tool


def test_state_of_the_cards(smi: Path) -> None:
    sound, ill, shared = cards()
    assert sound == Card(0, "NVIDIA H200", "550.54.15", 143771, 143000, 0, ())
    assert ill.slowed == ("too hot (driver)", "too hot (hardware)") and ill.uncorrected == 3
    assert shared.total is None and shared.uncorrected == 0
    found = dict(findings())
    assert found["GPU driver"] == "550.54.15, 580.95"
    assert found["GPU memory"] == "GPU 1 has 8.8 of 140.4 GiB free"
    assert found["GPU health"].startswith("GPU 1 is slowed: too hot (driver), too hot (hardware); GPU 1 has had 3 unc")


def test_cards_are_judged_by_node(smi: Path) -> None:
    sound, ill, shared = cards()
    assert judge.gpu_driver({"a": [sound], "b": [ill]}) == "550.54.15"
    odd = judge.gpu_driver({"a": [sound], "b": [ill], "c": [shared]})
    assert isinstance(odd, Warn) and "c 580.95" in odd.found
    assert judge.gpu_memory({"a": [sound, sound]}) == "at least 139.6 GiB free on each GPU"
    assert judge.gpu_memory({"a": [shared]}) == "the driver does not tell"
    busy, hot = judge.gpu_memory({"a": [sound], "b": [ill]}), judge.gpu_health({"a": [sound], "b": [ill]})
    assert isinstance(busy, Warn) and busy.found == "b: GPU 1 has 8.8 of 140.4 GiB free."
    assert isinstance(hot, Warn) and hot.found.startswith("b: GPU 1 is slowed")
    assert isinstance(judge.gpu_health({"a": [sound, shared]}), str)


@pytest.mark.parametrize(
    ("gigabytes", "ranks", "nodes", "says"),
    [
        (380.0, 8, 1, None),
        (3.0, 8, 1, "nvidia-smi topo -m"),
        (20.0, 16, 2, None),
        (1.1, 16, 2, "TCP"),
        (0.0, 1, 1, None),
    ],
)
def test_slow_links_are_warned_of(gigabytes: float, ranks: int, nodes: int, says: str | None) -> None:
    found = judge.gpu_links(gigabytes, ranks, nodes)
    assert isinstance(found, Warn) == (says is not None)
    assert not isinstance(found, Warn) or (says and says in found.fix and f"{gigabytes:.1f} GB/s" in found.found)
