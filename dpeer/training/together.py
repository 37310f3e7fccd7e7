"""Whether manifest, ledger and checkpoints of a run are whole and of one run, from the files alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpeer import chain
from dpeer.errors import CheckpointError
from dpeer.integrity import entry, read_state
from dpeer.training.run_dir import BINDING, RunDir


def refuse_misfits(files: RunDir, say: Callable[[str], None] = print) -> None:
    """CheckpointError: the run cannot go on from its newest checkpoint, because a part is missing, damaged or of
    another run. `say` gets a line for a run of an earlier version, which has nothing to check."""
    files.refuse_lost_manifest()
    if not files.manifest.exists():
        return
    manifest, saved = files.read_manifest(), files.saved_steps()
    files.stopped  # noqa: B018 - raises for a damaged one
    if manifest.get("run") is None:
        say(f"{files.path}: an earlier dpeer began this run, without checksums; damage to its files would not be seen.")
    elif saved:
        refuse_misfit(files, manifest, saved[-1])


def refuse_misfit(files: RunDir, manifest: dict[str, Any], step: int) -> None:
    """The same of one checkpoint; whatever it holds passes in a run of an earlier version."""
    if manifest.get("run") is None:
        return
    folder, back = files.checkpoint(step), way_back(files, step)
    bound = read_state(folder / BINDING, back)
    if bound.get("run") != manifest["run"] or bound.get("step") != step:
        raise CheckpointError(f"{folder} belongs to another run, or to another step of this one. {back}")
    if bound.get("state") != entry(folder / "state.json"):
        raise CheckpointError(f"{folder / 'state.json'} is not the one that was saved with {BINDING} beside it. {back}")
    for path in (files.ledger, files.timing):
        written = chain.whole_lines(path)[:step]
        if len(written) < step:
            raise CheckpointError(
                f"{path}: only {len(written)} whole lines of the {step} steps up to the checkpoint are there. "
                f"{_earlier(files, len(written) + 1)}"
            )
        if found := next(chain.broken(written, manifest["chain"]), None):
            raise CheckpointError(
                f"{path}: line {found} has changed since it was written, or does not follow the line before; the "
                f"checkpoint of step {step} continues these lines. {_earlier(files, found)}"
            )
    if chain.checksum(chain.whole_lines(files.ledger)[step - 1]) != bound.get("ledger"):
        raise CheckpointError(
            f"{files.ledger} is not the ledger that led to {folder}: its lines up to step {step} are whole, but "
            "others. Restore the ledger of this run, or start anew under another name (--set name=...)."
        )


def way_back(files: RunDir, step: int) -> str:
    """What to do about a damaged checkpoint."""
    before = [s for s in files.saved_steps() if s < step]
    if not before:
        return "Restore it from a copy, or start anew under another name (--set name=...): the run has no earlier one."
    where = files.path / f"damaged-{step}"
    return (
        f"Restore it from a copy, or move the checkpoint away, `mv {files.checkpoint(step)} {where}`: with --resume "
        f"the run then goes on from step {before[-1]}."
    )


def _earlier(files: RunDir, line: int) -> str:
    """What to do about a ledger that is damaged in that line."""
    before = [s for s in files.saved_steps() if s < line]
    if not before:
        return "Restore the file from a copy, or start anew under another name (--set name=...)."
    return (
        f"Restore the file from a copy, or move the checkpoints after step {before[-1]} out of {files.checkpoints}: "
        f"with --resume the run then goes on from step {before[-1]} and computes the later lines again."
    )
