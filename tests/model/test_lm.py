"""Loading: what cannot be computed exactly is refused by name; hashes; the head's view of the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from dpeer import config
from dpeer.data.packing import build_pack, dummy_pack
from dpeer.data.tokenize import TokenTree
from dpeer.errors import ConfigError
from dpeer.model.families import FAMILIES, refuse_unsupported
from dpeer.model.lm import build_lm, load_causal_lm, load_tokenizer
from dpeer.toyworld.model import tiny_model

Checkpoint = Callable[[str], Path]


def refusal(family: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        refuse_unsupported(AutoConfig.for_model(family, **options), "some/model")
    assert "some/model" in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_supported_families_pass(family: str) -> None:
    refuse_unsupported(AutoConfig.for_model(family), "some/model")


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("llama", {"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ("gpt2", {}, "attn_pdrop = 0.1: set it to 0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type 'dynamic' depends on the sequence length",
        ),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 64,
                                 "long_factor": [1.0] * 64, "factor": 2.0}},
            "rope_type 'longrope'",
        ),
    ],
)  # fmt: skip
def test_refusals_name_the_reason(family: str, options: dict[str, Any], says: str) -> None:
    assert says in refusal(family, **options)


def test_refused_rope_of_one_layer_type() -> None:
    """Families with one rope per layer type: one bad entry is enough."""
    good = {"rope_type": "default", "rope_theta": 1e4}
    bad = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model_config = AutoConfig.for_model("gemma3_text")
    model_config.rope_parameters = {"sliding_attention": good, "full_attention": bad}
    with pytest.raises(ConfigError, match="rope_type 'dynamic'"):
        refuse_unsupported(model_config, "some/model")


def test_all_reasons_at_once() -> None:
    text = refusal(
        "llama", attention_dropout=0.2, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    )
    assert "attention_dropout" in text and "dynamic" in text


def test_head_bias_is_refused(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    original = AutoModelForCausalLM.from_pretrained

    def biased(*args: Any, **kwargs: Any) -> Any:
        model, info = original(*args, **kwargs)
        model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=True)
        return model, info

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", biased)
    with pytest.raises(ConfigError, match="output head has a bias"):
        load_causal_lm(str(checkpoint("llama")), "fp32")


def test_missing_and_broken_folders(tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    absent, empty, no_weights, garbled = (tmp_path / n for n in ("absent", "empty", "no_weights", "garbled"))
    empty.mkdir()
    for folder in (no_weights, garbled):
        shutil.copytree(checkpoint("qwen3"), folder)
    (no_weights / "model.safetensors").unlink()
    (garbled / "config.json").write_text("{not json")
    for folder in (absent, empty, no_weights, garbled):
        with pytest.raises(ConfigError, match=f"{folder.name}.*cannot be loaded.*Give a local folder"):
            load_causal_lm(str(folder), "fp32")
    for folder in (absent, empty):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            load_tokenizer(str(folder))


def test_damaged_weights_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """Cut short, with a tensor missing (it would be random), or with other shapes than config.json says."""
    cut, lacking, resized = (tmp_path / n for n in ("cut", "lacking", "resized"))
    for folder in (cut, lacking, resized):
        shutil.copytree(checkpoint("qwen3"), folder)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    kept = load_file(lacking / "model.safetensors")
    del kept["model.layers.1.mlp.up_proj.weight"]
    save_file(kept, lacking / "model.safetensors", {"format": "pt"})
    settings = json.loads((resized / "config.json").read_text())
    (resized / "config.json").write_text(json.dumps(settings | {"intermediate_size": 64}))
    for folder, says in (
        (cut, "cannot be loaded"),
        (lacking, "lacks 1 of the weights.*layers.1.mlp.up"),
        (resized, "mismatch"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_causal_lm(str(folder), "fp32")


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (("nothing_like_this",), "nothing_like_this"),
        (("q_proj", "qproj"), "no module is named 'qproj'.*q_proj"),
        (("lm_head",), "'lm_head' is the embedding or the output head"),
        (("q_proj", "embed_tokens"), "'embed_tokens' is the embedding"),
        (("act_fn",), "model.lora.targets"),
    ],
)
def test_lora_targets_that_cannot_work(checkpoint: Checkpoint, targets: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_lm(config.Model(path=str(checkpoint("llama")), dtype="fp32", lora=config.Lora(targets=targets)), seed=0)


@pytest.mark.parametrize(("dtype", "computes"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_lora_trains_adapters_only_and_starts_as_the_base(
    checkpoint: Checkpoint, tree_of: Callable[[Sequence[int], int], TokenTree], dtype: Any, computes: torch.dtype
) -> None:
    path, pack = str(checkpoint("qwen3")), build_pack([tree_of((5, 4, 3), 0)], [0])
    spec = config.Model(path=path, dtype=dtype, lora=config.Lora(rank=2, targets=("q_proj", "down_proj")))
    policy, again = (build_lm(spec, seed=5) for _ in range(2))
    other, reference = build_lm(spec, seed=6), build_lm(spec, seed=5, reference=True)
    trained = {k: p for k, p in policy.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2 and all("lora_" in k for k in trained)
    assert {p.dtype for p in policy.parameters()} == {computes}
    assert not any(p.requires_grad for p in reference.parameters())
    with torch.no_grad():
        assert torch.equal(policy(pack), reference(pack))
    assert all(torch.equal(p, dict(again.named_parameters())[k]) for k, p in trained.items())
    assert not all(torch.equal(p, dict(other.named_parameters())[k]) for k, p in trained.items())


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 48}),
        ("gpt_oss", {"num_local_experts": 4}),
        ("granitemoe", {"num_local_experts": 4}),
    ],
)
def test_routers_take_no_adapters_and_experts_do(tmp_path: Path, family: str, sizes: dict[str, int]) -> None:
    """What is saved loads in PEFT alone, and merges, to the same logits."""
    from peft import PeftModel

    folder = tiny_model(tmp_path / "moe", family, 1, vocab=300, num_experts_per_tok=2, **sizes)
    ids = torch.tensor([[5, 6, 7, 8]])
    spec = config.Model(path=str(folder), dtype="fp32", lora=config.Lora(rank=4))
    model: Any = build_lm(spec, 0).model
    generator = torch.Generator().manual_seed(1)
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    assert not any(".gate.lora" in k or "router.lora" in k for k in trained)
    assert {k.split(".lora_")[0].count("base_layer") for k in trained if "experts" in k} == {0, 1}  # both weights
    for name, parameter in trained.items():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        plain, adapted = base(ids).logits, PeftModel.from_pretrained(base, tmp_path / "adapter")(ids).logits
        model.get_base_model().set_attn_implementation("eager")
        found, merged = model(ids).logits, model.merge_and_unload()(ids).logits
    assert (found - plain).abs().max() > 0.1
    torch.testing.assert_close(found, adapted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, merged, rtol=1e-4, atol=1e-4)


def test_reference_path(checkpoint: Checkpoint, tree_of: Callable[[Sequence[int], int], TokenTree]) -> None:
    spec = config.Model(path=str(checkpoint("qwen3")), reference_path=str(checkpoint("llama")), dtype="fp32")
    assert build_lm(spec, 0).model.config.model_type == "qwen3"
    assert build_lm(spec, 0, reference=True).model.config.model_type == "llama"


def test_dummy_pack_reaches_every_parameter(checkpoint: Checkpoint) -> None:
    """Ranks without work run it so that ZeRO-3's collectives match: an unused module would hang the others."""
    for name in ("qwen3", "gemma3"):
        lm = build_lm(config.Model(path=str(checkpoint(name)), dtype="fp32"), 0)
        (lm(dummy_pack()) * 0).sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in lm.parameters())
