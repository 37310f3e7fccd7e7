"""Is a byte that changes at rest ever used in silence?

Makes a finished and a half-finished run of the toy (one rank in this process) and a finished and a half-finished
evaluation with a fit. Then, again and again: change one random byte of one random file, do what goes on from it
(resume up to the first step, look at the run, judge, read the fit), put the byte back. A change counts as used in
silence unless a message names the file and a way back.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import Figure, Recorder
from dpeer.config import Config
from dpeer.config_io import load_config
from dpeer.errors import DpeerError, Interrupted
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.config import EvalConfig
from dpeer.eval.generate import generate
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit_folder import load as load_fit
from dpeer.eval.irt.fit_folder import save as save_fit
from dpeer.eval.irt.types import Options, Posterior
from dpeer.eval.judge import judge
from dpeer.eval.plan import ratings_folder
from dpeer.eval.responses import responses_folder
from dpeer.eval.run import read_rates
from dpeer.eval.store.parts import parts
from dpeer.heldout_file import read_heldout
from dpeer.integrity import refuse_damaged_model
from dpeer.launcher.driver import already_finished, watch
from dpeer.launcher.torchrun import LocalWorkers, Rank
from dpeer.report.run import read_run
from dpeer.training import checkpoint, world
from dpeer.training.rank import TrainingRank
from dpeer.training.reference import cache_path, cached
from dpeer.training.run import TrainingRun
from dpeer.training.run_dir import RunDir
from dpeer.training.together import refuse_misfit, refuse_misfits, way_back
from tests.faults.scribe import Scribe
from tests.launcher.conftest import build_lab

BACK = re.compile(r"restore|remove|delete|ma[dk]es? (it )?again|goes on from|start anew|fit again", re.IGNORECASE)
NOT_READ = ("report.html", "README.md", ".lock", "zero_to_fp32.py", "zero_to_torch.py", "prompts.jsonl")
"""What dpeer never reads again, and the prompts that a user has written."""
SETTINGS = (
    "training.steps=6", "training.checkpoint_every=2", "training.sample_every=3", "training.stop_when=never",
    "training.keep_checkpoints=2", "cluster.reference=cache", "cluster.policy_workers=1",
)  # fmt: skip


class Stops:
    """A signal once so many steps are done."""

    exit_code = 143

    def __init__(self, files: RunDir, step: int | None) -> None:
        self.files, self.step = files, step

    @property
    def received(self) -> int | None:
        done = self.files.ledger.read_bytes().count(b"\n") if self.files.ledger.exists() else 0
        return signal.SIGTERM if self.step is not None and done >= self.step else None

    def deferred(self) -> AbstractContextManager[None]:
        return nullcontext()


def train(config: Config, rank: Rank, until: int | None = None) -> RunDir:
    files = RunDir(config.run_dir)
    with contextlib.suppress(Interrupted):
        TrainingRun(config, LocalWorkers(rank), files, Stops(files, until), partial(watch, config, files)).run()
    return files


def use_run(files: RunDir, config: Config, rank: TrainingRank) -> None:
    """What a resume does up to its first step, and what shows, compares and exports a run."""
    refuse_misfits(files)
    if already_finished(files):
        refuse_damaged_model(str(files.export))
        read_heldout(files.heldout)
    splits = rank.prepared.splits
    cached({name: cache_path(config, data) for name, data in splits.items()}, splits)
    for step in files.saved_steps():
        try:
            refuse_misfit(files, files.read_manifest(), step)
            checkpoint.load(rank.policy, files.checkpoint(step), rank.prepared.facts)
        except DpeerError as error:
            raise DpeerError(f"{error} {way_back(files, step)}") from error
    print(*read_run(files.path).notes, sep="\n")


def evaluation(folder: Path, name: str) -> EvalConfig:
    served = [{"name": n, "path": n, "backend": "scribe", "family": n} for n in ("m1", "m2", "j1", "j2")]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(f'{{"item": "q{i}", "prompt": "Question {i}?"}}\n' for i in range(30)))
    values: dict[str, Any] = {"name": name, "output_dir": str(folder), "prompts": {"path": str(prompts)}}
    values |= {"models": served[:2], "judges": served[2:], "judging": {"rubric": "toyworld", "min_mass": 0.0}}
    return EvalConfig.model_validate(values)


def nowhere() -> Any:
    raise AssertionError("Ray is not needed here")


def fit(config: EvalConfig) -> None:
    """A fit with draws that nobody has sampled: on disk it is like any other."""
    ratings = encode(config.folder / "ratings.parquet")
    draws = {"theta": np.random.default_rng(0).normal(size=(2, 50, len(ratings.models), len(ratings.dimensions)))}
    save_fit(Posterior(ratings, Options(), draws, {}, {"cmdstan": "none"}), config.folder / "irt")


def use_evaluation(config: EvalConfig, console: Console) -> None:
    generate(config, nowhere, console=console)
    encode(judge(config, nowhere, console=console))
    for folder in (responses_folder(config), ratings_folder(config)):
        read_rates(folder)  # as a plan does
    if (config.folder / "irt").exists():
        load_fit(config.folder / "irt")


def artefacts(folder: Path) -> list[Path]:
    return [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in NOT_READ and p.parent.name != "tensorboard" and p.stat().st_size
    ]


def heard(use: Callable[[Console], None]) -> str:
    """Everything that is said, one way or the other, by something that goes on from a folder."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            use(Console(file=text, width=500))
        except DpeerError as error:
            text.write(str(error))
        except Exception as error:
            text.write(f"BUG {type(error).__name__}: {error}")
    return text.getvalue()


