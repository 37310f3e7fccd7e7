"""Whatever byte of a run changes: `fsck` names the file, and what goes on from it refuses it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from dpeer.errors import CheckpointError, DpeerError
from dpeer.eval.store.parts import read_table, write_part, write_table
from dpeer.eval.store.schema import RATINGS
from dpeer.files import write_json
from dpeer.integrity import listed, write_list, write_state
from dpeer.launcher.cli import app
from dpeer.launcher.driver import already_finished, check_startable
from dpeer.launcher.fsck import check
from dpeer.report.run import read_run
from dpeer.tensor_file import write_tensors
from dpeer.training.run import load
from dpeer.training.run_dir import RunDir, identity
from dpeer.training.together import refuse_misfits
from tests.training.test_run_dir import FACTS, recipe

BACK = re.compile(r"[Rr]estore|[Rr]emove|[Dd]elete|made again|makes it again|goes on from|start anew")


def finished_run(path: Path, seed: int = 0) -> RunDir:
    """All files of a run that dpeer reads again; shards are random bytes."""
    run, rng = RunDir(path), random.Random(seed)
    run.begin(recipe(), FACTS | {"data": {"train": {}, "heldout": {}}})
    for step in range(1, 7):
        run.append({"step": step, "objective": step / 8 + seed}, {"step": step, "seconds": 1.0})
        run.append_samples(step, [{"prompt": "p", "reply": f"r {step}"}])
        if step % 2 == 0:
            shards = run.checkpoint(step) / "deepspeed"
            shards.mkdir(parents=True)
            for rank in range(2):
                (shards / f"zero_pp_rank_{rank}_optim.pt").write_bytes(rng.randbytes(500))
            state = {"step": step, "dual": {"multipliers": [0.5]}, "files": listed(shards.parent, shards.iterdir())}
            write_state(run.checkpoint(step) / "state.json", state)
            run.bind(run.checkpoint(step), step, run.end(run.ledger))
    write_state(run.stop, {"step": 6, "reason": "patience"})
    write_state(run.certificate, {"confidence": 0.95, "constraints": []})
    write_tensors(run.heldout, {"margins": torch.arange(9.0)}, {"dimensions": "[]"})
    run.export.mkdir()
    (run.export / "model.safetensors").write_bytes(rng.randbytes(900))
    write_list(run.export)
    run.finish(6, "reloaded")
    return run


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def said(folder: Path) -> str:
    return "\n".join(f"{f.path} {f.says}" for f in check(folder) if f.state in ("damaged", "left over"))


def test_a_sound_run_has_no_faults_and_every_flipped_byte_is_found(tmp_path: Path) -> None:
    folder, rng = finished_run(tmp_path / "run").path, random.Random(1)
    assert {f.state for f in check(folder)} == {"sound"}
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    assert len(files) == 21
    for path in files:
        whole = path.read_bytes()
        for _ in range(3):
            flip(path, rng)
            message = said(folder)
            assert str(path) in message and BACK.search(message), (path, message)
        path.write_bytes(whole)
    assert said(folder) == ""


@pytest.mark.parametrize(
    "name", ["manifest.json", "ledger.jsonl", "timing.jsonl", "stop.json", "state.json", "run.json"]
)
def test_a_run_does_not_go_on_from_changed_or_missing_files(tmp_path: Path, name: str) -> None:
    """A shard is the ranks' to check, see test_train_ray.py."""
    run, rng = finished_run(tmp_path / "run"), random.Random(2)
    refuse_misfits(run)
    path = next(p for p in (run.path / name, run.checkpoint(6) / name) if p.exists())
    whole = path.read_bytes()
    for damage in (None, b"", whole[: len(whole) // 2], "flip"):
        if damage is None:
            path.unlink()
        elif damage == "flip":
            path.write_bytes(whole)
            flip(path, rng)
        else:
            path.write_bytes(damage)
        if damage is None and name in ("stop.json", "state.json"):
            continue  # as before the decision, or before the checkpoint was whole
        with pytest.raises(CheckpointError, match=re.escape(name)) as caught:
            refuse_misfits(RunDir(run.path))
        assert BACK.search(str(caught.value)), str(caught.value)


def test_a_lost_manifest_is_not_replaced_by_another(tmp_path: Path) -> None:
    """Else the run goes on from its checkpoints, and the new manifest claims its settings for all steps."""
    run = finished_run(tmp_path / "run")
    run.manifest.unlink()
    for begin in (lambda: run.begin(recipe(objective__beta=0.7), FACTS), lambda: check_startable(run, resume=False)):
        with pytest.raises(CheckpointError, match=r"manifest\.json is missing, but .*Only it says"):
            begin()
    assert not run.manifest.exists()


def test_parts_of_another_run_are_refused(tmp_path: Path) -> None:
    run, other = finished_run(tmp_path / "run"), finished_run(tmp_path / "other", seed=1)
    for name, says in (("checkpoints", "belongs to another run"), ("ledger.jsonl", "not the ledger that led to")):
        shutil.move(run.path / name, tmp_path / "kept")
        (shutil.copytree if name == "checkpoints" else shutil.copy)(other.path / name, run.path / name)
        with pytest.raises(CheckpointError, match=says):
            refuse_misfits(RunDir(run.path))
        assert name in said(run.path) or "does not fit" in said(run.path)
        shutil.rmtree(run.path / name) if name == "checkpoints" else (run.path / name).unlink()
        shutil.move(tmp_path / "kept", run.path / name)
    refuse_misfits(RunDir(run.path))


def test_an_earlier_checkpoint_is_checked_before_it_is_exported(tmp_path: Path) -> None:
    """The best one need not be the newest, from which training goes on."""
    run = finished_run(tmp_path / "run")
    flip(run.checkpoint(2) / "run.json", random.Random(4))
    refuse_misfits(run)
    policy: Any = None
    with pytest.raises(CheckpointError, match=r"step-0000002/run\.json does not match"):
        load(policy, run, 2)


def test_equal_runs_have_equal_ledgers_whatever_their_name_folder_and_ranks(tmp_path: Path) -> None:
    moved = {"name": "y", "output_dir": "z", "model__path": "n", "data__train": "e", "cluster__policy_workers": 8}
    assert identity(recipe(), FACTS) == identity(recipe(**moved, training__tokens_per_pack=9), FACTS)
    assert identity(recipe(), FACTS) != identity(recipe(objective__beta=0.7), FACTS)
    assert identity(recipe(), FACTS) != identity(recipe(), FACTS | {"reference": {"hash": "r1"}})
    ledgers = [finished_run(tmp_path / name).ledger.read_bytes() for name in ("a", "b")]
    assert ledgers[0] == ledgers[1]


def test_pages_leave_changed_lines_out_and_say_so(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    assert read_run(run.path).notes == ()
    run.ledger.write_text(run.ledger.read_text().replace('"objective": 0.375', '"objective": 0.376'))
    found = read_run(run.path)
    assert [row.step for row in found.ledger] == [1, 2, 4, 5, 6]
    assert found.notes == (
        "ledger.jsonl: 1 damaged line is left out (line 3); bytes have changed: restore it from a copy.",
    )


def test_what_a_finished_run_has_lost_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path / "run")
    run.report.touch()
    assert already_finished(run, recipe()) and "nothing to do" in capsys.readouterr().out
    flip(run.export / "model.safetensors", random.Random(0))
    assert not already_finished(run, recipe())
    assert re.search("model.safetensors does not match.*made again", capsys.readouterr().out)
    with pytest.raises(CheckpointError, match=r"Changed since it began:\n  objective.beta: was 0.1, now 0.9"):
        already_finished(run, recipe(objective__beta=0.9))
    with pytest.raises(CheckpointError, match=r"data.train: was 'd.jsonl', now 'other.jsonl'"):
        already_finished(run, recipe(data__train="other.jsonl"))
    shutil.rmtree(run.checkpoints)  # with these gone, training it again is nothing that `--resume` promises
    assert already_finished(run, recipe()) and "cannot be made again" in capsys.readouterr().out


def test_runs_without_checksums_go_on_with_one_line(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    manifest = json.loads(run.manifest.read_text())
    write_json(run.manifest, {k: v for k, v in manifest.items() if k not in ("run", "chain", "checksum", "ledger")})
    lines: list[str] = []
    refuse_misfits(RunDir(run.path), lines.append)
    assert len(lines) == 1 and "without checksums" in lines[0]


def test_files_of_a_later_version_are_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    write_json(run.manifest, json.loads(run.manifest.read_text()) | {"state_format": 2, "checksum": ""})
    with pytest.raises(CheckpointError, match=r"manifest\.json has format 2.*a later version wrote it"):
        refuse_misfits(run)


def evaluation_folder(path: Path) -> Path:
    for judge in ("a", "b"):
        rows = [
            dict.fromkeys(RATINGS.names) | {"rating_id": f"{judge}{i}", "judge": judge, "status": "ok", "score": i % 5}
            for i in range(40)
        ]
        write_part(path / "ratings" / f"judge={judge}", rows)
    write_table(path / "ratings.parquet", read_table(path / "ratings"))
    write_state(path / "ratings" / "rates.json", {"a/logprob": {"calls": 40, "tokens": None, "seconds": 1.0}})
    return path


def test_every_flipped_byte_of_an_evaluation_is_found(tmp_path: Path) -> None:
    folder, rng = evaluation_folder(tmp_path), random.Random(3)
    assert {f.state for f in check(folder)} == {"sound"}
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    assert len(files) == 4
    for path in files * 5:
        whole = path.read_bytes()
        flip(path, rng)
        message = said(folder)
        assert str(path) in message and BACK.search(message), (path, message)
        if path.parent.name.startswith("judge="):
            with pytest.raises(DpeerError, match=re.escape(str(path))):
                read_table(folder / "ratings")
        path.write_bytes(whole)
    assert len(pd.read_parquet(folder / "ratings.parquet")) == 80


def test_the_command_says_what_is_damaged_and_ends_with_1(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run").path
    sound = CliRunner().invoke(app, ["fsck", str(folder)])
    assert sound.exit_code == 0 and "20 sound" in sound.output, sound.output
    (folder / "certificate.json").unlink()
    found = CliRunner().invoke(app, ["fsck", str(folder)])
    assert found.exit_code == 1 and "certificate.json is missing" in found.output
    assert CliRunner().invoke(app, ["fsck", str(tmp_path)]).exit_code == 1


def tokens_of(place: Path, number: int, hashes: dict[str, str]) -> Path:
    """A store as far as its checksums go."""
    folder = place / f"{number:032x}"
    folder.mkdir(parents=True)
    (folder / "tokens.i32").write_bytes(random.Random(number).randbytes(300))
    splits = {name: {"sha256": value} for name, value in hashes.items()}
    write_state(folder / "store.json", {"splits": splits, "files": listed(folder, folder.iterdir())})
    return folder


def aged(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        os.utime(path, (1e9, 1e9))


def test_every_flipped_byte_of_tokens_is_found(tmp_path: Path) -> None:
    run, rng = finished_run(tmp_path / "run").path, random.Random(0)
    folder = tokens_of(tmp_path / "tokens", 1, {"train": "a"})
    (tmp_path / "tokens" / f".{folder.name}.node.x.part").mkdir()
    assert [f.path for f in check(run) if f.path == folder] == [folder]
    assert said(run).count("left over") == 0 and ".part of a kill" in said(run)
    for path in folder.iterdir():
        whole = path.read_bytes()
        flip(path, rng)
        assert f"{path} " in said(run) and BACK.search(said(run))
        path.write_bytes(whole)
    (folder / "tokens.i32").unlink()
    assert f"{folder / 'tokens.i32'} is missing" in said(run)


def test_tokens_that_no_unfinished_run_needs_are_removed(tmp_path: Path) -> None:
    place, old = tmp_path / "tokens", {"train": "a", "dual": "b"}
    needed, other, damaged, young = (tokens_of(place, k, old if k == 1 else {"train": "a"}) for k in range(1, 5))
    (damaged / "store.json").write_bytes(b"{")
    half = place / f".{needed.name}.node.x.part"
    half.mkdir()
    for folder in (needed, other, damaged, half):
        aged(folder)
    run = RunDir(tmp_path / "run")
    run.begin(recipe(), FACTS | {"data": {name: {"sha256": value} for name, value in old.items()}})
    every = {needed, other, damaged, young, half}
    assert "would be freed" in CliRunner().invoke(app, ["data", "tidy", str(tmp_path), "--dry-run"]).output
    assert {p for p in place.iterdir() if p.is_dir()} == every
    found = CliRunner().invoke(app, ["data", "tidy", str(tmp_path)])
    assert found.exit_code == 0 and f"kept, of {run.path}" in found.output, found.output
    assert {p for p in place.iterdir() if p.is_dir()} == {needed, young}
    write_state(run.manifest, run.read_manifest() | {"finished": "now"})
    CliRunner().invoke(app, ["data", "tidy", str(tmp_path)])
    assert {p for p in place.iterdir() if p.is_dir()} == {young}
    flip(run.manifest, random.Random(3))
    aged(young)
    refused = CliRunner().invoke(app, ["data", "tidy", str(tmp_path)])
    assert refused.exit_code == 1 and "cannot be told which tokens" in " ".join(refused.output.split())
    assert young.is_dir()
