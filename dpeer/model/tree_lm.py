"""The language model over packs: its forward maps a pack to the log-probability of each response."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpeer.data.layout import Layout, sequences
from dpeer.data.packing import Pack
from dpeer.model.families import backbone, causal_lm, logits_shape
from dpeer.model.logprob import PLAIN, Chunk, Shape, response_sums, token_logprobs
from dpeer.model.state import by_device, hand_over
from dpeer.model.team import ALONE, Team, total


class Head(nn.Module):
    """Reads the output weight inside its own forward, so that ZeRO-3 gathers it there and releases it early."""

    def __init__(self, output: nn.Linear, chunk: Chunk, shape: Shape = PLAIN) -> None:
        super().__init__()
        self._output = [output]  # in a list: the module is registered once, in the model
        self.chunk, self.shape = chunk, shape

    @property
    def weight(self) -> Tensor:
        return self._output[0].weight

    def forward(self, hidden: Tensor, targets: Tensor | None) -> Tensor:
        """Log-probability [N] of the targets after hidden states [N, H]; without targets the likeliest tokens [N]."""
        if targets is None:
            likeliest: Tensor = (hidden @ self._output[0].weight.T).argmax(-1)
            return likeliest
        return token_logprobs(hidden, self._output[0].weight, targets, self.chunk, self.shape)


class TreeLM(nn.Module):
    """A causal language model whose forward maps a pack to the log-probability of each of its responses."""

    def __init__(
        self, model: PreTrainedModel, head_chunk: Chunk = "auto", layout: Layout = "tree", routing: bool = False
    ) -> None:
        """routing: keep the routers' logits [T, E] by layer of the last forward pass in `router_logits`."""
        super().__init__()
        self.routing, self.router_logits = routing, tuple[Tensor, ...]()
        self.model = model  # a PreTrainedModel, or a PeftModel around one
        self.layout = layout
        self.team: Team = ALONE  # the ranks that share packs with this one
        (hand_over if layout == "tree" else by_device)(model)
        causal = causal_lm(model)
        self._backbone = [backbone(model)]
        if routing:  # as an argument it would reach attention, which takes no options
            self._backbone[0].config.output_router_logits = True
        self.head = Head(causal.get_output_embeddings(), head_chunk, logits_shape(causal.config.get_text_config()))

    def forward(self, pack: Pack, greedy: bool = False) -> Tensor:
        """Log-probability [R] in nats (fp64 sums of fp32 tokens) of the pack's responses, end-of-turn included.

        greedy: instead the likeliest token [R] in the place of each response's last. Of a pack that is cut every rank
        of the team gets the same.
        """
        hidden, part = self._hidden(pack), pack.part
        if greedy:
            ends = part.ends if part else pack.response_tokens.cumsum(0) - 1
            likeliest: Tensor = self.head(hidden[ends], None)
            return self._together(likeliest, part.row_response[ends], pack) if part else likeliest
        own = part or pack
        sums = response_sums(self.head(hidden, own.targets), own.row_response, len(pack.response_tokens))
        return total(sums, self.team) if part else sums

    def _hidden(self, pack: Pack) -> Tensor:
        """Last hidden states [N, H] at the pack's prediction rows."""
        if self.layout == "sequences":
            ids, rows = sequences(pack)
            return self._states(input_ids=ids).flatten(0, 1)[rows]
        own = pack.part or pack
        states = self._states(
            input_ids=own.input_ids,
            position_ids=own.position_ids,
            attention_mask=None,
            tree=pack,
            seq_idx=pack,  # the one keyword that some convolutions are handed
            **({"team": self.team} if pack.part else {}),
        )
        return states[0][own.rows]

    def _together(self, tokens: Tensor, responses: Tensor, pack: Pack) -> Tensor:
        """Tokens [R] of all responses from those that the ranks of the team have."""
        every = torch.zeros_like(pack.response_tokens)
        return self.team.total(every.index_copy_(0, responses, tokens))

    def _states(self, **inputs: Any) -> Tensor:
        output = self._backbone[0](**inputs, use_cache=False)
        if self.routing:
            self.router_logits = output.router_logits
        states: Tensor = output.last_hidden_state
        return states

    def without_adapters(self) -> AbstractContextManager[None]:
        """Inside, a model with LoRA adapters computes what the model does that they were added to."""
        disabled: Callable[[], AbstractContextManager[None]] = getattr(self.model, "disable_adapter", nullcontext)
        return disabled()
