"""Guards around checkpoints that need no process group; saving and loading for real is tested under Ray."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dpeer.config import Config
from dpeer.errors import CheckpointError
from dpeer.estimate.saved_size import SavedSize, saved_size
from dpeer.launcher.preflight.quick import _size
from dpeer.training import checkpoint
from dpeer.training.pickles import outline, refuse_foreign_code
from dpeer.training.run_dir import refuse_unshared


def test_folder_that_others_cannot_see_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rank 3 does not see .* must lie on a file system"):
        refuse_unshared(tmp_path, "rank 3")
    (tmp_path / "state.json").write_text("{}")
    refuse_unshared(tmp_path, "rank 3")


def test_commit_makes_a_whole_folder_appear(tmp_path: Path) -> None:
    temporary, final = tmp_path / ".writing-1", tmp_path / "step-1"
    temporary.mkdir()
    (temporary / "state.json").write_text("{}")
    checkpoint.commit(temporary, final)
    assert (final / "state.json").exists() and not temporary.exists()


def test_full_checkpoint_is_as_large_as_predicted(tmp_path: Path) -> None:
    """Twelve bytes a trained parameter, by hand: 70.6e9 for Llama 3 70B's shape, and two of every frozen one."""
    shape = {
        "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    tree = {"name": "x", "data": {"train": "d"}, "training": {"steps": 1}}
    full = saved_size(Config.model_validate(tree | {"model": {"path": str(tmp_path)}}))
    count = 2 * 128256 * 8192 + 8192 + 80 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192)
    assert (full.parameters, full.trained) == (count, count)
    assert (full.checkpoint, full.consolidation) == (12 * count, 4 * 128256 * 8192)
    assert full.export == 2 * count + 2**17, "weights, and the room of a header"
    assert full.disk(2) == 3 * 12 * count + 2 * full.export
    lora = saved_size(Config.model_validate(tree | {"model": {"path": str(tmp_path), "lora": {"rank": 4}}}))
    assert 0 < lora.trained < count / 1000
    assert lora.checkpoint == 12 * lora.trained + 2 * count


def test_the_disk_must_hold_what_the_runs_engine_saves(tmp_path: Path) -> None:
    """The plain engine saves adapters alone, DeepSpeed the frozen model too, with LoRA on several ranks if it must."""
    shape = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
             "num_key_value_heads": 4, "intermediate_size": 64, "vocab_size": 500}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    for workers, memory, frozen in ((1, 1.0, False), (8, 1e9, False), (8, 2e5, True)):
        config = Config.model_validate(
            {
                "name": "x", "output_dir": tmp_path, "data": {"train": "d"}, "training": {"steps": 1},
                "model": {"path": str(tmp_path), "lora": {"rank": 4}}, "cluster": {"policy_workers": workers},
            }
        )  # fmt: skip
        sizes: list[SavedSize] = []
        _size(config, memory, sizes)
        base = sizes[0].parameters - sizes[0].trained
        assert sizes[0].checkpoint == 12 * sizes[0].trained + frozen * 2 * base and base > 50_000


class Attack:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


def test_shards_that_would_run_code_are_refused_and_do_not_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    monkeypatch.chdir(tmp_path)
    shard = tmp_path / "deepspeed" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shard.parent.mkdir()
    own = {"stage": ZeroStageEnum.weights, "scaler": LossScaler(1.0), "flat": torch.zeros(3), "step": 4}
    torch.save(own, shard)
    refuse_foreign_code(tmp_path)
    for value, options, said in (
        (own | {"more": Attack()}, {}, "asks for posix.mkdir when it is loaded"),
        (own | {"more": Attack()}, {"pickle_protocol": 4}, "is no checkpoint as torch.save writes it"),
        (own | {"more": Attack()}, {"_use_new_zipfile_serialization": False}, "is no checkpoint as torch.save"),
    ):
        torch.save(value, shard, **options)  # type: ignore[arg-type]
        for refuses in (lambda: refuse_foreign_code(tmp_path), lambda: outline(shard)):
            with pytest.raises(CheckpointError, match=said):
                refuses()
    assert not (tmp_path / "ran").exists()
    torch.load(shard, weights_only=False)
    assert (tmp_path / "ran").exists(), "the attack is a real one"


@pytest.mark.parametrize("kind", ["gpt_oss", "llama"])
def test_checkpoints_of_models_that_were_built_otherwise_say_so(tmp_path: Path, kind: str) -> None:
    """Of the kinds that were; any other's fault stays what it is."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    model = {"path": str(tmp_path), "lora": {"targets": "all-linear"}}
    config = Config.model_validate({"name": "x", "model": model, "data": {"train": "d"}, "training": {"steps": 1}})
    policy: Any = SimpleNamespace(config=config, engine=SimpleNamespace(module=torch.nn.Linear(2, 2)))
    checkpoint._refuse_other_parameters(policy, tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"holds 1 trained parameters, and this model has 2.*began the run"):
        checkpoint._refuse_other_parameters(policy, tmp_path, 1)
    older: dict[str, Any] = {"step": 4}
    for state, explained in ((older, kind == "gpt_oss"), (older | {"trained": 2}, False)):
        expected = (CheckpointError, "experts that are fused no adapters") if explained else (RuntimeError, "^sizes$")
        with (
            pytest.raises(expected[0], match=expected[1]),
            checkpoint._older_parameters_explained(policy, tmp_path, state),
        ):
            raise RuntimeError("sizes")
