"""The text part of checkpoints that see, against the whole model in transformers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText

from dpeer import config
from dpeer.data.packing import build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.errors import ConfigError
from dpeer.estimate.footprint import count_activations, count_weights
from dpeer.estimate.saved_size import saved_size
from dpeer.model import probe
from dpeer.model import towers as towers_module
from dpeer.model.lm import build_lm, load_parts, load_shape, towers
from dpeer.model.miniature import alike, miniature, one_of_each_kind
from dpeer.model.probe import layout_of
from dpeer.model.shape import model_facts
from dpeer.model.towers import text_part
from tests.multimodal import KINDS, tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("seeing")
    return lambda kind: root / kind if (root / kind).exists() else tiny(root / kind, kind, shard="100KB")


def expected(folder: Path, trees: list[TokenTree]) -> tuple[torch.Tensor, Any]:
    """[R] by the whole model, one sequence at a time; the text tokens below 280 alone."""
    whole: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).train()
    found = []
    for prompt, response in ((t.prompt, r) for t in trees for r in t.responses):
        logits = whole(input_ids=torch.tensor([prompt + response])).logits[0].float()
        table = logits[len(prompt) - 1 : -1].log_softmax(-1)
        found.append(table[torch.arange(len(response)), list(response)].double().sum())
    return torch.stack(found), whole


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole models are compared here, or nothing is computed: no need to try small ones."""
    monkeypatch.setattr(probe, "exactness", lambda *_: probe.Exactness(0.0, 0.0, ""))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_text_parts_that_are_exact(kind: str) -> None:
    """Of configs with transformers' own sizes."""
    text = text_part(AutoConfig.for_model(kind, **({"vision_config": {}} if kind == "gemma4" else {})), kind)
    assert layout_of(text, kind) == "tree"


@pytest.mark.parametrize(("kind", "recompute"), [(kind, kind == "gemma4") for kind in KINDS])
def test_the_text_part_computes_what_the_whole_model_does(
    exact: None, folders: Any, trees: list[TokenTree], kind: str, recompute: bool
) -> None:
    """Log-probabilities and the gradient of every parameter; towers get none. Gemma 4's layers hand keys and values to
    later ones, past the recomputation."""
    folder = folders(kind)
    spec = config.Model(path=str(folder), dtype="fp32", gradient_checkpointing=recompute, layout="tree")
    lm = build_lm(spec, 0)
    trees = trees[:3]
    values, whole = expected(folder, trees)
    ours = lm(build_pack(trees, range(len(trees))))
    weights = torch.sin(torch.arange(len(ours)) * 1.7 + 0.5).double()
    for found in (ours, values):
        torch.autograd.backward((found * weights).sum())
    gap = float(((ours - values).abs().max() / values.abs().max()).detach())
    parts = load_parts(str(folder))
    assert parts is not None
    theirs = {n: p.grad for n, p in whole.named_parameters() if p.grad is not None and p.grad.any()}
    assert not [n for n in theirs if "vision" in n or "visual" in n or "projector" in n]
    mine = {n: p.grad for n, p in lm.model.named_parameters() if p.grad is not None and p.grad.any()}
    mine = {parts.located() + n.removeprefix("model.") if n.startswith("model.") else n: g for n, g in mine.items()}
    assert mine.keys() == theirs.keys()
    worst = max(float((mine[n] - g).abs().max() / g.abs().max()) for n, g in theirs.items())
    print(f"{kind}: log-probabilities {gap:.1e}, gradients {worst:.1e}")
    rounding = 5e-5 if "qwen" in kind else 3e-5  # of delta rules: transformers' own fp32 is 3e-5 away from fp64 here
    assert gap <= 1e-6 and worst <= rounding


