"""Adapters: fresh ones of every kind, and those that training starts from, against PEFT and plain transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dpeer import config
from dpeer.data.packing import build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.errors import ConfigError
from dpeer.model.adapters import other_base, start_of
from dpeer.model.identity import adapter_hash
from dpeer.model.lm import build_lm, load_shape
from dpeer.toyworld.model import tiny_model
from dpeer.training.choice import model_states

Checkpoint = Callable[[str], Path]
Tree = Callable[[tuple[int, ...], int], TokenTree]
IDS = torch.tensor([[5, 6, 7, 8, 40, 41]])


def stir(model: Any, seed: int = 1) -> Any:
    """Adapters as after training: none of their parts as it began."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = 0.02 if "magnitude" in name else 0.2
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model


def trained(base: Path, folder: Path, **options: Any) -> Path:
    """A PEFT adapter made by PEFT alone."""
    options = {"r": 3, "lora_alpha": 11, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.1} | options
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    stir(get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **options))).save_pretrained(folder)
    return folder


def alone(model: Any, tree: TokenTree) -> Tensor:
    """Log-probabilities [R] in nats by transformers, response by response."""
    found = []
    for response in tree.responses:
        logits = model(torch.tensor([tree.prompt + response])).logits[0, len(tree.prompt) - 1 : -1].log_softmax(-1)
        found.append(logits[range(len(response)), list(response)].double().sum())
    return torch.stack(found)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 5}}])
