"""What the machine offers, as nvidia-smi tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpeer.launcher.doctor import gpus


def test_a_lost_card_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'NVIDIA H200, 143771 MiB'\necho 'NVIDIA GB10, [N/A]'\n"
        "echo 'Unable to determine the device handle for GPU 0000:41:00.0: Unknown Error'\nexit 15\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpus() == ("NVIDIA H200, 143771 MiB", "NVIDIA GB10, [N/A]")
