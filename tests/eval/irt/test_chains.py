"""Chains that cannot begin, disks that are full and the user's own files: told in words, and nothing half is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpeer.eval.irt import cmdstan


def test_a_file_of_the_users_folder_does_not_stand_in_for_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "cmdstan" / "bin").mkdir(parents=True)
    (folder / "stanc").touch()
    rule = "%/model:\n\tprintf '\\177ELF made here' > $@ && chmod +x $@\n"
    (folder.parent / "makefile").write_text(f"CMDSTAN_VERSION := 2.38.0\n{rule}")
    (source := tmp_path / "made.stan").write_text("model { }")
    (tmp_path / "numpy.py").write_text("raise SystemExit('numpy of the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPEER_CACHE", str(tmp_path / "cache"))
    made = cmdstan.compile_model(lambda said: None, folder.parent, source)
    assert made.read_bytes().startswith(b"\x7fELF made here")
