"""The export of a trained text part is the whole checkpoint again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoTokenizer

from dpeer.config import Config
from dpeer.data.packing import build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.errors import CheckpointError, DataError
from dpeer.model import probe
from dpeer.model.lm import build_lm, load_parts
from dpeer.model.towers import INDEX, Parts
from dpeer.training import world
from dpeer.training.export import export
from dpeer.training.policy import Policy
from dpeer.training.prepare import prepare
from dpeer.training.weights_file import Weights
from dpeer.training.whole import complete, locate_adapter
from tests.multimodal import tiny

IDS = torch.tensor([[5, 60, 7, 80, 9]])


def row(i: int) -> dict[str, object]:
    responses = [{"text": f"Boat {i} can wait.", "fails": []}, {"text": "Sure!" * (i + 1), "fails": ["A"]}]
    return {"prompt": f"Shall I paint boat {i} now?", "mask": ["A"], "responses": responses}


def recipe(folder: Path, **model: Any) -> Config:
    (folder / "d.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(5)))
    return Config.model_validate(
        {
            "name": "x",
            "model": {"path": str(folder / "model"), "dtype": "fp32", "export_dtype": "fp32"} | model,
            "data": {"train": str(folder / "d.jsonl"), "heldout": "none", "dual": "none", "max_tokens": 200},
            "objective": {"kind": "sft"},
            "training": {"steps": 2, "records_per_step": 2, "optimizer": {"lr": 0.01}},
            "cluster": {"engine": "plain", "reference": "colocated"},
        }
    )


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            found |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return found


def whole(folder: Path) -> Any:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model


@pytest.mark.parametrize(
    ("kind", "options", "shard"),
    [
        ("gemma3", {"export_dtype": "bf16"}, "50KB"),
        ("gemma3", {"lora": {"rank": 2, "targets": ["q_proj", "down_proj"]}}, "1GB"),
        ("gemma4", {}, "1GB"),
        ("qwen3_5_moe", {"layout": "sequences", "lora": {"rank": 2}}, "50KB"),
    ],
)
def test_towers_go_through_bit_by_bit(
    here: world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any], shard: str
) -> None:
    monkeypatch.setattr(probe, "exactness", lambda *_: probe.Exactness(0.0, 0.0, ""))
    base = tiny(tmp_path / "model", kind, shard=shard)
    (base / "preprocessor_config.json").write_text('{"size": 28}')
    config = recipe(tmp_path, **options)
    policy = Policy(config, prepare(config), here)
    policy.train_step(None)
    export(policy, tmp_path / "export")
    tree = policy.data.trees[0]
    expected = policy.score([tree])[0]
    before, after = tensors(base), tensors(tmp_path / "export")
    assert before.keys() == after.keys()
    towers = [n for n in before if "language_model" not in n and "lm_head" not in n]
    assert towers and all(before[n].dtype == after[n].dtype and torch.equal(before[n], after[n]) for n in towers)
    assert any(not torch.equal(before[n].float(), after[n].float()) for n in before.keys() - set(towers))
    assert (tmp_path / "export" / "preprocessor_config.json").read_text() == '{"size": 28}'
    if len(list((tmp_path / "export").glob("*.safetensors"))) > 1:
        index = json.loads((tmp_path / "export" / INDEX).read_text())
        assert index["weight_map"].keys() == after.keys()
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in after.values())

    model = whole(tmp_path / "export")
    assert str(model.dtype).removeprefix("torch.") == ("bfloat16" if "export_dtype" in options else "float32")
    for response, value in zip(tree.responses, expected, strict=True):
        with torch.no_grad():
            table = model(torch.tensor([tree.prompt + response])).logits[0, len(tree.prompt) - 1 : -1].float()
        found = table.log_softmax(-1)[range(len(response)), list(response)].sum().item()
        assert found == pytest.approx(value, rel=2e-2 if "export_dtype" in options else 1e-5)
    assert model.generate(IDS, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 8)
    AutoTokenizer.from_pretrained(tmp_path / "export")
    if "lora" in options:
        adapted = PeftModel.from_pretrained(whole(base), tmp_path / "export" / "adapter")
        assert not [n for n, _ in adapted.named_parameters() if "lora_" in n and ("vision" in n or "visual" in n)]
        with torch.no_grad():
            assert (adapted(IDS).logits - model(IDS).logits).abs().max() < 1e-3
        again = build_lm(
            recipe(tmp_path, **options | {"lora": {"path": str(tmp_path / "export" / "adapter")}}).model, 0
        )
        with torch.no_grad():
            assert again(build_pack([tree], [0])).tolist() == pytest.approx(expected, rel=1e-5)
        export(policy, tmp_path / "alone", adapter=True)  # compares what it reloads
        assert {f.name for f in (tmp_path / "alone").glob("*.safetensors")} == {"adapter_model.safetensors"}
    policy.close()


def test_an_adapter_of_the_whole_model_keeps_its_scales_by_module(tmp_path: Path) -> None:
    """Ranks and scales that it gives by full names, read here and written again."""
    base = tiny(tmp_path / "model", "gemma3")
    model, options = whole(base), {"r": 2, "lora_alpha": 2}
    first, second = [n for n, _ in model.named_modules() if n.endswith("q_proj") and "language_model" in n][:2]
    patterns: dict[str, Any] = {"alpha_pattern": {first: 64}, "rank_pattern": {second: 3}}
    adapted = get_peft_model(model, LoraConfig(target_modules=[first, second], **options, **patterns))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
        table = adapted(IDS).logits[0, 2:-1].float().log_softmax(-1)
    adapted.save_pretrained(tmp_path / "adapter")
    lm = build_lm(recipe(tmp_path, lora={"path": str(tmp_path / "adapter")}).model, 0)
    ids = tuple(IDS[0].tolist())
    with torch.no_grad():
        (found,) = lm(build_pack([TokenTree(0, ids[:3], (ids[3:],), (), 0, ("A",))], [0])).tolist()
    assert found == pytest.approx(table[[0, 1], list(ids[3:])].sum().item(), rel=1e-5)
    lm.model.save_pretrained(tmp_path / "again")
    part = load_parts(str(base))
    assert part is not None
    locate_adapter(tmp_path / "again", part)
    kept = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert {name: kept[name] for name in patterns} == patterns and kept["target_modules"] == [first, second]


def test_a_text_part_under_other_names_is_not_written(tmp_path: Path) -> None:
    weights = Weights(tmp_path)
    weights.add("language_model.x", torch.zeros(2))
    parts = Parts("some/model", None, None, {"a": "b.safetensors"}, "a.", None, "model.")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"weights of the text part have no place in some/model, among them lang"):
        complete(weights, tmp_path, parts, "float32")


def test_tokens_of_images_in_texts_are_refused_with_their_row(tmp_path: Path) -> None:
    """A token of no special kind in the tokenizer, which the config says stands for an image."""
    tiny(tmp_path / "model", "gemma3")
    config = recipe(tmp_path)
    text = AutoTokenizer.from_pretrained(tmp_path / "model").decode([70])
    fields = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(fields | {"image_token_index": 70}))
    rows = [row(i) for i in range(3)]
    rows[1]["responses"][1]["text"] = f"x {text} x"  # type: ignore[index]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    place = rf"d\.jsonl:2, column response 2 \(fails A\): token 70 \('{text}'\) stands for an image or sound"
    with pytest.raises(DataError, match=place):
        prepare(config)
