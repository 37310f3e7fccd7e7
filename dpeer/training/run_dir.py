"""The files of one run. Whatever is written is either whole or absent."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpeer import chain
from dpeer.config import Config
from dpeer.config_io import resolved
from dpeer.errors import CheckpointError
from dpeer.files import SILENT_S, clear_temporary, sync, write_text
from dpeer.integrity import digest, entry, read_state, write_state
from dpeer.json_safe import json_safe
from dpeer.versions import git_revision, package_version

PACKAGES = ("dpeer", "torch", "transformers", "deepspeed", "peft", "ray", "datasets", "numpy")
MAY_CHANGE = (  # nothing here changes what a step computes
    "cluster",
    "output_dir",
    "model.reference_revision",  # the reference's hash is among the facts
    "model.offload_activations",
    "model.mlp_tile",
    "training.tokens_per_pack",
    "training.sequence_parallel",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.checkpoint_async",
    "training.keep_checkpoints",
    "training.deterministic",
    "training.sample_every",
    "training.sample_prompts",
    "training.trackers",
    "training.wandb_project",
    "data.date",
)

PLACES = (
    "name",
    "model.path",
    "model.reference_path",
    "model.lora.path",
    "model.chat_template",
    "data.train",
    "data.heldout",
    "data.dual",
    "data.map",
)
"""Where things lie; what lies there is among the facts, by hashes."""
MANIFEST_LOST = (
    "Only it says with which settings the run was trained: restore it from a copy, or start anew under another name "
    "(--set name=...)."
)
STOP_LOST = "It says why training ended early: restore it, or remove it to train on."
BINDING = "run.json"


class RunDir:
    """runs/NAME: manifest.json, ledger.jsonl, timing.jsonl, samples.jsonl, stop.json, certificate.json,
    heldout.safetensors, checkpoints/, export/, report.html."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger, self.timing = path / "ledger.jsonl", path / "timing.jsonl"
        self.manifest, self.certificate = path / "manifest.json", path / "certificate.json"
        self.heldout = path / "heldout.safetensors"
        self.samples, self.stop = path / "samples.jsonl", path / "stop.json"
        self.checkpoints, self.export, self.report = path / "checkpoints", path / "export", path / "report.html"
        self.ends: dict[Path, str | None] = {}  # running checksums of the lines written so far

    def begin(self, config: Config, facts: dict[str, Any], means: Mapping[str, Any] | None = None) -> None:
        """Write the metadata of a fresh run: `facts` that it keeps, and `means` of which another life of it may have
        other ones. CheckpointError: there is a run already that has lost its manifest."""
        self.refuse_lost_manifest()
        write_state(
            self.manifest,
            {
                "run": secrets.token_hex(8),
                "chain": identity(config, facts),
                "config": resolved(config),
                "versions": {"python": platform.python_version()} | {p: package_version(p) for p in PACKAGES},
                "git": git_revision(),
                "folder": os.getcwd(),
                "created": now(),
                "finished": None,
                **facts,
                **(means or {}),
            },
        )

    def read_manifest(self) -> dict[str, Any]:
        """CheckpointError: it is missing or damaged."""
        return read_state(self.manifest, MANIFEST_LOST)

    def refuse_lost_manifest(self) -> None:
        """CheckpointError for a run whose manifest is gone: what it was trained with can no longer be told."""
        left = [
            p for p in (self.ledger, *self.checkpoints.glob("step-*/state.json")) if p.exists() and p.stat().st_size
        ]
        if left and not self.manifest.exists():
            raise CheckpointError(f"{self.manifest} is missing, but {left[-1]} is there. {MANIFEST_LOST}")

    def begin_or_resume(self, config: Config, facts: dict[str, Any], means: dict[str, Any]) -> None:
        """See `begin` and `check_resumable`."""
        if self.manifest.exists():
            self.check_resumable(config, facts)
        else:
            self.begin(config, facts, means)

    def note(self, means: Mapping[str, Any]) -> None:
        """What this life of the run computes with, once it is sure to go on."""
        write_state(self.manifest, self.read_manifest() | dict(means))

    def check_resumable(self, config: Config, facts: dict[str, Any]) -> None:
        """Refuse to go on with another config, data set or reference than the run began with; says what differs."""
        if not self.manifest.exists():
            raise CheckpointError(f"{self.path}: nothing to resume (no manifest.json). Start it without --resume.")
        old, free = self.read_manifest(), may_change(config.training.model_dump())
        free += ("data.map",) if facts.get("data", ()) == old.get("data") else ()  # it gave the same tokens and weights
        if (began := old.get("method", 1)) != facts.get("method", began):
            raise CheckpointError(
                f"{self.path}: began under version {began} of the method, and this dpeer now computes version "
                f"{facts['method']} (objective and multipliers differ, see CHANGELOG): the result would be of neither. "
                f"Finish it with dpeer {old.get('versions', {}).get('dpeer', 'of that time')}, or start a new run."
            )
        differs = [
            f"{key}: was {before!r}, now {after!r}"
            for key, before, after in differences(_with_defaults(old["config"]), resolved(config))
            if not key.startswith(free)
        ]
        differs += [f"{k}: was {old.get(k)!r}, now {facts[k]!r}" for k in facts if old.get(k) != facts[k]]
        began_as = old["config"].get("name", config.name)
        if began_as != config.name:
            raise CheckpointError(
                f"{self.path}: this run began as {began_as}; its folder was renamed since. Rename it back, "
                f"`mv {self.path} {self.path.with_name(began_as)}`, and go on with --set name={began_as}. What stands "
                "in it can be read under any name."
            )
        if differs:
            raise CheckpointError(
                f"{self.path}: cannot resume, because the result would be of neither run. Changed since it began:\n  "
                + "\n  ".join(differs)
                + "\nGive the new run another name, or restore these."
            )

    def at_its_rate(self, config: Config) -> Config:
        """The config with the learning rate that the run began with, where the recipe gives none: defaults change."""
        if config.rate_given or not self.manifest.exists():
            return config
        optimizer = self.read_manifest().get("config", {}).get("training", {}).get("optimizer", {})
        return config.model_copy(update={"training": config.training.at_rate(optimizer["lr"])}) if optimizer else config

    @property
    def way_on(self) -> str:
        """What to do after a run has ended too early, as the end of a message."""
        if self.saved_steps():
            return "The last checkpoint is kept. Go on with --resume."
        if self.manifest.exists():
            return "Nothing was saved yet. Go on with --resume, which begins at step 1."
        return "The run had not begun. Start it again as before, without --resume."

    def sync(self) -> None:
        """Force ledger and timing to disk: a checkpoint must never be newer than the ledger it continues."""
        for path in (self.ledger, self.timing, self.samples):
            if path.exists():
                sync(path)

    def finish(self, step: int, checked: str) -> None:
        """`step`: the checkpoint that was certified and exported. `checked`: how the export was, in words."""
        manifest = self.read_manifest()
        closed = {"ledger": self.end(self.ledger)} if "chain" in manifest else {}
        write_state(
            self.manifest, manifest | closed | {"exported_step": step, "export_checked": checked, "finished": now()}
        )

    @property
    def finished(self) -> bool:
        return self.manifest.exists() and self.read_manifest().get("finished") is not None

    def append(self, entry: dict[str, Any], timing: Mapping[str, Any]) -> None:
        """One line per step to the ledger (deterministic) and to the timing file (not)."""
        self._append(self.ledger, [entry])
        self._append(self.timing, [timing])

    def append_samples(self, step: int, replies: Sequence[Mapping[str, Any]]) -> None:
        """A line per reply of the policy after `step`."""
        self._append(self.samples, [{"step": step, **reply} for reply in replies])

    def _append(self, path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
        self.ends[path] = chain.append(path, lines, self.end(path))

    def end(self, path: Path) -> str | None:
        """Running checksum of a file of lines; None for a run of an earlier version, which has none."""
        if path not in self.ends:
            start = self.read_manifest().get("chain")
            lines = chain.whole_lines(path) if start else []
            self.ends[path] = chain.checksum(lines[-1]) if lines else start
            if start and self.ends[path] is None:
                raise CheckpointError(
                    f"{path}: its last line has lost its checksum, so that what follows could not be told from what "
                    "was changed. Restore the file, or start anew under another name."
                )
        return self.ends[path]

    def rows(self) -> list[dict[str, Any]]:
        """The ledger."""
        return [json.loads(line) for line in self.ledger.read_text().splitlines()] if self.ledger.exists() else []

    @property
    def stopped(self) -> dict[str, Any] | None:
        """Why training ended early: {"step", "reason"} and what goes with the reason; None where it did not."""
        return read_state(self.stop, STOP_LOST) if self.stop.exists() else None

    def truncate(self, step: int) -> None:
        """Forget the lines after `step`: they are about to be computed again. A half-written last line goes too, and a
        decision to stop after `step`.

        Raises CheckpointError, and leaves the files alone, when a line up to `step` is missing.
        """
        kept = {path: chain.steps_up_to(path, step) for path in (self.ledger, self.timing)}
        for path, lines in kept.items():
            if len(lines) != step:
                raise CheckpointError(
                    f"{path}: only steps 1 to {len(lines)} of the {step} steps up to the checkpoint are there. The run "
                    "is damaged: restore the file, or start anew under another name."
                )
        self.ends.clear()
        for path, lines in kept.items():
            if path.exists():
                write_text(path, "".join(f"{line}\n" for line in lines))
        if self.samples.exists():
            write_text(self.samples, "".join(f"{line}\n" for line in chain.samples_up_to(self.samples, step)))
        if (stopped := self.stopped) and stopped["step"] > step:
            self.stop.unlink()

    def keep(self, name: str, text: str) -> Path:
        """Write what explains a failure; into the system's temporary folder when the run's disk takes nothing more."""
        path = self.path / name
        try:
            write_text(path, text)
        except OSError:
            path = Path(tempfile.mkdtemp(prefix="dpeer-")) / name
            write_text(path, text)
        return path

    def keep_error(self, title: str, details: str) -> Path:
        """Add to error.txt what failed workers have said, below that of earlier failures."""
        path = self.path / "error.txt"
        try:
            before = path.read_text(errors="replace") + "\n"
        except OSError:
            before = ""
        return self.keep(path.name, f"{before}=== {now()} {title}\n{details.rstrip()}\n")

    def keep_stall(self, report: str) -> Path:
        """Write the stacks of stalled ranks beside earlier ones."""
        return self.keep(f"stall-{len(list(self.path.glob('stall-*.txt'))) + 1}.txt", report)

    def saved_steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return sorted(int(p.parent.name.removeprefix("step-")) for p in self.checkpoints.glob("step-*/state.json"))

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:07d}"

    def temporary_checkpoint(self, step: int) -> Path:
        return self.checkpoints / f".writing-{step:07d}"

    def bind(self, folder: Path, step: int, ledger: str | None) -> None:
        """Note in a checkpoint, before it counts, to which run it belongs, and to which ledger, by its checksum after
        that step."""
        run = self.read_manifest().get("run")
        if run is not None:
            own = {"run": run, "step": step, "ledger": ledger, "state": entry(folder / "state.json")}
            write_state(folder / BINDING, own)

    def refuse_lost_checkpoints(self) -> None:
        """CheckpointError when there is no checkpoint though the ledger is longer than a run without one can get."""
        if not (self.ledger.exists() and self.manifest.exists()):
            return
        spec = self.read_manifest()["config"]["training"]
        every, minutes = spec["checkpoint_every"], spec.get("checkpoint_minutes")
        steps = self.ledger.read_bytes().count(b"\n")
        on_its_way = any(self.checkpoints.glob(".writing-*"))  # a kill came before the first one was whole
        if every is not None and steps > every * (1 + on_its_way):
            often = f"{every} steps"
        elif minutes is not None and not on_its_way and self._seconds(steps - 1) > 60 * minutes:
            often = f"{minutes:g} minutes"
        else:
            return
        raise CheckpointError(
            f"{self.checkpoints}: no checkpoint is there, but the ledger has {steps} steps and one was saved every "
            f"{often}. Starting over would wipe the ledger. Restore the folder (is its disk mounted?), or give the "
            "new run another name."
        )

    def _seconds(self, step: int) -> float:
        """That the steps up to this one have taken."""
        return sum(float(json.loads(line)["seconds"]) for line in chain.steps_up_to(self.timing, step))

    def prune(self, keep: int, spared: int | None = None) -> None:
        """Remove all but the newest checkpoints and the one to be spared: renamed first, so that a kill leaves no half
        of one. What cannot be removed is told; it ends no run."""
        for step in self.saved_steps()[:-keep]:
            if step != spared:
                folder, gone = self.checkpoint(step), self.checkpoints / f".removing-{step:07d}"
                try:
                    shutil.rmtree(gone, ignore_errors=True)
                    folder.rename(gone)
                    shutil.rmtree(gone)
                except OSError as error:
                    print(f"warning: {folder}: cannot be removed ({error.strerror}); it takes room.", flush=True)

    def clear_partial(self) -> None:
        """Remove what a killed save left behind."""
        for path in (*self.checkpoints.glob(".writing-*"), *self.checkpoints.glob("step-*/.universal-*")):
            shutil.rmtree(path)
        clear_temporary(self.checkpoints, ".removing-*")
        clear_temporary(self.path, ".export.old")
        clear_temporary(self.path, silent_s=SILENT_S)  # a report may be written just now
        for path in self.checkpoints.glob("step-*"):
            if not (path / "state.json").exists():  # it would be in the way when training comes there again
                aside = path.with_name(f".unusable-{path.name}-{secrets.token_hex(4)}")
                path.rename(aside)
                print(f"{path} has no state.json and is no checkpoint: renamed {aside.name}.", flush=True)


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A manifest's config with the fields that later versions have added, at the values that change nothing."""
    try:
        return resolved(Config.model_validate(config))
    except ValidationError:
        return config


