"""Is a response beside its siblings what it is alone? In log-probabilities, in gradients, and to the last bit.

The oracle is transformers' own forward in fp32 with eager attention, one response at a time, on the same weights. In
half precision a tree may be as far from it as separate sequences are, not further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpeer import config
from dpeer.data.packing import Pack, build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.model import kernels, tree_attention
from dpeer.model.families import causal_lm
from dpeer.model.lm import add_lora
from dpeer.model.tree_lm import TreeLM
from gpu_stages.shapes import TINY, make, record, result, shape

MORE = 1.3
"""Allowed error of a tree, in errors of separate sequences."""
EXACT = 1e-5
"""Allowed in fp32, per token, relative to its size."""
MID = TINY | {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 32768,
}  # fmt: skip
SMALL = TINY | {"head_dim": 32}


@dataclass(frozen=True)
class Case:
    name: str
    fields: dict[str, Any]
    lora: bool = False
    attention: str = tree_attention.NAME
    liger: bool = False

    def choose(self, device: str, *, liger: bool) -> None:
        """Kernels of layers that are built from now on; rotary positions also of those that are there."""
        kernels.choose("liger" if liger else "eager", torch.device(device), shape(self.fields), torch.bfloat16)


def cases(device: str) -> list[Case]:
    base, window, wide = (MID, 128, 256) if device == "cuda" else (SMALL, 16, 64)
    gemma = {"model_type": "gemma3_text", "head_dim": wide, "sliding_window": window, "layer_types": None}
    layers = base["num_hidden_layers"]
    gemma["layer_types"] = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
    return [
        Case("llama", base),
        Case("qwen3", base | {"model_type": "qwen3"}),
        Case("tied", base | {"tie_word_embeddings": True}),
        Case("mistral, window", base | {"model_type": "mistral", "sliding_window": window}),
        Case("gemma3, window", base | gemma | {"tie_word_embeddings": True}),
        Case("llama, cascade", base, attention=tree_attention.IMPLEMENTATIONS["cascade"]),
        *(
            [Case(f"{f}, Liger", base | {"model_type": f}, liger=True) for f in ("llama", "qwen3")]
            if fused(device)
            else []
        ),
        Case("LoRA", base, lora=True),
    ]


def fused(device: str) -> bool:
    """Liger's kernels run here."""
    return kernels.choose("auto", torch.device(device), shape(MID), torch.bfloat16).startswith("Liger")


def run(device: str, quick: bool, out: Path) -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = False
    long = (300, (120, 90, 150, 110)) if device == "cuda" else (30, (12, 9, 15, 11))
    found: dict[str, Any] = {}
    lines, passed = [], True
    chosen = cases(device)
    for case in chosen[:: len(chosen) - 1 if quick else 1]:  # quick: the first and the last
        tree = record(*long, case.fields["vocab_size"], seed=1)
        found[case.name] = figures = check(case, tree, device)
        fine = [name for name, good in figures["checks"].items() if not good]
        passed &= not fine
        lines.append(
            f"{case.name}: token error rms {figures['tree']:.1e} (separate {figures['separate']:.1e}), gradients "
            f"{figures['tree_gradient']:.1e} ({figures['separate_gradient']:.1e}), cosine {figures['cosine']:.5f}, "
            f"fp32 {figures['fp32']:.1e}, logits kept in bf16 would add {figures['rounding']:.1e}; "
            + ("right" if not fine else f"WRONG: {', '.join(fine)}")
        )
    return result(passed, lines, families=found)


