"""A run that began when every rank read all records by itself goes on with the same splits, batches and packs.

The numbers were written by that reader (revision 15869e7) of the same records.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dpeer.config import Config
from dpeer.data import pool, stream
from dpeer.data.layout import plan
from dpeer.data.packing import Weights, batch_indices
from dpeer.data.tokenize import TokenizedSet
from dpeer.training.tokens import tokens
from tests.data.conftest import CHATML

BEFORE: dict[str, Any] = {  # packs: since 0.2.0, which sums in another order than before
    "train": ["51e4b5e70a07a75746d19f0f078da6a2673f0744061382d337c7e20c2ded2e03", 235, 1, 3],
    "heldout": ["acb6c42070c4c53ec6fb0f2acea48a65bb2d50c8822f6b53f9226ed955a1b31b", 65, 1, 3],
    "dual": ["e429a0b9e975b1902bf8a5092a0e00d5eebfe4fdbb69af6f41ccc6835414951f", 27, 1, 3],
    "tree": "298f8b6cb298f945ecb33a5bd4fad62fb5b4ebacc0291a4c311b658c5dff6597",
    "sequences": "306d0419f2a2098555eb2bd5c88e28b73ee09b0744c1b1d529acae1c2181947f",
}


def bytes_alone() -> PreTrainedTokenizerFast:
    """A token per byte: what any version of the library makes of a text."""
    control = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({token: i for i, token in enumerate([*control, *letters])}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": control[2:]})
    tokenizer.chat_template = CHATML
    return tokenizer


def recipe(folder: Path) -> Config:
    """Two sources: own rows, with prompts that differ in blanks alone, and pairs with weights."""
    masks = (["A"], ["A", "E"], ["E", "T"], ["A", "E", "T"])
    own = [
        {
            "prompt": ("  {}\n" if i % 7 == 0 else "{}").format(f"question {i * 31 % 97} " + "word " * (i * 13 % 11)),
            "mask": masks[i % 4],
            "responses": [{"text": f"good {i}" + " so" * (i % 9), "fails": []}]
            + [{"text": f"bad {i} {d}" + " no" * (i * 5 % 12), "fails": [d]} for d in masks[i % 4]],
        }
        for i in range(240)
    ]
    pairs = [
        {"prompt": f"pair {i // 2}", "chosen": f"c {i}" + "!" * (i % 5), "rejected": f"r {i}", "weight": 1 + i % 3}
        for i in range(90)
    ]
    sources = []
    for name, rows, weight in (("own", own, 1.0), ("pairs", pairs, 0.5)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"path": str(folder / f"{name}.jsonl"), "weight": weight})
    data = {"train": sources, "heldout": "20%", "dual": "10%", "max_tokens": 120, "overlong": "drop"}
    tree = {"name": "x", "output_dir": folder / "runs", "model": {"path": "m"}, "training": {"steps": 9}, "seed": 5}
    return Config.model_validate(tree | {"data": data})


def told(splits: dict[str, TokenizedSet], weights: Weights) -> dict[str, Any]:
    """What a run keeps of its data, and hashes of its packs on 3 ranks: of 40 steps and of the held-out split."""
    train, heldout = splits["train"].trees, splits["heldout"].trees
    found: dict[str, Any] = {n: [d.sha256, len(d.trees), d.dropped, d.trees[3].index] for n, d in splits.items()}
    for layout in ("tree", "sequences"):
        packs = [plan(heldout, 3, 700, layout)]
        for step in range(40):
            trees = [train[i] for i in batch_indices(step * 24, 24, len(train), 5, weights)]
            packs += [[[[trees[i].index for i in pack] for pack in mine] for mine in plan(trees, 3, 700, layout)]]
        found[layout] = hashlib.sha256(json.dumps(packs).encode()).hexdigest()
    return found


def test_packs_and_facts_are_those_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "cpus", lambda: 1)
    monkeypatch.setattr(stream, "BLOCK", 5000)
    store = tokens(recipe(tmp_path), bytes_alone())
    splits = {name: store.split(name) for name in store.state["splits"]}
    assert told(dict(splits), store.weights) == BEFORE
