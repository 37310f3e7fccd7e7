"""`dpeer demo --dry-run`: what the demo would do, from its configs and files alone. Nothing is started or written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from dpeer.config import Config
from dpeer.errors import ConfigError
from dpeer.escape import markup
from dpeer.eval.plan import asked
from dpeer.eval.questions.rubric import load_rubric
from dpeer.eval.toy_judges import READING_STEPS, SEVERITIES, TUNING_STEPS
from dpeer.launcher.demo_configs import ARMS, HELDOUT_RECORDS, TRAIN_RECORDS, arm_config, evaluation_config
from dpeer.launcher.doctor import cmdstan
from dpeer.launcher.installed import changed_files
from dpeer.training.run_dir import RunDir, same_recipe

NEEDED = {
    "train": ("torch", "transformers", "peft", "datasets", "deepspeed", "ray", "accelerate", "psutil"),
    "judge,cpu": ("vllm", "httpx"),
}
"""Extra -> what the demo imports of it."""
GIB = 1.0
"""Disk that a demo takes, rounded up: 0.2 GiB of runs, and CmdStan in the cache where it is not there yet."""


def show(root: Path, seed: int, console: Console) -> None:
    """Print the plan. ConfigError: files of the installation are absent or changed."""
    console.print(f"demo in {markup(root)} with seed {seed}; a dry run, so nothing is started", soft_wrap=True)
    for name, what in (*steps(root, seed), *machine(root)):
        console.print(f"{markup(name):17}{markup(what)}", soft_wrap=True)


def steps(root: Path, seed: int) -> Iterator[tuple[str, str]]:
    """(step, what it does) in the order of the demo; every config of it is resolved on the way."""
    yield "files", _files()
    made = "made already" if (root / "world.json").exists() else "to be made"
    yield "toy world", f"{made}: {TRAIN_RECORDS:,} records to train on, {HELDOUT_RECORDS:,} held out, a base model"
    for arm in ARMS:
        config = arm_config(arm, root, seed)
        plan, spec = config.training, config.cluster
        ranks = spec.policy_workers + (spec.reference_workers if spec.reference == "workers" else 0)
        yield arm.title, f"{_state(config)}: {plan.steps} steps of {plan.records_per_step} records on {ranks} workers"
    yield "judges", f"{', '.join(SEVERITIES)}: {READING_STEPS} steps of reading, then {TUNING_STEPS} each"
    judged = evaluation_config(root, seed)
    prompts, rubric = judged.prompts, load_rubric(judged.judging.rubric)
    answers = len(judged.models) * (prompts.limit or 0 if prompts else 0)
    ratings = answers * len(judged.judges) * len(asked(judged, rubric))
    yield "evaluation", f"{answers:,} answers of {len(judged.models)} models, {ratings:,} ratings, abilities, pages"


def machine(root: Path) -> Iterator[tuple[str, str]]:
    """(what, found) of what the demo needs of this machine."""
    for extra, modules in NEEDED.items():
        absent = [name for name in modules if find_spec(name) is None]
        said = f"not installed: {', '.join(absent)}; pip install 'dpeer[{extra}]'" if absent else "installed"
        yield f"extra {extra}", said
    yield "CmdStan", cmdstan()
    there = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free / 2**30
    yield "free disk", f"{free:.1f} GiB in {there}" + (f"; about {GIB:g} GiB are needed" if free < GIB else "")


def _files() -> str:
    found = changed_files()
    if found is None:
        return "of a source tree, which no list of a wheel describes"
    count, bad = found
    if bad:
        raise ConfigError(
            f"{len(bad)} of the {count} files that dpeer's wheel brought are not as it brought them: "
            f"{'; '.join(bad[:3])}. Install again: pip install --force-reinstall --no-deps dpeer"
        )
    return f"all {count} of the installed wheel are as it brought them"


def _state(config: Config) -> str:
    files = RunDir(config.run_dir)
    if not files.manifest.exists():
        return "to be trained"
    if not same_recipe(files.read_manifest()["config"], config):
        return "to be trained anew, as its recipe has changed"
    return "finished" if files.finished else "to be continued"
