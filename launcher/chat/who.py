"""Whom to talk to: runs, model folders, hub ids and endpoints, as they are named on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from dpeer.data.load import HUB_ID
from dpeer.errors import ConfigError
from dpeer.eval.backends.config import Served
from dpeer.report.run import read_run

ENDPOINT = re.compile(r"(?:(?P<name>[\w.-]+)=)?(?P<model>[^@\s]+)@(?P<url>https?://\S+)")
BASE = "base"


def talkers(given: Sequence[str], base: bool = True, key_env: str = "OPENAI_API_KEY") -> list[Served]:
    """The models that are meant, each under a name of its own; of runs also what they were trained from, first.

    given: a run folder, a model folder, owner/name, or [NAME=]MODEL@URL for an endpoint. Raises ConfigError.
    """
    found: list[Served] = []
    for text in given:
        folder = Path(text)
        if (folder / "ledger.jsonl").is_file():
            trained, start = _of_run(folder)
            if base and not any(one.path == start.path for one in found):
                found.insert(0, start)
            found.append(trained)
        elif (folder / "config.json").is_file():
            found.append(Served(name=_name(folder.resolve().name), path=str(folder)))
        elif match := ENDPOINT.fullmatch(text):
            found.append(_endpoint(match["name"], match["model"], match["url"], key_env))
        elif HUB_ID.fullmatch(text) and not Path(folder.parts[0]).is_dir():
            found.append(Served(name=_name(folder.name), path=text))
        else:
            raise ConfigError(
                f"{text}: is no run (ledger.jsonl), no model folder (config.json), no hub id (owner/name) and no "
                "endpoint (MODEL@http://host:port/v1). Give one of these."
            )
    return _distinct(found)


def _endpoint(name: str | None, model: str, url: str, key_env: str) -> Served:
    try:
        _ = urlsplit(url).port  # ValueError: no host or port that there could be
        return Served(
            name=_name(name or model.rpartition("/")[2]),
            path=model,
            backend="openai",
            base_url=url,
            api_key_env=key_env,
        )
    except ValidationError as error:  # the address may hold a password, and is not shown
        raise ConfigError(f"endpoint of {model}: {error.errors()[0]['msg']}") from None
    except ValueError as error:
        raise ConfigError(f"endpoint of {model}: its address is none ({error}); give http://host:port/v1") from None


def _of_run(folder: Path) -> tuple[Served, Served]:
    """What a run trained, and what it began with."""
    run = read_run(folder)
    export = folder / "export"
    if not (export / "config.json").is_file():
        raise ConfigError(f"{folder}: has no exported model yet. `dpeer export {folder}` writes its newest checkpoint.")
    path = run.get("config.model.path")
    if not path:
        raise ConfigError(f"{folder / 'manifest.json'} does not name the model that was trained. Restore it.")
    adapter = run.get("config.model.lora.path")
    start = Served(name=BASE, path=path, revision=run.get("config.model.revision"), adapter=adapter)
    return Served(name=_name(folder.resolve().name), path=str(export)), start


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:60] or "model"


def _distinct(models: Sequence[Served]) -> list[Served]:
    names: dict[str, Served] = {}
    for model in models:
        name, k = model.name, 2
        while name in names:
            name, k = f"{model.name}-{k}", k + 1
        names[name] = model.model_copy(update={"name": name})
    return list(names.values())
