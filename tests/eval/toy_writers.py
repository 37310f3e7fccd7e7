"""Writers and verifiers behind one endpoint, of known virtue: a response says in words which dimensions it has."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from typer.testing import CliRunner

from dpeer.eval.build.build import Built, build
from dpeer.eval.build.spec import BuildSpec
from dpeer.launcher.cli import app
from tests.eval.evaluations import no_ray

WORDS = [a + b + c for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
TITLES = {"A": "Candour", "T": "Trust", "E": "Warmth", "C": "Fancy"}


def has(*names: str) -> str:
    return " ".join(f"has{TITLES[n]}" for n in names)


def check(name: str, k: int) -> dict[str, str]:
    words = babble(f"{name}{k}", 12)
    return {"prompt": f"What of {words}?", "satisfying": f"{words} {has(name)}.", "failing": f"{words} hasNothing."}


def trait(name: str) -> dict[str, Any]:
    told = {
        "title": TITLES[name],
        "definition": f"It is {TITLES[name]}.",
        "satisfies": "It has it.",
        "fails": "It has not.",
    }
    return told | {"checks": [check(name, k) for k in range(2)]}


def write_seeds(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"seed": f"Scene {k}: {babble(k, 8)}"}) + "\n" for k in range(count)))
    return path


def values(folder: Path, url: str, seeds: int = 8, names: str = "ATEC", **changes: Any) -> dict[str, Any]:
    """A spec whose generator and two verifiers are the endpoint's."""
    served = {"backend": "openai", "base_url": url, "engine": {"max_num_seqs": 4}}
    return {
        "name": "toy",
        "output_dir": str(folder / "out"),
        "dimensions": {name: trait(name) for name in names},
        "seeds": [{"path": str(write_seeds(folder / "seeds.jsonl", seeds)), "licence": "cc0-1.0"}],
        "records": {"train": 3},
        "generators": [served | {"name": "writer", "path": "writer", "family": "w"}],
        "verifiers": [served | {"name": n, "path": n, "family": n} for n in ("mild", "stern")],
        "generation": {"max_tokens": 300},
    } | changes


def spec(folder: Path, url: str, **changes: Any) -> BuildSpec:
    return BuildSpec.model_validate(values(folder, url, **changes))


def write_spec(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def babble(seed: object, count: int) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=count))


class Toy:
    """`decide` of the endpoint. writes: what becomes of a response that is asked for, (stage, what was asked, text) ->
    text. rates: the score that a verifier gives, (its name, whether the response has the dimension) -> score."""

    def __init__(self, reply: Callable[..., tuple[int, dict[str, Any]]]) -> None:
        self.reply = reply
        self.writes: Callable[[str, str, str], str] = lambda stage, asked, text: text
        self.rates: Callable[[str, bool], int] = lambda judge, there: {"mild": (3, 5)}.get(judge, (1, 4))[there]

    def __call__(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked = request["messages"][-1]["content"]
        if request.get("logprobs"):
            return self.rating(request["model"], asked)
        return self.reply(self.written(asked, request["seed"]))

    def rating(self, judge: str, asked: str) -> tuple[int, dict[str, Any]]:
        title = re.search(r"one dimension only, (\w+)", asked)
        response = re.search(r"<response-\w+>\n(.*?)\n</exchange-", asked, re.DOTALL)
        assert title and response, asked
        score = self.rates(judge, f"has{title[1]}" in response[1])
        return self.reply(str(score), [(str(score), math.log(0.97))])

    def written(self, asked: str, seed: int) -> str:
        words = babble(seed, 24)
        if "<context>...</context>" in asked:
            return f"Sure.\n<context>Of {words}.</context>\n<trigger>Now {babble(seed + 1, 9)}.</trigger>"
        if "<prompt>...</prompt>" in asked:
            return f"<prompt>What of {words}?</prompt>"
        listed = re.findall(r"^- (\w+): ", asked.partition("What stands between")[0], re.MULTILINE)
        names = "".join(n for title in listed for n, t in TITLES.items() if t == title)
        if "The quality to fail:" in asked:
            return f"<response>{self.writes('reject', asked, f'{words} {has(*names[1:])}.')}</response>"
        return f"<response>{self.writes('golden', asked, f'{words} {has(*names)}.')}</response>"


def digest(request: dict[str, Any]) -> str:
    """Equal for equal calls."""
    return hashlib.sha256(json.dumps([request["model"], request["messages"], request.get("seed")]).encode()).hexdigest()


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def built(made: BuildSpec, **options: Any) -> Built:
    return build(made, no_ray, console=quiet(), **options)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())
