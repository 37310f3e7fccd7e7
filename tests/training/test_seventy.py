"""70 billion parameters of 64 ranks on one machine: places are computed, files have holes, memory is measured."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data
from transformers import AutoConfig, AutoModelForCausalLM

from dpeer.config import Config
from dpeer.toyworld.model import tiny_model
from dpeer.training import reshard, world
from dpeer.training.export import _stream
from dpeer.training.publish import read_back
from dpeer.training.pulse import Pulse
from dpeer.training.reshard import MASTER, MOMENTS, OPTIMIZER
from dpeer.training.weights_file import Weights
from dpeer.training.zero3 import Zero3
from tests.training.conftest import recipe
from tests.training.test_reshard import grouped

LLAMA_70B: dict[str, Any] = {
    "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "intermediate_size": 28672, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
SUB_GROUP = 10**9  # DeepSpeed's default
MIB = 2**20


def shapes(**changes: int) -> dict[str, int]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA_70B | changes))
    return {name: p.numel() for name, p in model.named_parameters()}


def peak_of(work: Any) -> int:
    """Bytes of resident memory that `work` takes at most beyond what there was before it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before


def memory(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


@pytest.mark.parametrize("ranks", [48, 63, 128, 1])
def test_slices_of_a_70b_model_cover_all_that_64_ranks_had_once(ranks: int) -> None:
    names = shapes()
    old, new = grouped(names, 64, SUB_GROUP), grouped(names, ranks, SUB_GROUP)
    assert sum(names.values()) == 70_553_706_496 and len(old.groups) == 2
    read: dict[tuple[int, int], list[tuple[int, int]]] = {}
    wrote = 0
    for rank in range(ranks):
        into: dict[int, list[tuple[int, int]]] = {}
        for other, taken in reshard.copies(old, new, rank).items():
            for copy in taken:
                read.setdefault((other, copy.source), []).append((copy.start, copy.start + copy.numel))
                into.setdefault(copy.target, []).append((copy.into, copy.into + copy.numel))
        wrote += sum(end - start for spans in into.values() for start, end in disjoint(spans))
        assert all(disjoint(spans)[-1][1] <= new.sizes[group] for group, spans in into.items())
    found = {key: sum(end - start for start, end in disjoint(spans)) for key, spans in read.items()}
    assert sum(found.values()) == wrote == sum(names.values())
    for (rank, group), elements in found.items():  # all of a rank's group but the padding of its parameters
        kept = (max(0, min(-(-n // 64), n - rank * -(-n // 64))) for n in old.groups[group].values())
        assert elements == sum(kept)


def disjoint(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    ordered = sorted(spans)
    assert all(before[1] <= after[0] for before, after in pairwise(ordered))
    return ordered


@pytest.mark.slow
def test_resharding_takes_no_memory_beside_the_new_share(tmp_path: Path) -> None:
    """Of layers, embedding and head in the sizes of 70B, but 2 layers: files of holes, of 64 ranks, from which rank 5
    of 48 reads the 950 MB that it holds."""
    names = shapes(num_hidden_layers=2)
    old, new = grouped(names, 64, SUB_GROUP), grouped(names, 48, SUB_GROUP)
    needed = reshard.copies(old, new, 5)
    assert list(needed) == [6, 7, 8]  # a small weight has other parts
    for rank in needed:
        with FakeTensorMode():
            flats = [torch.empty(size) for size in old.sizes]
            states = {i: dict.fromkeys(MOMENTS, torch.empty(size)) for i, size in enumerate(old.sizes)}
        saved = {"optimizer_state_dict": {"state": states, "param_groups": [{}]}, "fp32_flat_groups": flats}
        with skip_data(materialize_fake_tensors=True):
            torch.save({"optimizer_state_dict": saved}, tmp_path / f"bf16_zero_pp_rank_{rank}{OPTIMIZER}")
    share = 12 * sum(new.sizes)
    targets = {kind: [torch.empty(size) for size in new.sizes] for kind in (MASTER, *MOMENTS)}
    peak = peak_of(lambda: reshard.fill(tmp_path, old, new, 5, targets))
    print(f"share {share / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB")
    assert not any(t.any() for groups in targets.values() for t in groups)
    assert share > 900 * MIB and peak < share + 200 * MIB


@pytest.mark.slow
def test_an_export_takes_twice_its_largest_layer(here: world.World, tmp_path: Path) -> None:
    """Under ZeRO-3, of weights in bf16."""
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 8,
             "head_dim": 128, "num_hidden_layers": 6, "tie_word_embeddings": False}  # fmt: skip
    path = tiny_model(tmp_path / "model", "llama", 1, vocab=300, **sizes)
    config: Config = recipe(str(path), dtype="bf16", export_dtype="bf16")
    engine = Zero3(config, here, reference=True)
    weights, pulse = Weights(tmp_path / "export"), Pulse()
    layer = max(sum(p.ds_numel for p in m.parameters()) for m in engine.module.model.model.layers) * 2  # type: ignore
    peak = peak_of(lambda: _stream(config, engine.module, engine.whole, True, weights, False, pulse))
    print(f"model {weights.bytes / MIB:.0f} MiB, layer {layer / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB")
    assert pulse.beats > 6 and weights.bytes > 5 * layer and peak < 2 * layer + 200 * MIB
    read_back(tmp_path / "export", weights.finish())
    engine.close()
