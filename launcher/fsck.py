"""What is sound in the folder of a run, evaluation, build, fit or sweep. Reads everything once and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpeer import chain
from dpeer.errors import DpeerError
from dpeer.integrity import LIST, Damaged, faults, folder_faults, parse_state, verify
from dpeer.training.run_dir import BINDING, MANIFEST_LOST, RunDir
from dpeer.training.together import refuse_misfit, way_back
from dpeer.training.token_place import left, place_of, store_faults, stores

State = Literal["sound", "no checksum", "damaged", "left over"]
UNIVERSAL = "universal"  # what earlier versions made of a checkpoint for another number of ranks
AGAIN = "`dpeer train --resume` makes it again"
PARTS_AGAIN = "Restore it, or delete it: the next run of the same command makes its rows again"


@dataclass(frozen=True)
class Finding:
    """One file or folder; `says` has the fault and the way back, and is empty for what is sound."""

    path: Path
    state: State
    says: str = ""


def check(folder: Path) -> Iterator[Finding]:
    """Everything below the folder that dpeer reads again. DpeerError: it is none of these folders."""
    if (folder / "sweep.json").exists():
        yield from _sweep(folder)
    elif (folder / "draws.npz").exists():
        yield from _fit(folder)
    elif any((folder / name).exists() for name in ("responses", "texts", "ratings", "ratings.parquet")):
        yield from _evaluation(folder)
    elif any((folder / name).exists() for name in ("manifest.json", "ledger.jsonl", "checkpoints")):
        yield from _run(folder)
        yield from _caches(folder.parent / "reference_cache")
        yield from _tokens(folder.parent)
    else:
        raise DpeerError(
            f"{folder}: no folder of a run, an evaluation, a fit or a sweep (no manifest.json, ratings, draws.npz or "
            "sweep.json in it). Give the folder that `dpeer train`, `dpeer judge` or `dpeer irt fit` printed."
        )


def _file(path: Path, remedy: str, parse: Callable[[bytes], Any] = verify) -> Finding:
    """A sealed file."""
    try:
        content = path.read_bytes()
        sealed = verify(content)
        if not content:
            raise Damaged("is empty")
        parse(content)
        return Finding(path, "sound" if sealed else "no checksum")
    except FileNotFoundError:
        return Finding(path, "damaged", f"is missing. {remedy}")
    except (Damaged, OSError) as error:
        return Finding(path, "damaged", f"{error}. {remedy}")


def _run(folder: Path) -> Iterator[Finding]:
    yield from check_records(folder)
    files = RunDir(folder)
    manifest = _manifest(files)
    finished = manifest.get("finished") is not None
    for step in files.saved_steps():
        yield from _checkpoint(files, manifest, step)
    if files.export.exists() or finished:
        yield from _listed(files.export, f"Remove it; {AGAIN}, or `dpeer export`")
    for path in (*files.checkpoints.glob(".writing-*"), *folder.glob(".*.tmp")):
        yield Finding(path, "left over", "of a kill; the next run removes or ignores it")


def check_records(folder: Path) -> Iterator[Finding]:
    """What a run says of itself: all its files but checkpoints and the exported model."""
    files = RunDir(folder)
    yield _file(files.manifest, MANIFEST_LOST, parse_state)
    manifest = _manifest(files)
    yield from _lines(files, manifest)
    if files.stop.exists():
        yield _file(files.stop, "Restore it, or remove it to train on", parse_state)
    for path, parse in ((files.certificate, parse_state), (files.heldout, verify)):
        finished = manifest.get("finished") is not None
        if path.exists() or (finished and "heldout" in manifest.get("data", {}) and "run" in manifest):
            yield _file(path, f"Remove it; {AGAIN}", parse)


def _manifest(files: RunDir) -> dict[str, Any]:
    """Empty where it is missing or damaged."""
    try:
        return parse_state(files.manifest.read_bytes())
    except (Damaged, OSError):
        return {}


def _lines(files: RunDir, manifest: dict[str, Any]) -> Iterator[Finding]:
    for path in (files.ledger, files.timing, files.samples):
        if not path.exists():
            if path != files.samples and files.saved_steps():
                yield Finding(path, "damaged", "is missing. Restore it, or start anew under another name")
            continue
        written, start = chain.whole_lines(path), manifest.get("chain")
        broken = list(chain.broken(written, start))
        if broken:
            earlier = max((s for s in files.saved_steps() if s < broken[0]), default=None)
            back = f", or go on from step {earlier} without the later checkpoints" if earlier is not None else ""
            yield Finding(path, "damaged", f"line {broken[0]} has changed since it was written. Restore it{back}")
        elif path == files.ledger and not chain.complete(written, manifest):
            yield Finding(path, "damaged", "does not end as it did when the run was finished. Restore it")
        elif path.read_bytes().rpartition(b"\n")[2]:
            yield Finding(path, "left over", "ends in half a line, of a kill; the next run removes it")
        else:
            yield Finding(path, "sound" if start else "no checksum")


def _checkpoint(files: RunDir, manifest: dict[str, Any], step: int) -> Iterator[Finding]:
    folder, back = files.checkpoint(step), way_back(files, step)
    yield (found := _file(folder / "state.json", back, parse_state))
    if found.state == "damaged":
        return
    state = parse_state((folder / "state.json").read_bytes())
    if "run" in manifest:
        try:
            refuse_misfit(files, manifest, step)
            yield Finding(folder / BINDING, "sound")
        except DpeerError as error:
            yield Finding(folder / BINDING, "damaged", f"does not fit: {error}")
    listed = state.get("files", {})
    wrong = faults(folder, listed)
    yield from (Finding(folder / name, "damaged", f"{says}. {back}") for name, says in wrong.items())
    yield from (Finding(folder / name, "sound") for name in listed if name not in wrong)
    known = {*listed, "state.json", BINDING}
    for path in (p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if str(name) not in known and name.parts[0] != UNIVERSAL:
            yield Finding(path, "damaged" if listed else "no checksum", "was not saved with this checkpoint. Remove it")
    if (folder / UNIVERSAL).exists():
        yield Finding(folder / UNIVERSAL, "left over", "of an earlier version, for another number of ranks. Delete it")


def _listed(folder: Path, remedy: str) -> Iterator[Finding]:
    """A folder with a `checksums.json`."""
    if not folder.is_dir():
        yield Finding(folder, "damaged", f"is missing. {remedy}")
        return
    found = folder_faults(folder)
    if found is None:
        yield Finding(folder, "no checksum")
        return
    yield from (Finding(folder / name, "damaged", f"{says}. {remedy}") for name, says in found.items())
    if not found:
        yield Finding(folder / LIST, "sound")


def _caches(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.glob("*.safetensors")):
        yield _file(path, "Every loss is measured from it. Delete it; the next run makes it again")


def _tokens(output: Path) -> Iterator[Finding]:
    """The tokens of records that runs in this folder read."""
    place = place_of(output)
    for path in stores(place):
        wrong = store_faults(path)
        for name, says in wrong.items():
            yield Finding(path / name, "damaged", f"{says}. The next run makes it again; or delete {path}")
        if not wrong:
            yield Finding(path, "sound")
    for path in left(place):
        yield Finding(path, "left over", "of a kill, or being written; the next run of these records removes it")


def _evaluation(folder: Path) -> Iterator[Finding]:
    from dpeer.eval.build.texts import TEXTS
    from dpeer.eval.store.parts import parts, read_sealed, read_table, unsealed
    from dpeer.eval.store.schema import RATINGS, RESPONSES

    kinds = (("responses", RESPONSES), ("turns", RESPONSES), ("texts", TEXTS), ("ratings", RATINGS))
    tables = [(part, schema) for name, schema in kinds
              for part in parts(folder / name)]  # fmt: skip
    union = folder / "ratings.parquet"
    tables += [(union, RATINGS)] if union.exists() else []
    sound = True
    for path, schema in tables:
        try:
            read_sealed(path, schema)
            yield Finding(path, "no checksum" if unsealed([path]) else "sound")
        except (OSError, KeyError, ValueError) as error:  # Arrow's are ValueErrors
            sound = False
            reason = (str(error).splitlines() or ["cannot be read"])[0][:200]
            again = "`dpeer judge` makes it again from its parts" if path == union else PARTS_AGAIN
            yield Finding(path, "damaged", f"{reason}. {again}")
    for name, schema in kinds if sound else ():
        try:
            read_table(folder / name, schema)
        except DpeerError as error:
            yield Finding(folder / name, "damaged", str(error))
    for path in sorted(folder.rglob("rates.json")):
        yield _file(path, "It only foretells times: delete it", parse_state)
    for path in sorted(folder.glob("rounds/*/*.json")):
        yield _file(path, "It says what a round asked: restore it, or delete its folder", parse_state)
    for path in sorted(folder.glob("[rt]*/manifest.json")):
        yield _file(path, "It says what was spent: restore it, or delete it to count from nothing", parse_state)
    for path in sorted(folder.glob("[rt]*/batches-*.json")):
        yield _file(path, "It names batches under way: restore it, or delete it to pay for them again", parse_state)
    for path in sorted(folder.rglob("draws.npz")):
        yield from _fit(path.parent)


def _fit(folder: Path) -> Iterator[Finding]:
    from dpeer.eval.irt.fit_folder import load

    try:
        load(folder)
        yield _file(folder / "manifest.json", "Fit again", parse_state)
        yield Finding(folder / "draws.npz", "sound")
    except DpeerError as error:
        yield Finding(folder, "damaged", str(error))


def _sweep(folder: Path) -> Iterator[Finding]:
    found = _file(folder / "sweep.json", "Delete it; `dpeer sweep run FILE` writes it again", parse_state)
    yield found
    for path in sorted(p.parent for p in folder.glob("*/ledger.jsonl")):
        yield from _run(path)
    yield from _caches(folder / "reference_cache")
    yield from _tokens(folder)