def check(case: Case, tree: TokenTree, device: str) -> dict[str, Any]:
    half, full = torch.bfloat16, torch.float32
    case.choose(device, liger=case.liger)
    exact, rounded = together(case, device, full), together(case, device, half)
    case.choose(device, liger=False)
    oracle = together(case, device, full, attention="eager")
    copy(rounded.model, exact.model)
    copy(rounded.model, oracle.model)
    weights = torch.linspace(1.0, -1.0, len(tree.responses), device=device, dtype=torch.float64)

    truth, slopes = measure(oracle, tree, weights, alone_by_transformers)
    case.choose(device, liger=case.liger)
    found: dict[str, Any] = {}
    values: dict[str, Tensor] = {}
    for name, model, how in (
        ("tree", rounded, joint), ("separate", rounded, alone), ("fp32", exact, joint),
    ):  # fmt: skip
        values[name], gradients = measure(model, tree, weights, how)
        error = values[name] - truth
        found[name] = float((error / truth.abs().clamp(min=1)).abs().max()) if name == "fp32" else rms(error)
        found[f"{name}_gradient"] = relative(gradients, slopes)
        if name == "tree":
            found["cosine"] = min(cosine(gradients[k], slopes[k]) for k in slopes if slopes[k].norm() > 0)

    pack = build_pack([tree], [0]).to(device)
    again = tokens(rounded, pack)
    other = replace(tree, responses=(tree.responses[0], tuple(reversed(tree.responses[1])), *tree.responses[2:]))
    changed = tokens(rounded, build_pack([other], [0]).to(device))
    kept = pack.row_response != 1
    order = list(reversed(range(len(tree.responses))))
    turned = tokens(
        rounded, build_pack([replace(tree, responses=tuple(tree.responses[i] for i in order))], [0]).to(device)
    )
    lengths = [len(tree.responses[i]) for i in order]
    back = torch.cat([turned.split(lengths)[order.index(i)] for i in range(len(order))])
    noise = float((values["tree"] - values["separate"]).abs().max())
    found |= {
        "rounding": float(rounding(rounded, pack)),
        "noise_per_token": float((values["tree"] - values["separate"]).abs().mean()),
        "permuted": float((back - again).abs().max()),
    }
    tied = case.fields["tie_word_embeddings"]
    found["checks"] = {
        "log-probabilities": found["tree"] <= MORE * found["separate"] + EXACT,
        "gradients": found["tree_gradient"] <= MORE * found["separate_gradient"] + EXACT,
        "cosine": found["cosine"] > (0.99 if tied else 0.999) or found["tree_gradient"] <= found["separate_gradient"],
        "fp32": found["fp32"] <= EXACT and found["fp32_gradient"] <= 10 * EXACT,
        "leak between siblings": bool(torch.equal(changed[kept], again[kept])),
        "a changed response changed": not torch.equal(changed[~kept], again[~kept]),
        "twice the same": bool(torch.equal(tokens(rounded, pack), again)),
        "order of siblings": found["permuted"] <= 3 * noise + EXACT,
    }
    return found


def together(case: Case, device: str, dtype: torch.dtype, **options: Any) -> TreeLM:
    model = make(case.fields, device, dtype, **({"attention": case.attention} | options))
    if case.lora:
        model = add_lora(model, config.Lora(rank=8), 0)
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide the adapters
                torch.nn.init.normal_(parameter, 0.0, 0.02)
    return TreeLM(model.train())


def copy(source: PreTrainedModel, target: PreTrainedModel) -> None:
    target.load_state_dict({k: v.float() for k, v in source.state_dict().items()})


def measure(
    lm: TreeLM, tree: TokenTree, weights: Tensor, how: Callable[[TreeLM, TokenTree], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probability of every token, and gradients of the responses' weighted sum."""
    lm.zero_grad(set_to_none=True)
    values = how(lm, tree)
    parts = values.double().split([len(r) for r in tree.responses])
    torch.autograd.backward(sum(w * part.sum() for w, part in zip(weights, parts, strict=True)))
    trained = {k: p for k, p in lm.model.named_parameters() if p.requires_grad}
    return values.detach().double(), {k: p.grad.double() for k, p in trained.items() if p.grad is not None}


def tokens(lm: TreeLM, pack: Pack) -> Tensor:
    """[N] in the order of the responses."""
    kept: list[Tensor] = []
    hook = lm.head.register_forward_hook(lambda module, given, found: kept.append(found))
    lm(pack)
    hook.remove()
    return kept[0]


def joint(lm: TreeLM, tree: TokenTree) -> Tensor:
    return tokens(lm, build_pack([tree], [0]).to(lm.head.weight.device))


def alone(lm: TreeLM, tree: TokenTree) -> Tensor:
    single = [replace(tree, responses=(r,), edges=(), golden=0) for r in tree.responses]
    return torch.cat([joint(lm, one) for one in single])


def alone_by_transformers(lm: TreeLM, tree: TokenTree) -> Tensor:
    return torch.cat([plain(lm.model, tree.prompt, response) for response in tree.responses])


def plain(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    device = causal_lm(model).get_output_embeddings().weight.device
    logits = model(torch.tensor([[*prompt, *response]], device=device), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response, device=device)[:, None])[:, 0]


@torch.no_grad()
def rounding(lm: TreeLM, pack: Pack) -> Tensor:
    """Standard deviation, in nats per token, of what logits in bf16 would add."""
    kept: list[Tensor] = []
    hook = lm.head.register_forward_pre_hook(lambda module, given: kept.append(given[0]))
    exact = tokens(lm, pack)
    hook.remove()
    logits = (kept[0].bfloat16() @ lm.head.weight.bfloat16().T).float()
    return (logits.log_softmax(-1).gather(1, pack.targets[:, None])[:, 0] - exact).std()


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Error of all gradients together, relative to their size."""
    off = sum(float((found[k] - expected[k]).square().sum()) for k in expected)
    return (off / sum(float(v.square().sum()) for v in expected.values())) ** 0.5