def test_training_starts_from_an_adapter_and_so_does_the_reference(
    checkpoint: Checkpoint, tree_of: Tree, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Both are what PEFT makes of base and adapter, which is not the base; only the policy's adapter is trained."""
    base, adapter = checkpoint("qwen3"), trained(checkpoint("qwen3"), tmp_path / "adapter", **options)
    spec = config.Model(path=str(base), dtype="fp32", lora=config.Lora(path=str(adapter)))
    assert spec.reference_is_base and not spec.reference_beneath
    tree = tree_of((9, 4, 3), 0)
    policy, reference = build_lm(spec, 0), build_lm(spec, 0, reference=True)
    names = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)
    assert not any(p.requires_grad for p in reference.parameters())
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    pack = build_pack([tree], [0])
    with torch.no_grad():
        bare = alone(plain, tree)
        expected = alone(PeftModel.from_pretrained(plain, adapter).eval(), tree)
        assert (expected - bare).abs().max() > 0.05
        torch.testing.assert_close(policy(pack), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(policy(pack), reference(pack))  # every margin 0, every loss ln 2
        given = spec.model_copy(update={"reference_path": str(base)})
        assert not given.reference_is_base and given.reference_beneath
        torch.testing.assert_close(build_lm(given, 0, reference=True)(pack), bare, rtol=1e-5, atol=1e-5)


def test_what_contradicts_the_adapter_or_is_none_is_refused_by_key(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = trained(checkpoint("qwen3"), tmp_path / "a")

    def lora(**given: Any) -> config.Lora:
        return config.Lora(**({"path": str(folder)} | given))

    same = start_of(lora(rank=3, alpha=11, targets=("down_proj", "q_proj"), dora=False, rslora=False))
    assert (same.r, same.lora_alpha, same.lora_dropout, same.inference_mode) == (3, 11, 0.0, False)
    for key, value, own in (
        ("rank", 4, "3"), ("alpha", 12.0, "11"), ("targets", ("q_proj",), "down_proj, q_proj"),
        ("targets", "all-linear", "down_proj, q_proj"), ("dora", True, "False"), ("rslora", True, "False"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"model\.lora\.{key} = .* contradicts .*whose {key} is {own}"):
            start_of(lora(**{key: value}))
    with pytest.raises(ConfigError, match="no PEFT adapter can be read there"):
        start_of(lora(path=str(checkpoint("qwen3"))))
    described = json.loads((folder / "adapter_config.json").read_text())
    for changes, says in (
        ({"bias": "all"}, "bias = 'all'"), ({"modules_to_save": ["norm"]}, r"modules_to_save = \['norm'\]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"), ({"peft_type": "IA3"}, "of kind IA3"),
    ):  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(described | changes))
        with pytest.raises(ConfigError, match=says):
            start_of(lora())


def test_an_adapter_of_another_base_is_told_or_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder, base = trained(checkpoint("qwen3"), tmp_path / "a"), str(checkpoint("qwen3"))

    def spec(path: str = base) -> config.Model:
        return config.Model(path=path, dtype="fp32", lora=config.Lora(path=str(folder)))

    assert other_base(spec()) == ()
    assert "was trained on" in other_base(spec(str(checkpoint("llama"))))[0]
    with pytest.raises(ConfigError, match=r"do not fit model\.path .*size mismatch|lacks|has, with no place"):
        build_lm(spec(str(checkpoint("llama"))), 0)
    for load in (load_shape, lambda path: build_lm(config.Model(path=path), 0)):
        with pytest.raises(ConfigError, match=rf"model.path=.*qwen3 and model.lora.path={folder}"):
            load(str(folder))
    weights = folder / "adapter_model.safetensors"
    before = adapter_hash(str(folder))
    described = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(described.replace('"lora_alpha": 11', '"lora_alpha": 12'))
    assert adapter_hash(str(folder)) != before
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"model\.lora\.path"):
        build_lm(spec(), 0)


def test_an_adapter_of_the_head_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = trained(checkpoint("llama"), tmp_path / "a", target_modules=["q_proj", "lm_head"])
    with pytest.raises(ConfigError, match="adapts the embedding or the output head"):
        build_lm(config.Model(path=str(checkpoint("llama")), dtype="fp32", lora=config.Lora(path=str(folder))), 0)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_an_adapter_that_is_no_numbers_is_refused_by_its_path(
    checkpoint: Checkpoint, tmp_path: Path, value: float
) -> None:
    folder = trained(checkpoint("qwen3"), tmp_path / "a")
    weights = load_file(folder / "adapter_model.safetensors")
    name = sorted(weights)[3]
    weights[name][1, 2] = value
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    spec = config.Model(path=str(checkpoint("qwen3")), dtype="fp32", lora=config.Lora(path=str(folder)))
    for reference in (False, True):
        with pytest.raises(ConfigError, match=rf"^model\.lora\.path {folder}: 1 of its weights .* among them {name}\."):
            build_lm(spec, 0, reference=reference)


KINDS: dict[str, dict[str, Any]] = {"dora": {"dora": True}, "rslora": {"rslora": True, "rank": 16}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_kind_starts_as_the_base_and_merges(checkpoint: Checkpoint, tree_of: Tree, kind: str, dtype: Any) -> None:
    lora = config.Lora(**({"rank": 4} | KINDS[kind]))
    spec = config.Model(path=str(checkpoint("qwen3")), dtype=dtype, lora=lora)
    policy, reference, pack = (
        build_lm(spec, 0),
        build_lm(spec, 0, reference=True),
        build_pack([tree_of((9, 4, 3), 0)], [0]),
    )
    kinds = {name.split(".default")[0].rsplit(".", 1)[-1] for name, p in policy.named_parameters() if p.requires_grad}
    assert ("lora_magnitude_vector" in kinds) == (kind == "dora")
    model: Any = policy.model
    with torch.no_grad():
        assert torch.equal(policy(pack), reference(pack))
        if dtype == "bf16":
            return
        stir(model)
        assert (policy(pack) - reference(pack)).abs().max() > 0.05
        model.get_base_model().set_attn_implementation("sdpa")
        found, merged = model(IDS).logits, model.merge_and_unload()(IDS).logits
    torch.testing.assert_close(found, merged, rtol=1e-5, atol=1e-5)


def test_the_scale_of_rank_stabilised_adapters(checkpoint: Checkpoint) -> None:
    for rslora, scale in ((False, 2.0), (True, 8.0)):
        lora = config.Lora(rank=16, alpha=32, targets=("q_proj",), rslora=rslora)
        model: Any = build_lm(config.Model(path=str(checkpoint("qwen3")), dtype="fp32", lora=lora), 0).model
        assert {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")} == {scale}


def test_dora_of_fused_experts_is_refused_and_of_attention_is_not(tmp_path: Path) -> None:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    folder = str(tiny_model(tmp_path / "moe", "qwen3_moe", 1, vocab=300, **sizes))
    with pytest.raises(ConfigError, match=r"model.lora.dora = true: the experts.*model.lora.targets=\[q_proj"):
        build_lm(config.Model(path=folder, dtype="fp32", lora=config.Lora(dora=True)), 0)
    attention = config.Lora(dora=True, targets=("q_proj", "v_proj"))
    assert build_lm(config.Model(path=folder, dtype="fp32", lora=attention), 0)


def test_an_adapter_of_experts_goes_on(tmp_path: Path, tree_of: Tree) -> None:
    """What dpeer has trained on fused experts, routers left out, is what training starts from."""
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    folder = str(tiny_model(tmp_path / "moe", "qwen3_moe", 1, vocab=300, **sizes))
    pack = build_pack([tree_of((9, 4, 3), 0)], [0])
    first = build_lm(config.Model(path=folder, dtype="fp32", lora=config.Lora(rank=4)), 0)
    stir(first.model).save_pretrained(tmp_path / "adapter")
    spec = config.Model(path=folder, dtype="fp32", lora=config.Lora(path=str(tmp_path / "adapter")))
    with torch.no_grad():
        expected, policy, reference = first(pack), build_lm(spec, 3), build_lm(spec, 4, reference=True)
        torch.testing.assert_close(policy(pack), expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(policy(pack), reference(pack))
    assert not any("mlp.gate." in name for name, p in policy.named_parameters() if p.requires_grad)


def test_plan_counts_an_adapter_from_its_config_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = trained(checkpoint("qwen3"), tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    targets = {"rank": 3, "targets": ("q_proj", "down_proj")}
    base = config.Model(path=str(checkpoint("qwen3")), dtype="fp32", lora=config.Lora(**targets))
    again = base.model_copy(update={"lora": config.Lora(path=str(folder))})
    assert model_states(again) == model_states(base)
