"""Chains that cannot begin, disks that are full and the user's own files: told in words, and nothing half is read."""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpeer.eval.irt import cmdstan
from dpeer.eval.irt.chains import WIDE, Chains, Wanted, run_chains
from dpeer.eval.irt.errors import IrtError

DRAWS, WIDTH = 40, 30
COLUMNS = ["lp__", "accept_stat__", "stepsize__", "treedepth__", "n_leapfrog__", "divergent__", "energy__", "mu"]
HEADER = f"""# stan_version_major = 2
# method = sample (Default)
#   sample
#     num_samples = {DRAWS}
#     num_warmup = 1000 (Default)
#     save_warmup = 0 (Default)
#     thin = 1 (Default)
#     algorithm = hmc (Default)
#       hmc
#         engine = nuts (Default)
#             max_depth = 10 (Default)
#         metric = diag_e (Default)
{",".join([*COLUMNS, *(f"u.{i + 1}" for i in range(WIDTH))])}
# Adaptation terminated
# Step size = 0.5
# Diagonal elements of inverse mass matrix:
# 1
"""
ROWS = [",".join(f"{(row + 1) * (column + 1) / 7:.9g}" for column in range(8 + WIDTH)) + "\n" for row in range(DRAWS)]
TIMES = """#
#  Elapsed Time: 0.1 seconds (Warm-up)
#                0.1 seconds (Sampling)
#                0.2 seconds (Total)
#
"""
DRAWN = HEADER + "".join(ROWS)
WHOLE = DRAWN + TIMES
OF_U = Wanted(frozenset({"mu"}), frozenset({"u"}), frozenset({3}), ("u",))


def sampler(folder: Path, written: str, more: str = "") -> Path:
    """A program in place of the compiled model: its chains leave `written` as their draws."""
    (folder / "written").write_text(written)
    program = folder / "model-0"
    find = 'for a in "$@"; do case $a in file=*.csv) out=${a#file=};; esac; done'
    program.write_text(f'#!/bin/sh\n[ "$1" = info ] && exit\n{find}\n{more}\nexec cp {folder}/written $out\n')
    program.chmod(0o755)
    return program


def sample(program: Path, wanted: Wanted = OF_U, **options: Any) -> None:
    here = str(program.parent)
    Chains(program, wanted, lambda done: None).run(iter_sampling=DRAWS, output_dir=here, **options)


def test_a_chain_that_cannot_begin_is_an_error_in_words_and_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, popen = time.monotonic(), subprocess.Popen

    def crowded(command: list[str], **options: Any) -> subprocess.Popen[str]:
        if "id=2" in command:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", crowded)
    with pytest.raises(IrtError, match=r"could not be started.*temporarily unavailable.*ulimit -u"):
        sample(sampler(tmp_path, "", "exec sleep 60"), chains=2, parallel_chains=2)
    assert time.monotonic() - begin < 30


def test_whole_files_give_blocks_and_the_rest_and_do_not_stay(tmp_path: Path) -> None:
    program = sampler(tmp_path, WHOLE)
    fit, rest = run_chains(
        program, OF_U, lambda done: None, None, chains=2, iter_sampling=DRAWS, output_dir=str(tmp_path)
    )
    row = np.arange(1, DRAWS + 1)
    assert np.allclose(fit.stan_variable("mu"), np.tile(row * 8 / 7, 2))
    assert np.allclose(rest[1].thinned["u"], [4 * np.arange(9, 9 + WIDTH) / 7])
    assert np.allclose(rest[1].last["u"], DRAWS * np.arange(9, 9 + WIDTH) / 7)
    assert len(list(tmp_path.glob("*.csv"))) == 2 and not list(tmp_path.glob(f"*{WIDE}"))


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (0, 0),
        (200, 0),
        (len(HEADER), 0),
        (len(DRAWN) - len(ROWS[-1]), DRAWS - 1),
        (len(DRAWN) - len(ROWS[-1]) // 2, DRAWS - 1),
        (len(DRAWN) - 2, DRAWS - 1),  # inside the last field
        (len(DRAWN) - 1, DRAWS - 1),
        (len(DRAWN), DRAWS),
    ],
)
def test_a_file_that_ends_early_is_refused(tmp_path: Path, length: int, said: int) -> None:
    program = sampler(tmp_path, WHOLE[:length])
    with pytest.raises(IrtError, match=rf"wrote {said} of {DRAWS} draws.*disk full"):
        sample(program, chains=1)


def test_a_disk_that_takes_no_more_is_told_with_the_remedy(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the end of a disk: only the chain itself lifts it."""
    program = sampler(tmp_path, WHOLE, "ulimit -S -f unlimited")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(IrtError, match=r"cannot be written.*raise the limit.*TMPDIR"):
            sample(program, Wanted(frozenset({"mu", "u"})), chains=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_fit_whose_files_cannot_be_kept_is_a_fit_and_the_earlier_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, keep, move = sampler(tmp_path, WHOLE), tmp_path / "csv", shutil.move
    keep.mkdir()
    (keep / "model-0-20260101000000_1.csv").write_text("of an earlier fit")

    def filled(source: str, target: Path) -> None:
        if "_2.csv" in source:
            target.write_text("the beginning")
            raise OSError(errno.ENOSPC, "No space left on device")
        move(source, target)

    monkeypatch.setattr(shutil, "move", filled)
    fit, _ = run_chains(program, OF_U, lambda done: None, keep, chains=2, iter_sampling=DRAWS, output_dir=str(tmp_path))
    assert fit.stan_variable("mu").shape == (2 * DRAWS,)
    assert [(f.name, f.read_text()) for f in keep.iterdir()] == [("model-0-20260101000000_1.csv", "of an earlier fit")]
    assert "were not kept" in (said := capsys.readouterr().err) and str(keep) in said and "make room" in said


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
