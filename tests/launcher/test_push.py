"""Sharing an export: the program against a hub on loopback, and what is refused before anything is sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpeer.integrity import write_list, write_state
from dpeer.launcher.push import PushError, door, refuse_incomplete, refuse_unproven
from dpeer.training.run_dir import RunDir
from tests.launcher.fake_hub import Hub, running
from tests.training.test_run_dir import recipe

CARD = "---\nlibrary_name: transformers\n---\n\n# made up\n"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running() as started:
        yield started


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with a certificate and a whole export, an adapter among it."""
    files = RunDir(tmp_path / "made")
    files.begin(recipe(), {})
    files.finish(3, "reloaded")
    write_state(files.certificate, {"confidence": 0.95, "constraints": []})
    fill(files.export, {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "tokenizer.json": b"{}"})
    fill(files.path / "adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"low rank"})
    return files.path


def fill(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    write_list(folder)
    (folder / "README.md").write_text(CARD)


def export(run: Path, hub: Hub, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # The fake hub has no storage by chunks (xet); without it the client speaks the LFS protocol.
    given = {"HF_ENDPOINT": hub.address, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    given |= {"HF_HOME": str(run.parent / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "dpeer.launcher.cli", "export", str(run), "--push", *more]
    return subprocess.run(command, env=os.environ | given | environment, capture_output=True, text=True, timeout=250)


def test_a_push_is_private_whole_and_resumed(run: Path, hub: Hub) -> None:
    commit = "/api/models/someone/made/commit/main"
    hub.failing = {commit}
    stopped = export(run, hub, "someone/made")
    hub.failing = set()
    assert stopped.returncode == 1 and "the disk of the hub is full" in stopped.stderr
    assert "what the hub has already is not sent a second time" in stopped.stderr
    sent = [r for r in hub.requests if r.startswith("PUT /lfs/")]
    done = export(run, hub, "someone/made")
    assert done.returncode == 0, done.stderr
    assert [r for r in hub.requests if r.startswith("PUT /lfs/")] == sent and len(sent) == 1
    private, there = hub.repos["someone/made"]
    assert private and there == {p.name: p.read_bytes() for p in (run / "export").iterdir()}
    assert f"sending 5 files, 0.0 MB, of {run / 'export'} to {hub.address}/someone/made (there already, private)" in (
        done.stdout.replace("\n", "")
    )
    everything = stopped.stdout + stopped.stderr + done.stdout + done.stderr
    stored = b"".join(p.read_bytes() for p in run.parent.rglob("*") if p.is_file())
    assert hub.token not in everything and hub.token.encode() not in stored

    # Weights that an earlier push left under other names go, other files stay.
    there |= {"model-00001-of-00002.safetensors": b"old", "picture.png": b"mine"}
    assert export(run, hub, "someone/made").returncode == 0
    assert set(there) == {p.name for p in (run / "export").iterdir()} | {"picture.png"}


def test_the_adapter_alone_and_in_public(run: Path, hub: Hub) -> None:
    done = export(run, hub, "someone/low", "--adapter-only", "--no-private")
    assert done.returncode == 0, done.stderr
    private, there = hub.repos["someone/low"]
    assert not private and set(there) == {p.name for p in (run / "adapter").iterdir()}
    assert "(new, public)" in done.stdout
    seen = export(run, hub, "someone/low", "--adapter-only")
    assert seen.returncode == 1 and "is there already and is public" in seen.stderr


def test_a_token_that_the_hub_refuses(run: Path, hub: Hub) -> None:
    wrong = export(run, hub, "someone/other", HF_TOKEN="hf_wrongwrong")
    assert wrong.returncode == 1 and "does not know the token of HF_TOKEN" in wrong.stderr
    assert "hf_wrongwrong" not in wrong.stderr + wrong.stdout
    hub.forbidden = True
    denied = export(run, hub, "else/other")
    hub.forbidden = False
    assert denied.returncode == 1 and "may not write to else/other" in denied.stderr
    away = export(run, hub, "someone/other", HF_ENDPOINT="http://127.0.0.1:9")
    assert away.returncode == 1 and "http://127.0.0.1:9/someone/other" in away.stderr
    assert "someone/other" not in hub.repos


def test_what_is_wrong_with_the_command_is_told_before_the_run_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "token").write_text("hf_stored")  # is not used: a token is given for each push
    with pytest.raises(PushError, match=r"no token.*HF_TOKEN"):
        door("someone/made")
    monkeypatch.setenv("HF_TOKEN", "hf_given")
    assert door("someone/made").token == "hf_given" and "hf_given" not in repr(door("someone/made"))
    for name in ("made", "a/b/c", "/made", "some one/made", "a/../b"):
        with pytest.raises(PushError, match="OWNER/NAME"):
            door(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PushError, match="HF_HUB_OFFLINE says that this machine is offline"):
        door("someone/made")


def test_runs_without_a_verdict_are_refused(run: Path) -> None:
    refuse_unproven(run)
    certificate = run / "certificate.json"
    whole = certificate.read_bytes()
    certificate.write_bytes(whole.replace(b"0.95", b"0.59"))
    with pytest.raises(PushError, match=r"certificate\.json.*The card would claim nothing"):
        refuse_unproven(run)
    certificate.unlink()
    with pytest.raises(PushError, match="is missing"):
        refuse_unproven(run)
    certificate.write_bytes(whole)
    manifest = json.loads((run / "manifest.json").read_text())
    write_state(run / "manifest.json", {k: v for k, v in manifest.items() if k not in ("finished", "xxh3")})
    with pytest.raises(PushError, match="has not ended"):
        refuse_unproven(run)


@pytest.mark.parametrize("name", ["config.json", "README.md", "model.safetensors", "checksums.json", "tokenizer.json"])
def test_exports_that_are_not_whole_are_refused(run: Path, name: str) -> None:
    refuse_incomplete(run / "export", False)
    (run / "export" / name).unlink()
    with pytest.raises(PushError, match=r"it exports anew"):
        refuse_incomplete(run / "export", False)


def test_changed_weights_are_refused(run: Path) -> None:
    (run / "export" / "model.safetensors").write_bytes(b"weightz" * 1000)
    with pytest.raises(PushError, match="does not match its checksum"):
        refuse_incomplete(run / "export", False)
    with pytest.raises(PushError, match=r"no adapter_config\.json"):
        refuse_incomplete(run / "export", True)
