"""Where faults are played: a toy run and a toy evaluation, undisturbed and half-way, copied for every play."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import pyarrow.parquet as pq
import yaml

from dpeer.eval.irt import cmdstan
from tests.faults import life
from tests.faults.endpoint import Endpoint
from tests.faults.trap import Trap

LIMIT_S = 900.0
NAME = "toy"
RESULTS = ("ledger.jsonl", "certificate.json", "export/model.safetensors")
SETTINGS = (
    "training.steps=6", "training.checkpoint_every=2", "training.keep_checkpoints=2", "training.keep=last",
    "training.stop_when=never", "training.records_per_step=2", "training.sample_every=null",
    "cluster.reference=cache", "cluster.policy_workers=1",
)  # fmt: skip
STAYS = (".guard", ".lock")
"""Ends of hidden files that are meant to stay: they are empty, or say who wrote last."""
ENVIRONMENT = {"DPEER_LEASE_S": "3", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "500"}
MADE = {
    "fresh": ("", (), None),
    "finished": ("fresh", ("train",), None),
    "half": ("fresh", ("train",), Trap("open", r"ledger\.jsonl > a", nth=8)),
    "answered": ("fresh", ("generate",), None),
    "rated": ("answered", ("judge",), None),
    "half-rated": ("answered", ("judge",), Trap("os.rename", r"> .*/ratings/.*part-", nth=6)),
    "fitted": ("rated", ("fit",), None),
}
"""What folders begin from and which commands they have seen; the trap ends the last."""


@dataclass
class Ended:
    code: int
    said: str
    left: list[str]
    """Processes that it has left behind."""
    stopped: bool
    """It was seen suspended, and continued."""


@dataclass
class Play:
    """One fault being played in a folder of its own."""

    stage: Stage
    place: Path
    lives: list[Ended] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    endpoint: Endpoint | None = None
    """Whom `judge by endpoint` asks."""
    expected: bytes = b""
    """The table that it gives undisturbed."""

    @property
    def kept(self) -> Path:
        """Copies of what is about to be damaged."""
        return self.place.with_name(f"{self.place.name}-kept")

    def keep(self, path: Path) -> None:
        copy = self.kept / path.relative_to(self.place)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)

    @property
    def run(self) -> Path:
        return self.place / "runs" / NAME

    @property
    def evaluation(self) -> Path:
        return self.place / "evaluation" / NAME

    def command(self, what: str, *extra: str) -> tuple[str, ...]:
        if what == "train":
            changes = (*SETTINGS, f"name={NAME}", f"output_dir={self.place / 'runs'}", *extra)
            return ("train", str(self.stage.lab / "recipe.yaml"), *changes)
        if what == "judge by endpoint":
            assert self.endpoint
            return ("judge", str(self.stage.recipe(self.place, self.endpoint.url)), "--set", "judging.mode=structured")
        if what == "fit report":
            return ("irt", "report", str(self.evaluation / "irt"))
        if what == "fit":
            table, folder = self.evaluation / "ratings.parquet", self.evaluation / "irt"
            short = ("--approx", "--chains", "2", "--warmup", "20", "--draws", "20", *extra)
            return ("irt", "fit", str(table), "--output", str(folder), *short)
        return (what, str(self.stage.recipe(self.place)), *extra)

    def start(
        self,
        what: str,
        *extra: str,
        trap: Trap | None = None,
        clock: float = 0.0,
        meanwhile: Callable[[], None] | None = None,
    ) -> Ended:
        """A life, to its end. One that stops itself is continued after `meanwhile`."""
        if self.lives:
            self.pass_an_hour()
        ended = self.stage.live(self.command(what, *extra), self.place, trap, clock, meanwhile)
        self.lives.append(ended)
        return ended

    def pass_an_hour(self) -> None:
        """Between two lives: what is hidden or temporary grows older."""
        for path in (*self.place.rglob(".*"), *(self.place / "tmp").rglob("*")):
            found = path.lstat()
            os.utime(path, (found.st_atime - 3600, found.st_mtime - 3600), follow_symlinks=False)

    def leftovers(self) -> list[str]:
        """Hidden files and folders, locks, what lies in the temporary folder, and checkpoints too many."""
        found = [p for p in self.place.rglob(".*") if not p.name.endswith(STAYS) and ".writing" not in p.parent.name]
        found += [*self.place.rglob("*.driver.json"), *(self.place / "tmp").glob("*")]
        found += sorted((self.run / "checkpoints").glob("step-*"))[:-2]
        return [str(p.relative_to(self.place)) for p in found]

    def differences(self, what: str) -> list[str]:
        """What of the results is not as an undisturbed command has left it."""
        return self.problems + [f"{name} differs" for name, same in self._compared(what) if not same]

    def _compared(self, what: str) -> Iterator[tuple[str, bool]]:
        match what:
            case "train":
                expected = self.stage.begin("finished") / "runs" / NAME
                for name in RESULTS:
                    yield name, (self.run / name).read_bytes() == (expected / name).read_bytes()
                yield "held-out margins", _margins(self.run) == _margins(expected)
            case "generate":
                theirs = self.stage.begin("answered") / "evaluation" / NAME / "responses"
                yield "responses", _rows(self.evaluation / "responses") == _rows(theirs)
            case "judge by endpoint":
                yield "ratings.parquet", (self.evaluation / "ratings.parquet").read_bytes() == self.expected
            case "judge":
                theirs = self.stage.begin("rated") / "evaluation" / NAME / "ratings.parquet"
                yield theirs.name, (self.evaluation / theirs.name).read_bytes() == theirs.read_bytes()
            case _:
                theirs = self.stage.begin("fitted") / "evaluation" / NAME / "irt/draws.npz"
                with np.load(theirs) as before, np.load(self.evaluation / "irt/draws.npz") as after:
                    yield (
                        "draws",
                        before.keys() == after.keys()
                        and all(
                            np.array_equal(before[name], after[name], equal_nan=before[name].dtype.kind == "f")
                            for name in before
                        ),
                    )


class Stage:
    """Commands start in processes forked from one that has imported everything (`life`)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lab = folder, folder / "lab"
        self.lab.mkdir()
        self.context = multiprocessing.get_context("forkserver")
        self.end()  # a server that is there already has the modules and the environment of whoever started it
        self.context.set_forkserver_preload(["tests.faults.programs"])
        with patch.dict(os.environ, ENVIRONMENT | self._own_cache()):
            forkserver.ensure_running()
        self.plays, self.made = 0, dict[str, Path]()

    def end(self) -> None:
        """Give back the memory of the process from which lives are forked."""
        forkserver._forkserver._stop()

    def _own_cache(self) -> dict[str, str]:
        """A cache of compiled models that may be damaged; none where there is no CmdStan."""
        self.cache = self.folder / "cache"
        (self.cache / "cmdstan").mkdir(parents=True)
        self.cmdstan = cmdstan.find()
        if self.cmdstan is None:
            return {}
        for program in (cmdstan.cache_root() / "cmdstan").glob("model-*"):
            shutil.copy(program, self.cache / "cmdstan")
        return {"CMDSTAN": str(self.cmdstan), "DPEER_CACHE": str(self.cache)}

    def begin(self, name: str) -> Path:
        """The folder of that name, made when it is first asked for."""
        if name not in self.made:
            if not self.made:
                self._make_lab()
            before, what, trap = MADE[name]
            play = self.open(name, self.begin(before) if before else None)
            for command in what:
                ended = play.start(command, trap=trap)
                assert ended.code == (-signal.SIGKILL if trap else 0), ended.said
            self.made[name] = play.place
        return self.made[name]

    def _make_lab(self) -> None:
        lab = self.live(("lab", str(self.lab)), self.lab)
        assert lab.code == 0, lab.said
        prompts = "".join(f'{{"item": "q{i}", "prompt": "Question {i}?"}}\n' for i in range(10))
        (self.lab / "prompts.jsonl").write_text(prompts)

    def recipe(self, place: Path, url: str = "") -> Path:
        """An evaluation of two models by two judges, all of them `programs.Scribe`, or judges at an endpoint."""
        served = [{"name": n, "path": n, "backend": "scribe", "family": n} for n in ("m1", "m2", "j1", "j2")]
        for judge in served[2:] if url else ():
            judge |= {"backend": "openai", "base_url": url}
        values = {
            "name": NAME, "output_dir": str(place / "evaluation"), "prompts": {"path": str(self.lab / "prompts.jsonl")},
            "models": served[:2], "judges": served[2:], "judging": {"rubric": "toyworld", "min_mass": 0.0},
        }  # fmt: skip
        path = place / "evaluation.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def open(self, name: str, begins: Path | None, mount: bool = False) -> Play:
        """A folder for a play, with a copy of another one's files, on a small file system of its own if wanted."""
        self.plays += 1
        place = self.folder / f"{self.plays:03d}-{name}"
        place.mkdir()
        if mount:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "dpeer-faults", str(place)], check=True)
        if begins:
            shutil.copytree(begins, place, dirs_exist_ok=True)
        return Play(self, place)

    def close(self, play: Play, mounted: bool) -> None:
        if mounted:
            subprocess.run(["umount", "--lazy", str(play.place)], check=True)
        for place in (play.place, play.kept):
            shutil.rmtree(place, ignore_errors=True)

    def live(
        self,
        command: tuple[str, ...],
        place: Path,
        trap: Trap | None = None,
        clock: float = 0.0,
        meanwhile: Callable[[], None] | None = None,
    ) -> Ended:
        hears, says = self.context.Pipe(duplex=False)
        process = self.context.Process(target=life.live, args=(command, place, says, trap, clock))
        process.start()
        says.close()
        said: list[bytes] = []
        listener = Thread(target=_listen, args=(hears.fileno(), said), daemon=True)
        listener.start()
        try:
            stopped = _wait(process, meanwhile)
            left = [p for p in psutil.process_iter() if p.pid != process.pid and _session(p) == process.pid]
            alive = psutil.wait_procs(left, timeout=10)[1]
            names = [" ".join(p.cmdline()) for p in alive]
            for p in alive:
                p.kill()
            listener.join(20)
        finally:
            process.kill()
            process.join()
        assert process.exitcode is not None
        return Ended(process.exitcode, b"".join(said).decode(errors="replace"), names, stopped)


def _margins(run: Path) -> bytes:
    """What follows the header, in which safetensors orders words at random."""
    content = (run / "heldout.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = [
        row for path in folder.rglob("part-*.parquet") for row in pq.read_table(path, partitioning=None).to_pylist()
    ]
    return sorted(rows, key=lambda row: str(row["response_id"]))


def can_mount() -> bool:
    """Whether this user may mount a small file system."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


def _listen(descriptor: int, said: list[bytes]) -> None:
    with suppress(OSError):
        while text := os.read(descriptor, 1 << 16):
            said.append(text)


def _wait(process: BaseProcess, meanwhile: Callable[[], None] | None) -> bool:
    """Until its end; whether it was seen suspended."""
    deadline, stopped = time.monotonic() + LIMIT_S, False
    while process.exitcode is None:
        assert time.monotonic() < deadline, f"no end after {LIMIT_S:g} s"
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:
                stopped = True
                if meanwhile:
                    meanwhile()
                os.kill(process.pid or 0, signal.SIGCONT)
        time.sleep(0.02)
    return stopped


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid) if process.status() != psutil.STATUS_ZOMBIE else -1
    except (ProcessLookupError, psutil.NoSuchProcess):
        return -1
