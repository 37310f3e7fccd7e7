"""Random mutations of valid data files, recipes, tokenizers and model configs at the doors that read them: a valid
result or a DpeerError of one screen, never another exception. A case is its kind and number, so that it comes again.

`DPEER_FUZZ=2000` tries so many in all; without it a small share.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dpeer.config_io import load_config, resolved_yaml
from dpeer.data.check import check
from dpeer.data.load import load
from dpeer.data.tokenize import tokenize
from dpeer.errors import DpeerError
from dpeer.launcher.recipe import RECIPES
from dpeer.model.lm import attention_kernel, load_tokenizer
from dpeer.model.shape import model_facts

CASES = int(os.environ.get("DPEER_FUZZ", 200))
SHARES = {"data": 0.4, "recipe": 0.3, "tokenizer": 0.2, "model config": 0.1}
LINES = 60
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 70_000, 10**20, 1.5, 1e308, float("nan"), float("inf"), "", " ", "nan", "\x00", "\ud800", "\r",
    "~/x", "1:30", "é" * 50, "[/red]", "{{ x }}", "{% for", [], {}, [[]], [None], {"": None}, [{"role": "user"}],
)  # fmt: skip


# Mutations


def mutated_bytes(content: bytes, rng: Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, size = rng.randrange(len(content) + 1), rng.choice((1, 1, 3, 40))
        piece = rng.choice((b"", rng.randbytes(size), content[at : at + size] * 2, b"\r", b'"', b"{", b"\xef\xbb\xbf"))
        content = content[:at] + piece + content[at + size * rng.randrange(2) :]
    return content[: rng.randrange(len(content) + 1)] if rng.random() < 0.1 else content


def mutated_tree(tree: Any, rng: Random) -> Any:
    """One or a few nodes of a JSON value replaced, dropped, doubled or renamed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 1, 3))):
        places = list(nodes(tree))
        if not places:
            break
        parent, key = rng.choice(places)
        change = rng.randrange(5)
        if change == 0:
            del parent[key]
        elif change == 1 and isinstance(parent, list):
            parent.insert(key, parent[key])
        elif change == 2 and isinstance(parent, dict):
            parent[rng.choice((key + " ", key.upper(), "", "x"))] = parent.pop(key)
        elif change == 3 and isinstance(parent[key], str) and parent[key]:
            parent[key] = mutated_bytes(parent[key].encode(errors="replace"), rng).decode(errors="replace")
        else:
            parent[key] = rng.choice(ODD)
    return tree