def flip(path: Path, folder: Path, use: Callable[[Console], None], rng: random.Random) -> tuple[str, str]:
    """How one changed byte was met (refused, made again, silent, bug), and what was said."""
    kept = Path(tempfile.mkdtemp(dir=folder.parent)) / "kept"
    shutil.copytree(folder, kept)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    path.write_bytes(content)
    said = heard(use)
    shutil.rmtree(folder)
    shutil.move(kept, folder)
    kept.parent.rmdir()
    if "BUG" in said:
        return "bug", said
    named = path.name in said and BACK.search(said)
    return ("told" if named else "silent"), said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    recorder = Recorder(parser)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_lab(folder)
        rank = Rank(world.alone(600), 600)
        uses: dict[Path, Callable[[Console], None]] = {}
        for kind, until in (("finished", None), ("half", 3)):
            config = load_config(folder / "recipe.yaml", [*SETTINGS, f"name={kind}", f"output_dir={folder / kind}"])
            files = train(config, rank, until)
            if until is None:
                files.report.touch()
            assert isinstance(rank.rank, TrainingRank)
            uses[folder / kind] = lambda _, f=files, c=config, r=rank.rank: use_run(f, c, r)
        BACKENDS.names()
        BACKENDS.register("scribe", Scribe())
        for kind in ("rated", "half-rated"):
            (folder / kind).mkdir()
            made = evaluation(folder / kind, "e")
            use_evaluation(made, Console(file=io.StringIO()))
            fit(made)
            if kind == "half-rated":
                shutil.rmtree(made.folder / "irt")
                (made.folder / "ratings.parquet").unlink()
                parts(made.folder / "ratings")[0].unlink()
            uses[folder / kind] = lambda console, m=made: use_evaluation(m, console)
        tally: Counter[tuple[str, str]] = Counter()
        for root, use in uses.items():
            quiet = heard(use)
            assert not BACK.search(quiet) or "half" in str(root), quiet
        files_of = {root: artefacts(root) for root in uses}
        for _ in range(given.flips):
            root = rng.choice(list(uses))
            path = rng.choice(files_of[root])
            outcome, said = flip(path, root, uses[root], rng)
            tally[root.name, outcome] += 1
            if outcome != "told":
                print(f"{outcome}: {path.relative_to(folder)}: {said[-600:]}", flush=True)
        world.stop()
        rows = [{"folder": kind, "outcome": outcome, "flips": n} for (kind, outcome), n in sorted(tally.items())]
        print(pd.DataFrame(rows).to_string(index=False))
        silent = sum(n for (_, outcome), n in tally.items() if outcome != "told")
        count = sum(map(len, files_of.values()))
        print(f"{given.flips} flips over {count} files: {silent} used in silence or met by a bug")
        figures = [
            Figure("changed bytes used in silence or met by a bug", silent, "count", "lower", 0),
            Figure("changed bytes", given.flips, "bytes"),
            Figure("files", count, "files"),
        ]
        recorder.write(given, figures)


if __name__ == "__main__":
    main()
