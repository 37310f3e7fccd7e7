"""What a model's architecture in small says of how it may be computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from dpeer import config
from dpeer.data.packing import build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.errors import ConfigError
from dpeer.model import probe as module
from dpeer.model.families import FAMILIES, family_of
from dpeer.model.lm import build_lm
from dpeer.model.logprob import Shape
from dpeer.model.miniature import miniature, one_of_each_kind
from dpeer.model.probe import Exactness, exactness, layout_of, probe

TREES = [
    "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3_text", "smollm3", "olmo2", "olmo3", "phi3", "ministral",
    "ministral3", "glm", "glm4", "hunyuan_v1_dense", "exaone4", "ernie4_5", "apertus", "arcee", "starcoder2",
    "helium", "granite", "cohere", "cohere2", "gemma4_text", "seed_oss", "qwen3_moe", "qwen2_moe", "mixtral", "olmoe",
    "glm4_moe", "glm4_moe_lite", "minimax_m2", "deepseek_v3", "granitemoe", "exaone_moe", "hunyuan_v1_moe",
    "ernie4_5_moe", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "olmo_hybrid", "lfm2", "gpt_oss",
]  # fmt: skip
SEQUENCES = [
    "gemma2", "nemotron", "stablelm", "llama4_text", "falcon_h1", "granitemoehybrid",
]  # fmt: skip
NO_DROPOUT = {"attention_dropout": 0.0, "residual_dropout": 0.0}


def shape_of(family: str, **options: Any) -> PretrainedConfig:
    return AutoConfig.for_model(family, **options)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DPEER_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_FOUND", {})
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("family", TREES)
def test_families_that_are_exact_as_trees(family: str) -> None:
    found = probe(shape_of(family, **NO_DROPOUT), "tree")
    print(f"{family}: {found.values:.1e} {found.gradients:.1e} {found.failure}")
    assert found.exact and found.values <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("family", SEQUENCES)
def test_families_that_are_exact_as_sequences_only(family: str) -> None:
    assert not probe(shape_of(family, **NO_DROPOUT), "tree").exact
    found = probe(shape_of(family, **NO_DROPOUT), "sequences")
    print(f"{family}: {found.values:.1e} {found.gradients:.1e} {found.failure}")
    assert found.exact and found.values <= 1e-6


def test_a_model_is_tried_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = shape_of("olmo2", num_hidden_layers=3)
    assert layout_of(shape, "some/model") == "tree"
    monkeypatch.setattr(module, "probe", lambda *_: pytest.fail("tried again"))
    assert layout_of(shape, "some/model") == "tree"
    monkeypatch.setattr(module, "_FOUND", {})
    assert layout_of(shape, "some/model") == "tree"
    (kept,) = (empty_cache / "probes").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    monkeypatch.setattr(module, "_FOUND", {})
    monkeypatch.setattr(module, "probe", lambda *_: Exactness(1.0, 1.0, "x"))
    with pytest.raises(ConfigError, match="cannot be trained exactly"):
        layout_of(shape, "some/model")


def test_a_model_with_capped_attention_runs_as_sequences_and_not_as_trees(empty_cache: Path) -> None:
    shape = shape_of("gemma2")
    assert layout_of(shape, "some/model") == "sequences"
    with pytest.raises(ConfigError, match=r"model\.layout is tree, but as trees its small model does not run.*softcap"):
        layout_of(shape, "some/model", "tree")


def test_logits_that_are_changed_in_an_unknown_way_are_refused(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpeer.model.tree_lm.logits_shape", lambda _: Shape())
    with pytest.raises(ConfigError, match=r"'cohere'\): cannot be trained exactly: as trees its log-prob.* are off by"):
        layout_of(shape_of("cohere"), "some/model")


@pytest.mark.parametrize(("family", "cap"), [("llama", None), ("gemma3_text", 5.0), ("gemma2", 30.0)])
def test_layouts_agree(
    checkpoint: Callable[[str], Path], trees: list[TokenTree], family: str, cap: float | None, tmp_path: Path
) -> None:
    """Sequences against transformers' own logits, soft-capped too, through the whole loading."""
    folder = checkpoint({"gemma3_text": "gemma3"}.get(family, family))
    lm = build_lm(config.Model(path=str(folder), dtype="fp32", layout="sequences"), 0)
    if cap:
        lm.head.shape = Shape(1.0, cap)
        lm.model.config.final_logit_softcapping = cap
    assert lm.layout == "sequences"
    with torch.no_grad():
        found = lm(build_pack(trees, range(len(trees))))
        expected = []
        for prompt, response in ((t.prompt, r) for t in trees for r in t.responses):
            logits = lm.model(input_ids=torch.tensor([prompt + response])).logits[0]
            table = logits[len(prompt) - 1 : -1].log_softmax(-1)
            expected.append(table[torch.arange(len(response)), list(response)].double().sum())
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_a_miniature_has_a_layer_of_each_kind() -> None:
    gemma = shape_of("gemma3_text", num_hidden_layers=12)
    assert [gemma.layer_types[i] for i in one_of_each_kind(gemma)] == ["sliding_attention", "full_attention"]
    assert one_of_each_kind(shape_of("llama")) == [0, 1]
    small = miniature(shape_of("qwen3_moe", num_hidden_layers=48, num_experts=128, sliding_window=4096))
    assert (small.num_experts, small.num_experts_per_tok, small.num_hidden_layers) == (8, 4, 2)
    assert small.num_attention_heads > small.num_key_value_heads > 1
    four = miniature(shape_of("gemma4_text"))
    assert len(four.layer_types) == four.num_hidden_layers == 2


def test_what_failed_is_tried_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process may have the memory, or the package, that this one lacked."""
    whole = module._build
    monkeypatch.setattr(module, "_build", lambda *_: (_ for _ in ()).throw(MemoryError("full")))
    shape = shape_of("olmo2")
    with pytest.raises(ConfigError, match="MemoryError: full"):
        layout_of(shape, "some/model")
    monkeypatch.setattr(module, "_build", whole)
    monkeypatch.setattr(module, "_FOUND", {})
    assert layout_of(shape, "some/model") == "tree"


def test_layers_of_another_name_are_found() -> None:
    small = miniature(shape_of("bloom", n_layer=3, hidden_size=64, n_head=4), narrow=False)
    model: Any = module._build(small, None)
    assert family_of(small).decoder_layers(model) is model.transformer.h


@pytest.mark.parametrize("field", [{"logit_scale": 0.5}, {"logits_scaling": 4.0}, {"final_logit_softcapping": 5.0}])
def test_a_field_that_a_named_family_does_not_read_changes_nothing_in_silence(
    empty_cache: Path, field: dict[str, float]
) -> None:
    """Llama computes without them; the head would compute with them."""
    with pytest.raises(ConfigError, match="cannot be trained exactly"):
        layout_of(shape_of("llama", **field), "some/model")


def test_a_named_family_with_capped_logits_is_tried(empty_cache: Path) -> None:
    assert layout_of(shape_of("gemma3_text", final_logit_softcapping=5.0), "some/model") == "tree"
    assert list((empty_cache / "probes").iterdir())


def test_listed_families_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "probe", lambda *_: pytest.fail("tried"))
    for family in FAMILIES:
        assert layout_of(shape_of(family), "some/model") == "tree"


def test_errors_of_an_unknown_model_are_kept_short(empty_cache: Path) -> None:
    found = exactness(shape_of("mamba"), "tree")
    assert not found.exact and "\n" not in str(found) and len(str(found)) < 500
