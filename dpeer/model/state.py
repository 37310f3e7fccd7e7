"""State across positions in response trees: what a prompt leaves behind is handed to each of its responses.

A causal convolution sees the last inputs of the prompt before a response's first; a delta rule starts each response
from the state in which the prompt ended. Everything else in such a layer is computed token by token, so a prompt is
computed once. The layers of transformers call both by name and hand them the keywords of the forward pass, with the
tree among them: there the functions of that name are replaced by ones that know trees. Whether a model is computed
exactly by it is for `probe` to find: a layer whose state travels in any other way is not.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from dpeer.data.packing import Pack

CONVOLUTIONS = ("causal_conv1d_fn",)
RULES = ("torch_chunk_gated_delta_rule", "chunk_kimi_delta_attention")
"""They take an initial state and return the last one; a token whose inputs are all zero leaves a state as it is."""


KERNELS = (
    *CONVOLUTIONS,
    "causal_conv1d_update",
    *RULES,
    "torch_recurrent_gated_delta_rule",
    "recurrent_kimi_delta_attention",
    "mamba2_chunk_scan",
    "mamba2_selective_state_update",
    "mamba2_split_conv1d_scan_combined",
    "mamba_inner_fn",
    "mamba_selective_scan",
    "mamba_selective_state_update",
)
"""Functions for which transformers takes a package's kernel, where there is one, when it imports a model's module."""


def by_device(model: nn.Module) -> None:
    """Let layers with a state run on any device. Kernels of packages know GPUs alone, and transformers hands them also
    tensors of a host (the probe, an export's check, its generation) and of the meta device (estimates)."""
    for name in {type(m).__module__ for m in model.modules()}:
        names = vars(sys.modules[name])
        for function in KERNELS:
            if hasattr(names.get(function), "__wrapped__") and not hasattr(names[function], "in_torch"):
                names[function] = of_device(names[function])


def of_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A function of transformers that runs the torch code it stands for where tensors are on no accelerator."""
    in_torch: Callable[..., Any] = vars(kernel)["__wrapped__"]
    known = inspect.signature(in_torch).parameters  # others are options of the kernel

    @wraps(kernel)
    def run(*args: Any, **options: Any) -> Any:
        device = next(x.device.type for x in (*args, *options.values()) if isinstance(x, Tensor))
        if device not in ("cpu", "meta"):
            return kernel(*args, **options)
        return in_torch(*args, **{k: v for k, v in options.items() if k in known})

    vars(run)["in_torch"] = in_torch
    return run


def hand_over(model: nn.Module) -> None:
    """Make the layers of this model hand over their state where they are given a tree, on any device."""
    by_device(model)
    kinds: dict[tuple[str, ...], Callable[[Any], Any]] = {CONVOLUTIONS: of_convolution, RULES: of_rule}
    for name in {type(m).__module__ for m in model.modules()}:
        names = vars(sys.modules[name])
        for functions, wrapped in kinds.items():
            for function in functions:
                if function in names and not hasattr(names[function], "of_sequences"):
                    names[function] = wrapped(names[function])


def of_convolution(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A causal convolution of inputs [1, D, T] with weights [D, K], over a pack's tree where it is given one."""

    @wraps(original)
    def convolve(inputs: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        tree, options = _tree(options)
        if tree is None:
            return original(inputs, weight, *args, **options)
        tails, tokens = tree.tails(weight.shape[-1]), inputs[0].T
        row = tokens.new_zeros(tails.rows, tokens.shape[1])
        row = row.index_copy_(0, tails.place, torch.cat([tokens, tokens[tails.source]]))
        out = original(row.T[None], weight, *args, **options)
        return out[0].T.index_select(0, tails.place[: len(tokens)]).T[None]

    return _known(convolve, original)


def of_rule(original: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Tensor, Any]]:
    """A delta rule over queries, keys and values [1, T, H, D], decays and betas [1, T, H, ...], likewise.

    Prompts come first, then responses, in batches of similar length, padded with tokens that leave the state as it is.
    """

    @wraps(original)
    def rule(query: Tensor, key: Tensor, value: Tensor, *, g: Tensor, beta: Tensor, **options: Any) -> Any:
        tree, options = _tree(options)
        if tree is None:
            return original(query, key, value, g=g, beta=beta, **options)
        if options.pop("initial_state", None) is not None or options.pop("output_final_state", False):
            raise ValueError("a tree starts from no state and leaves none: no cache can be used with it")
        states = tree.states()
        sizes = (*states.prompts, *states.responses)
        batches = zip(*(_batches(x[0], states.place, sizes) for x in (query, key, value, g, beta)), strict=True)
        rows, ends = [], []
        for q, k, v, decay, rate in islice(batches, len(states.prompts)):
            out, end = original(q, k, v, g=decay, beta=rate, output_final_state=True, **options)
            rows.append(out.flatten(0, 1))
            ends.append(end)
        starts = (
            torch.split(torch.cat(ends)[states.record], [n for n, _ in states.responses]) if states.responses else ()
        )
        for start, (q, k, v, decay, rate) in zip(starts, batches, strict=True):
            out, _ = original(q, k, v, g=decay, beta=rate, initial_state=start, **options)
            rows.append(out.flatten(0, 1))
        return torch.cat(rows).index_select(0, states.place)[None], None

    return _known(rule, original)


def _batches(tokens: Tensor, place: Tensor, sizes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    """Tokens [T, ...] as batches [rows, longest, ...] of these sizes, zero elsewhere. No place is met twice, in
    neither direction: sums are deterministic."""
    counts = [rows * longest for rows, longest in sizes]
    padded = tokens.new_zeros(sum(counts), *tokens.shape[1:]).index_copy_(0, place, tokens)
    return [x.view(*size, *tokens.shape[1:]) for x, size in zip(torch.split(padded, counts), sizes, strict=True)]


def _tree(options: dict[str, Any]) -> tuple[Pack | None, dict[str, Any]]:
    """The tree among these keywords, and the others."""
    tree = next((v for v in options.values() if isinstance(v, Pack)), None)
    if tree is not None and tree.part is not None:
        raise ValueError("a state cannot be handed over to tokens that another rank has")
    return tree, {k: v for k, v in options.items() if not isinstance(v, Pack)}


def _known(function: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    vars(function)["of_sequences"] = original
    return function
