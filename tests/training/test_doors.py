"""What `prepare`, the door of training and preflight, refuses of real files, and what it tells."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpeer.config import Config
from dpeer.errors import ConfigError, DataError, DpeerError
from dpeer.toyworld.model import tiny_model
from dpeer.training import world
from dpeer.training.choice import Choice, policy_engine
from dpeer.training.prepare import prepare
from dpeer.training.zero3 import _own_parts
from tests.training.conftest import recipe


def rows(names: range, dimension: str = "A", extra: str = "") -> str:
    def row(i: int) -> dict[str, Any]:
        answers = [{"text": f"Boat {i} can wait.", "fails": []}, {"text": f"Sure, {i}!", "fails": [dimension]}]
        return {"prompt": f"Shall I paint boat {i}?{extra}", "mask": [dimension], "responses": answers}

    return "".join(json.dumps(row(i)) + "\n" for i in names)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("doors") / "model", "qwen3", 1, vocab=300)


def door(folder: Path, model: Path | str, train: str, heldout: str | None = None, **more: Any) -> Any:
    (folder / "train.jsonl").write_text(train)
    data = {"train": str(folder / "train.jsonl"), "heldout": "none", "dual": "none", "max_tokens": 300}
    if heldout:
        (folder / "test.jsonl").write_text(heldout)
        data["heldout"] = str(folder / "test.jsonl")
    tree = {
        "name": "x",
        "output_dir": str(folder / "runs"),
        "model": {"path": str(model), "dtype": "fp32"} | more.pop("spec", {}),
        "data": data | more.pop("data", {}),
        "objective": {"dual": {"evidence": "batch"}} | more.pop("objective", {}),
        "training": {"steps": 2},
    }
    return prepare(Config.model_validate(tree | more))


def edited(model: Path, folder: Path, **changes: Any) -> Path:
    """A copy without weights, its config.json changed."""
    folder.mkdir()
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_held_out_prompts_are_refused_and_near_repeats_told(tmp_path: Path, model: Path) -> None:
    with pytest.raises(DataError, match=r"test.jsonl:1, column prompt: also trained on \(train.jsonl:2\)"):
        door(tmp_path, model, rows(range(3)), rows(range(1, 5)))
    told = door(tmp_path, model, rows(range(3)), rows(range(3)).replace("Shall I paint", "SHALL I  PAINT")).warnings
    assert len(told) == 1 and "3 of 3 nearly repeat one of the training records" in told[0]


def test_a_dimension_that_is_dropped_as_overlong(tmp_path: Path, model: Path) -> None:
    both = rows(range(3)) + rows(range(3, 6), "B", " It rains." * 60)
    with pytest.raises(DataError, match=r"no pair of 'B' is left \(3 records dropped as overlong\)"):
        door(tmp_path, model, both)
    lifted = {"constraint": {"tolerance": {"A": 0.5, "B": float("inf")}}, "dual": {"evidence": "batch"}}
    told = door(tmp_path, model, both, objective=lifted).warnings
    assert told == ("training records: longer than data.max_tokens (300): 3 dropped",)
    assert "1 with" not in str(door(tmp_path, model, both, objective={"kind": "sft"}).warnings)
    cut = door(tmp_path, model, both, data={"overlong": "cut_prompt"}).warnings
    assert cut == ("training records: longer than data.max_tokens (300): 3 with a prompt cut from the left",)


def test_sizes_of_policy_and_reference(tmp_path: Path, model: Path) -> None:
    small = edited(model, tmp_path / "small", vocab_size=90)
    for path, reference in ((small, None), (model, small)):
        with pytest.raises(DpeerError, match=r"token id \d+ \('.*'\), the model has 90 embeddings"):
            door(tmp_path, path, rows(range(3)), spec={"reference_path": reference and str(reference)})
    short = edited(model, tmp_path / "short", max_position_embeddings=40)
    with pytest.raises(DpeerError, match="40 positions"):
        door(tmp_path, short, rows(range(3)))
    scaled = edited(
        model, tmp_path / "scaled", max_position_embeddings=40, rope_scaling={"rope_type": "linear", "factor": 4.0}
    )
    assert door(tmp_path, scaled, rows(range(3))).warnings == ()


@pytest.mark.parametrize("which", ["path", "reference_path"])
@pytest.mark.parametrize("method", ["gptq", "fp8"])
def test_quantised_models_are_refused_before_anything_is_read(
    tmp_path: Path, model: Path, which: str, method: str
) -> None:
    given = edited(model, tmp_path / "q", quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ConfigError, match=rf"model .*q: is quantised \({method}\)"):
        door(tmp_path, model, "", spec={which: str(given)})


def test_weights_that_are_not_finite(here: world.World, tmp_path: Path, model: Path) -> None:
    from dpeer.model.lm import load_causal_lm

    folder = edited(model, tmp_path / "nan")
    for value in (float("nan"), float("-inf")):
        weights = load_file(model / "model.safetensors")
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        for dtype in ("fp32", "bf16"):
            with pytest.raises(ConfigError, match=r"1 of its weights hold NaN or infinite values.*up_proj"):
                load_causal_lm(str(folder), dtype)
    assert load_causal_lm(str(model), "bf16").num_parameters()
    spec = recipe(str(folder))
    with pytest.raises(ConfigError, match=r"1 of its weights hold NaN or infinite values.*up_proj"):
        policy_engine(spec, Choice("deepspeed", ""), here)


def test_padding_of_a_partitioned_weight_is_not_looked_at() -> None:
    """7 elements over 3 ranks of 3: the last part has one element and two that nothing has written."""
    weight = SimpleNamespace(ds_numel=7, ds_tensor=torch.tensor([1.0, float("nan"), float("nan")]))
    lm: Any = SimpleNamespace(named_parameters=lambda: [("w", weight)])
    assert [part.tolist() for _, part in _own_parts(lm, 2)] == [[1.0]]
    assert [part.numel() for _, part in _own_parts(lm, 1)] == [3]
    assert list(_own_parts(lm, 3)) == []
