"""`dpeer export RUN --push OWNER/NAME`: a whole export of a certified run, with its card, to a model hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dpeer import __version__
from dpeer.errors import DpeerError
from dpeer.integrity import folder_faults, read_state
from dpeer.report.run import Certificate
from dpeer.training.run_dir import RunDir

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
"""What an earlier push may have left there under other names, and a loader would take for parts of this model."""
AGAIN = "Give the same command again: what the hub has already is not sent a second time."


class PushError(DpeerError):
    """The export was not sent, or not wholly."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where an export may go. The token is never printed or written."""

    target: str
    token: str = field(repr=False)
    private: bool


def door(target: str, private: bool = True) -> Door:
    """Checks that need no run and no network. PushError: what is missing, and how to give it."""
    if not NAME.fullmatch(target) or "--" in target or ".." in target:
        raise PushError(f"--push {target}: give OWNER/NAME as the hub writes it, e.g. your-name/my-peer")
    if said := [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]:
        raise PushError(f"--push {target}: {said[0]} says that this machine is offline. Unset it, or push elsewhere.")
    token = next((value for name in TOKENS if (value := os.environ.get(name, "").strip())), "")
    if not token:
        raise PushError(
            f"--push {target}: no token. Make one with the right to write in the hub's settings, and give it in the "
            f"environment of this command: {TOKENS[0]}=... It is read from there alone, and is not stored."
        )
    return Door(target, token, private)


def push_run(
    run: Path,
    target: str,
    private: bool = True,
    output: Path | None = None,
    model: Path | None = None,
    adapter: bool = False,
) -> str:
    """Send the export of a run, made first where it is not there yet; returns its address. See `export_run`."""
    through = door(target, private)
    refuse_unproven(run)
    folder = output or run / ("adapter" if adapter else "export")
    if not folder.exists():
        from dpeer.launcher.export import export_run

        export_run(run, folder, model, adapter)
    refuse_incomplete(folder, adapter)
    return push(folder, through, partial(print, flush=True))


def refuse_unproven(run: Path) -> None:
    """PushError for a run that has not ended, or whose held-out verdicts are missing or damaged."""
    files = RunDir(run)
    if not files.manifest.is_file():
        raise PushError(f"{run}: no manifest.json here. Give the folder of a run, e.g. runs/NAME.")
    if not files.finished:
        raise PushError(f"{run}: has not ended, so nothing certifies it. Train on: dpeer train RECIPE --resume")
    remedy = "The card would claim nothing. Train with held-out records (data.heldout), or restore the file."
    Certificate.model_validate(read_state(files.certificate, remedy, PushError))


def refuse_incomplete(folder: Path, adapter: bool) -> None:
    """PushError for an export that is not whole: a part is absent, or is not what was written."""
    needed = ["README.md", "adapter_config.json" if adapter else "config.json"]
    remedy = f"Remove {folder} and give the command again: it exports anew."
    if absent := [name for name in needed if not (folder / name).is_file()]:
        raise PushError(f"{folder}: has no {absent[0]}, so the export is not complete. {remedy}")
    if not any(folder.glob("*.safetensors")):
        raise PushError(f"{folder}: has no weights (*.safetensors), so the export is not complete. {remedy}")
    found = folder_faults(folder)
    if found is None:
        raise PushError(f"{folder}: has no checksums.json, so whether it is whole cannot be seen. {remedy}")
    if found:
        name, fault = next(iter(found.items()))
        raise PushError(f"{folder / name} {fault}. {remedy}")


def push(folder: Path, through: Door, say: Callable[[str], None]) -> str:
    """Send a complete export; returns its address. `say` gets a line before anything is sent.

    PushError: the hub cannot be reached or refuses, or has a public repository of this name where `private` is wanted.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=through.token)
    files = [path for path in folder.rglob("*") if path.is_file()]
    address = f"{api.endpoint}/{through.target}"
    try:
        api.whoami()
        public = _public(api, through.target)
        if public and through.private:
            raise PushError(
                f"{address} is there already and is public, and --private is the default. Give another name, make it "
                "private there, or say --no-private."
            )
        say(f"sending {len(files)} files, {_size(files)}, of {folder} to {address} ({_seen(public, through.private)})")
        if public is None:
            api.create_repo(through.target, private=through.private)
        api.upload_folder(
            repo_id=through.target,
            folder_path=folder,
            commit_message=f"dpeer {__version__}: {folder.name} of {folder.absolute().parent.name}",
            delete_patterns=WEIGHTS,
        )
    except DpeerError:
        raise
    except HfHubHTTPError as error:
        raise PushError(_hidden(_refusal(error, through.target), through)) from None
    except Exception as error:  # of the HTTP library below, which differs between versions of the client
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise PushError(_hidden(f"{address}: {str(error) or type(error).__name__}{cause}. {AGAIN}", through)) from None
    return address


def _public(api: HfApi, target: str) -> bool | None:
    """Whether the repository is public; None where there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return not api.model_info(target).private
    except RepositoryNotFoundError:
        return None


def _seen(public: bool | None, private: bool) -> str:
    if public is None:
        return f"new, {'private' if private else 'public'}"
    return "there already, public" if public else "there already, private" + ("" if private else ", and stays so")


def _size(files: list[Path]) -> str:
    size = sum(path.stat().st_size for path in files)
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _refusal(error: HfHubHTTPError, target: str) -> str:
    """What the hub's status says, and what to do."""
    code = error.response.status_code
    said = (error.server_message or "").strip() or f"HTTP {code}"
    if code == 401:
        return f"the hub does not know the token of {TOKENS[0]} ({said}): make a new one, with the right to write"
    if code == 403:
        return f"the token of {TOKENS[0]} may not write to {target} ({said}): give it that right, or another OWNER"
    return f"the hub refused the push to {target}: {said}. {AGAIN}"


def _hidden(text: str, through: Door) -> str:
    return text.replace(through.token, "(token)")