@pytest.mark.parametrize("kind", KINDS)
def test_towers_are_counted_but_not_loaded(exact: None, folders: Any, kind: str) -> None:
    folder = folders(kind)
    sizes: Counter[bool] = Counter()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tower = "language_model" not in name and "lm_head" not in name
                sizes[tower] += 0 if "layer_scalar" in name else tensors.get_tensor(name).numel()  # a buffer
    counted = count_weights(config.Model(path=str(folder), dtype="fp32"), load_shape(str(folder)))
    assert towers(str(folder)) == sizes[True] > 0
    assert counted.total == counted.trained == sizes[False]
    lm = build_lm(config.Model(path=str(folder), dtype="fp32"), 0)
    assert sum(p.numel() for p in lm.parameters()) == sizes[False]
    recipe = {"name": "x", "model": {"path": str(folder)}, "data": {"train": "d"}, "training": {"steps": 1}}
    size = saved_size(config.Config.model_validate(recipe))
    assert (size.parameters, size.trained, size.towers) == (sizes[False], sizes[False], sizes[True])


def test_adapters_are_of_the_text_part_alone(folders: Any) -> None:
    """The tower has modules of these names too."""
    spec = config.Model(path=str(folders("gemma3")), dtype="fp32", lora=config.Lora(rank=2, targets=("q_proj",)))
    adapted = [n for n, p in build_lm(spec, 0).named_parameters() if p.requires_grad]
    assert len(adapted) == 2 * 2 and all(".layers." in n and "vision" not in n for n in adapted)


def test_the_whole_model_is_built_once_however_many_names_are_asked_for(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = load_parts(str(folders("gemma3")))
    assert part is not None
    whole, built = towers_module._whole, []
    monkeypatch.setattr(towers_module, "_whole", lambda shape: built.append(shape) or whole(shape))
    names = [f"layers.{i}.self_attn.{kind}_proj" for i in range(2) for kind in "qv"]
    assert [part.inner(part.located() + name) for name in names] == [f"model.{name}" for name in names]
    assert part.inner("q_proj") == "q_proj" and len(built) == 1


def test_a_head_that_is_the_embedding_by_the_checkpoint(tmp_path: Path) -> None:
    """The config of the whole ties it, that of the text part does not; the files have none."""
    folder = tiny(tmp_path / "x", "gemma3")
    fields = json.loads((folder / "config.json").read_text())
    fields["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(fields))
    model: Any = build_lm(config.Model(path=str(folder), dtype="fp32"), 0).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_text_part_without_a_model_of_its_own_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'qwen2_5_vl'.*no language model of type 'qwen2_5_vl_text' by itself"):
        text_part(AutoConfig.for_model("qwen2_5_vl"), "some/model")
    plain = AutoConfig.for_model("llama")
    assert text_part(plain, "some/model") is plain
    quantised = AutoConfig.for_model("gemma3", quantization_config={"quant_method": "fp8"})
    assert text_part(quantised, "some/model").quantization_config == {"quant_method": "fp8"}


def test_checkpoints_that_cannot_be_exported_are_refused_at_the_door(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "x", "gemma3")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has no model\.safetensors.*Convert its weights to safetensors"):
        build_lm(config.Model(path=str(folder), dtype="fp32"), 0)


def test_ids_that_stand_for_images(folders: Any) -> None:
    def media(kind: str) -> set[int]:
        facts = model_facts(str(folders(kind)))
        assert facts is not None
        return set(facts.media)

    assert media("gemma3") == {288, 289, 290} and media("mistral3") == {290}
    assert media("gemma4") == {288, 289, 290, 291, 292, 293, 294}
    assert media("qwen3_5") >= {290, AutoConfig.for_model("qwen3_5").video_token_id}


def test_layers_that_share_keys_stay_behind_those_they_share_with() -> None:
    """As in Gemma 4 E2B: 20 of 35 layers have no keys of their own, every fifth attends to all."""
    kinds = [("full" if i % 5 == 4 else "sliding") + "_attention" for i in range(35)]
    shape = AutoConfig.for_model("gemma4_text", num_hidden_layers=35, num_kv_shared_layers=20, layer_types=kinds)
    assert one_of_each_kind(shape) == [0, 4, 15, 19]
    small = miniature(shape)
    assert (small.num_hidden_layers, small.num_kv_shared_layers) == (4, 2)
    assert alike(shape, 2) == [0, 1]
    spec = config.Model(path="x", dtype="bf16")
    assert count_activations(spec, shape, 20, (5, 5)).layer[0] > 0