def nodes(tree: Any) -> Any:
    """(parent, key) of every node below the root; of long lists and mappings a few."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    for key in keys if len(keys) <= 30 else [*keys[:10], *keys[:: len(keys) // 10]]:
        yield tree, key
        yield from nodes(tree[key])


def mutated_json(content: bytes, rng: Random) -> bytes:
    if rng.random() < 0.3:
        return mutated_bytes(content, rng)
    return json.dumps(mutated_tree(json.loads(content), rng), ensure_ascii=rng.random() < 0.5).encode(
        errors="surrogatepass"
    )


# Doors


def rows(rng: Random) -> list[dict[str, Any]]:
    def row(i: int) -> dict[str, Any]:
        answers = [{"text": f"Look at hull {i} first.", "fails": []}, {"text": f"Sure {i}!", "fails": ["A"]}]
        prompt: Any = f"Shall I paint boat {i}?"
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
        return {"prompt": rng.choice((prompt, turns, json.dumps(turns))), "mask": ["A"], "responses": answers}

    return [row(i) for i in range(4)]


def data_door(folder: Path, rng: Random, sound: Path) -> None:
    kind = rng.choice(("jsonl", "csv", "parquet"))
    path = folder / f"train.{kind}"
    if kind == "jsonl":
        lines = [json.dumps(mutated_tree(r, rng) if rng.random() < 0.4 else r) for r in rows(rng)]
        path.write_bytes("\n".join(lines).encode())
    elif kind == "csv":
        cells = [f"\"['A']\",Shall I paint boat {i}?,Look at hull {i}.,Sure {i}!" for i in range(4)]
        path.write_text("\n".join(["mask,prompt,golden,reject_A", *cells]))
    else:
        import pyarrow
        import pyarrow.parquet

        values = rows(rng)
        for value in values:
            value["prompt"] = str(value["prompt"])
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path)
    if kind != "jsonl" or rng.random() < 0.5:
        path.write_bytes(mutated_bytes(path.read_bytes(), rng))
    report = check(str(path))
    assert report.to_json()
    load(str(path))


def recipe_door(folder: Path, rng: Random, sound: Path) -> None:
    import yaml

    text = (RECIPES / rng.choice(("demo.yaml", "llama3_8b.yaml"))).read_text()
    if rng.random() < 0.5:
        text = yaml.safe_dump(mutated_tree(yaml.safe_load(text), rng), allow_unicode=True)
    else:
        text = mutated_bytes(text.encode(), rng).decode(errors="surrogateescape")
    (folder / "recipe.yaml").write_bytes(text.encode(errors="surrogatepass"))
    sets = [rng.choice((f"training.steps={o}", f"model.path={o}", f"{o}", f"data={o}")) for o in rng.choices(ODD)]
    config = load_config(folder / "recipe.yaml", sets if rng.random() < 0.3 else [], shipped=RECIPES)
    (folder / "copy.yaml").write_text(resolved_yaml(config))
    assert load_config(folder / "copy.yaml") == config


def tokenizer_door(folder: Path, rng: Random, sound: Path) -> None:
    shutil.copytree(sound, folder / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    path = folder / "model" / rng.choice(("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"))
    change = mutated_bytes if path.suffix == ".jinja" else mutated_json
    path.write_bytes(change(path.read_bytes(), rng))
    tokenizer = load_tokenizer(str(folder / "model"))
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows(rng))))
    tokenize(load(str(folder / "d.jsonl")), tokenizer, 512, "drop")
    check(str(folder / "d.jsonl"), tokenizer, model=model_facts(str(folder / "model")))


def model_door(folder: Path, rng: Random, sound: Path) -> None:
    import torch

    from dpeer.config import Model

    (folder / "model").mkdir()
    path = folder / "model" / "config.json"
    path.write_bytes(mutated_json((sound / "config.json").read_bytes(), rng))
    model_facts(str(folder / "model"))
    attention_kernel(Model(path=str(folder / "model"), dtype="fp32"), torch.device("cpu"))


DOORS: dict[str, Callable[[Path, Random, Path], None]] = {
    "data": data_door,
    "recipe": recipe_door,
    "tokenizer": tokenizer_door,
    "model config": model_door,
}


def outcome(act: Callable[[], None]) -> str:
    """ "valid", "refused", or what escaped."""
    try:
        act()
    except DpeerError as error:
        lines = str(error).splitlines()
        return "refused" if lines and len(lines) <= LINES else f"an error of {len(lines)} lines"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"[:300]
    return "valid"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dpeer.toyworld.model import tiny_model

    texts = [row["responses"][0]["text"] for row in rows(Random(0))]
    return tiny_model(tmp_path_factory.mktemp("sound") / "model", "qwen3", 1, vocab=300, texts=texts)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", DOORS)
def test_mutated_input_is_read_or_refused(kind: str, sound: Path, tmp_path: Path) -> None:
    count = max(1, round(CASES * SHARES[kind]))
    seen: Counter[str] = Counter()
    escaped = []
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = outcome(partial(DOORS[kind], folder, Random(f"{kind} {number}"), sound))
        seen[found if found in ("valid", "refused") else "escaped"] += 1
        if found not in ("valid", "refused"):
            escaped.append(f"{number}: {found}")
        shutil.rmtree(folder)
    print(kind, dict(seen))
    assert escaped == []
    assert seen["refused"] and (count < 10 or seen["valid"])
