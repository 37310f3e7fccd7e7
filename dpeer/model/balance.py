"""The loss that keeps experts evenly used (Switch Transformer, as transformers' `load_balancing_loss_func`).

Over the E experts: E x sum_e f_e p_e, where f_e is the share of tokens that are sent to expert e (its sum over e is the
number of experts that a token is sent to) and p_e the mean of the router's probability of e, both over tokens and
layers of the GLOBAL batch. A token counts as often as separate sequences hold it: a prompt once per response. f has no
gradient, so with f known beforehand the loss is a sum over tokens, and neither packs nor ranks change it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpeer.data.layout import Layout
from dpeer.data.packing import Pack
from dpeer.errors import ConfigError


def refuse_unbalanced(model: PreTrainedModel, path: str) -> None:
    """ConfigError for a model whose routers transformers balances in no such way, or that has none."""
    module: Any = sys.modules[type(model).__module__]
    if not hasattr(module, "load_balancing_loss_func") or not hasattr(model, "num_experts_per_tok"):
        raise ConfigError(
            f"model {path} (type '{model.config.model_type}'): model.router_aux_loss is given, but it has no routers "
            "that transformers balances by a loss. Leave it out."
        )


def occurrences(pack: Pack, layout: Layout) -> Tensor:
    """How many of the pack's separate sequences hold each token that is computed here: [T] as trees, [t] of a slice,
    else [R x L]; padding is in none. Nothing counts in a pack without samples. No value is read: a GPU's host does not
    wait."""
    device, counts = pack.input_ids.device, pack.response_tokens
    last = counts.cumsum(0) - 1  # the row that predicts a response's last token
    if layout == "sequences":
        lengths = pack.position_ids[0][pack.rows[last]] + 1
        held = (torch.arange(pack.longest, device=device)[None] < lengths[:, None]).flatten().double()
    else:
        held = torch.ones(pack.tokens, dtype=torch.float64, device=device)
        at = pack.rows[last - counts + 1]  # of each response, the prompt's last token
        responses = torch.zeros_like(held).index_add_(0, at, torch.ones_like(at, dtype=held.dtype))
        for s in pack.segments:
            if not s.prompt_length:
                held[s.start : s.start + s.length] = responses[s.start + s.length - 1]
        held = pack.part.of(held) if pack.part else held
    return held if pack.samples else torch.zeros_like(held)


def routed(logits: Sequence[Tensor], held: Tensor, chosen: int) -> Tensor:
    """[E + 1] fp64: tokens sent to each expert, over all layers, and tokens times layers. `logits` [T, E] by layer;
    `chosen`: experts of a token."""
    total: Tensor = torch.zeros(logits[0].shape[-1] + 1, dtype=torch.float64, device=held.device)
    for layer in logits:
        picked = layer.reshape(len(held), -1).softmax(-1, torch.float32).topk(chosen, dim=-1).indices
        total.index_add_(0, picked.flatten(), held.repeat_interleave(chosen))
        total[-1] += held.sum()
    return total


def balance(logits: Sequence[Tensor], held: Tensor, everywhere: Tensor) -> Tensor:
    """This pack's term of the loss, given `routed` summed over all packs of all ranks."""
    shares = (everywhere[:-1] / everywhere[-1]).float()
    weights = (held / everywhere[-1]).float()
    terms = [weights @ (layer.reshape(len(held), -1).softmax(-1, torch.float32) @ shares) for layer in logits]
    total: Tensor = len(shares) * torch.stack(terms).sum()
    return total
