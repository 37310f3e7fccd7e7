"""What a manifest keeps of a run's records, so that its model can be exported without them: a few, in tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpeer.config import Config
from dpeer.data.encode import Ids
from dpeer.data.packing import all_forward_tokens
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.model.words import template_hash, tokenizer_of
from dpeer.training.prepare import METHOD, Prepared
from dpeer.training.reference import start_hash

KEY, SAID = "probes", "responses"


def remembered(prepared: Prepared) -> dict[str, Any]:
    """The first record, which checkpoints are probed with, and the shortest, with which an export is compared; what is
    to be known of all responses."""
    data = prepared.train
    trees = {tree.index: tree for tree in (data.trees[0], data.trees[int(all_forward_tokens(data.trees).argmin())])}
    probes = {"dimensions": list(data.dimensions), "trees": [_written(tree) for tree in trees.values()]}
    ends = {} if prepared.ends is None else {"ends": sorted(prepared.ends)}
    return {KEY: probes, SAID: {"thoughts": prepared.thoughts} | ends}


def recall(manifest: Mapping[str, Any], config: Config) -> Prepared | None:
    """A run's data as far as its export needs them; None for the manifest of an earlier version."""
    kept = manifest.get(KEY)
    if not kept:
        return None
    facts = {
        "method": METHOD,
        "data": manifest["data"],
        "model": {"hash": start_hash(config)},
        "reference": manifest["reference"],
        "chat_template": manifest.get("chat_template", {}) | {"hash": template_hash(tokenizer_of(config))},
    }
    train = TokenizedSet(tuple(kept["dimensions"]), tuple(map(_read, kept["trees"])), 0, 0)
    said = manifest.get(SAID, {})
    ends = frozenset(said["ends"]) if "ends" in said else None
    return Prepared(train, None, None, facts, thoughts=said.get("thoughts", False), ends=ends)


def found_again(config: Config, folder: str | None, model: Path | None = None) -> Config:
    """The config with its model where it is now: at `model`, or below the `folder` in which the run was trained."""
    spec, cluster = config.model, config.cluster
    places = {name: _place(getattr(cluster, name), folder) for name in ("deepspeed", "reference_deepspeed")}
    path = str(model) if model else _place(spec.path, folder)
    lora = spec.start and spec.start.model_copy(update={"path": _place(str(spec.start.path), folder)})
    given = {
        "path": path,
        "reference_path": spec.reference_path and _place(spec.reference_path, folder),
        "chat_template": spec.chat_template and _place(spec.chat_template, folder),
        "lora": lora or spec.lora,
    }
    return config.model_copy(
        update={
            "model": spec.model_copy(update=given),
            "cluster": cluster.model_copy(update=places),
        }
    )


def _place(path: str, folder: str | None) -> str:
    there = Path(folder or "", path)
    return str(there) if folder and not Path(path).exists() and there.exists() else path


def _written(tree: TokenTree) -> dict[str, Any]:
    return {
        "index": tree.index,
        "prompt": _line(tree.prompt),
        "responses": [_line(ids) for ids in tree.responses],
        "edges": [_line(edge) for edge in tree.edges],
        "golden": tree.golden,
        "mask": list(tree.mask),
    }


def _read(tree: Mapping[str, Any]) -> TokenTree:
    edges = tuple((d, better, worse) for d, better, worse in map(_ids, tree["edges"]))
    responses = tuple(map(_ids, tree["responses"]))
    return TokenTree(tree["index"], _ids(tree["prompt"]), responses, edges, tree["golden"], tuple(tree["mask"]))


def _line(ids: Ids) -> str:
    return " ".join(map(str, ids))


def _ids(line: str) -> Ids:
    return tuple(map(int, line.split()))