def same_recipe(recorded: Mapping[str, Any], config: Config) -> bool:
    """Whether a manifest's config is this one. Nothing of `cluster` changes what a step computes, and a day that the
    recipe does not give is that of the run."""
    free = ("cluster", "training.trackers", *(() if config.data.date else ("data.date",)))
    return _without(_with_defaults(dict(recorded)), free) == _without(resolved(config), free)


def may_change(training: Mapping[str, Any]) -> tuple[str, ...]:
    """Beginnings of the keys that change no result. Where checkpoints are judged, their schedule is part of it."""
    judged = training.get("keep") == "best" or training.get("stop_when") == "certified"
    return tuple(key for key in MAY_CHANGE if not (judged and key == "training.checkpoint_every"))


def identity(config: Config, facts: Mapping[str, Any]) -> str:
    """Hash of what decides a run's results, equal for equal runs whatever their name, folder or number of ranks: the
    ledger's checksums begin with it."""
    free = (*PLACES, *may_change(config.training.model_dump()))
    shared = {"config": _without(resolved(config), free), "facts": facts}
    return digest(json.dumps(json_safe(shared), sort_keys=True).encode())


def _without(tree: Mapping[str, Any], beginnings: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    """A nested mapping less the dotted keys that begin so."""
    kept = {key: value for key, value in tree.items() if not f"{prefix}{key}".startswith(beginnings)}
    return {k: _without(v, beginnings, f"{prefix}{k}.") if isinstance(v, dict) else v for k, v in kept.items()}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two nested mappings differ; an absent value is None."""
    if isinstance(old, dict) and isinstance(new, dict):
        changes = []
        for key in dict.fromkeys([*old, *new]):
            changes += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return changes
    return [] if old == new else [(prefix, old, new)]


def refuse_unshared(folder: Path, who: str) -> None:
    """CheckpointError when a process cannot see the checkpoint that rank 0 has just written."""
    if not (folder / "state.json").is_file():
        raise CheckpointError(
            f"{folder}: {who} does not see the files that policy rank 0 has written there. output_dir must lie on a "
            "file system that the driver and all workers share. Earlier checkpoints are untouched."
        )
