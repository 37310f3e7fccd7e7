"""What a step costs on one rank: seconds by phase, arithmetic, memory. Nothing here is deterministic or waits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dpeer.config import Config
from dpeer.data.tokenize import TokenTree
from dpeer.model.families import attending_layers, causal_lm, family_of, idle_parameters, state_size
from dpeer.model.flops import Lengths, forward_flops, model_flops, training_flops, typical
from dpeer.model.lm import DTYPES
from dpeer.model.tree_lm import TreeLM
from dpeer.training.cost import PHASES, StepCost


@dataclass(frozen=True)
class LiveCounts:
    """`model.flops.Counts` of a model that is loaded, also where ZeRO-3 holds a shard of it only."""

    total: int
    idle: int
    layers: int
    embedding: int
    head: int
    tied: bool
    attention_width: int
    attending: int
    state: int

    @classmethod
    def of(cls, model: nn.Module) -> LiveCounts:
        causal: Any = causal_lm(model)
        family = family_of(causal.config)
        embedding, head = causal.get_input_embeddings().weight, causal.get_output_embeddings().weight
        return cls(
            total=sum(_elements(p) for p in model.parameters()),
            idle=idle_parameters(causal.config, (getattr(p, "ds_shape", p.shape) for p in model.parameters())),
            layers=len(family.decoder_layers(model)),
            embedding=_elements(embedding),
            head=_elements(head),
            tied=embedding is head,
            attention_width=family.query_width(causal.config),
            attending=attending_layers(causal.config),
            state=state_size(causal.config),
        )


def _elements(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


class Clock:
    """Seconds by phase. On a GPU between events in its stream, so that reading them is the only wait."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        self.marks = [("", self._now())]

    def mark(self, phase: str) -> None:
        """`phase` has lasted since the mark before."""
        self.marks.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        if self.gpu:
            self.marks[-1][1].synchronize()
        total = dict.fromkeys(PHASES, 0.0)
        for (_, begin), (phase, end) in zip(self.marks, self.marks[1:], strict=False):
            total[phase] += begin.elapsed_time(end) / 1000 if self.gpu else end - begin
        return total

    def _now(self) -> Any:
        if not self.gpu:
            return time.perf_counter()
        event = _event()
        event.record()
        return event


class Meter:
    def __init__(self, config: Config, lm: TreeLM, device: torch.device) -> None:
        self.config, self.layout, self.device, self.clock = config, lm.layout, device, Clock(device)
        self.counts = LiveCounts.of(lm.model)
        self.ceiling = ceiling(device, DTYPES[config.model.dtype])
        self.largest = 0

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.largest = 0
        self.clock.start()

    def mark(self, phase: str, tokens: int = 0) -> None:
        self.largest = max(self.largest, tokens)
        self.clock.mark(phase)

    def cost(self, trained: Sequence[TokenTree], measured: Sequence[TokenTree]) -> StepCost:
        """Of a step over the global batch `trained` and the dual split's `measured`."""
        spec, counts = self.config.model, self.counts
        records, scored = ([Lengths.of(t, self.layout) for t in trees] for trees in (trained, measured))
        extra = sum(forward_flops(counts, scored))
        if self.config.cluster.reference == "colocated" and self.config.objective.kind == "preference":
            extra += sum(forward_flops(counts, [*records, *scored]))
        if spec.router_aux_loss:
            extra += sum(forward_flops(counts, records))
        prompt, responses = typical(records)
        gpu = self.device.type == "cuda"
        return {
            "seconds": self.clock.seconds(),
            "flops": training_flops(spec, counts, records) + extra,
            "model_flops": model_flops(spec, counts, records) + extra,
            "ceiling": self.ceiling,
            "largest_pack": self.largest,
            "prompt_tokens": prompt,
            "response_tokens": responses[0],
            "responses": len(responses),
            "memory_allocated": torch.cuda.max_memory_allocated(self.device) if gpu else None,
            "memory_reserved": torch.cuda.max_memory_reserved(self.device) if gpu else None,
            "writing": False,
        }


def ceiling(device: torch.device, dtype: torch.dtype, size: int = 8192, rounds: int = 10) -> float | None:
    """FLOP/s of `size`^3 matrix products of random numbers, after three to warm up; None without a GPU."""
    if device.type != "cuda":
        return None
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    begin, end = _event(), _event()
    for i in range(3 + rounds):
        if i == 3:
            begin.record()
        torch.mm(a, b)
    end.record()
    end.synchronize()
    seconds = begin.elapsed_time(end) / 1000 / rounds
    del a, b
    torch.cuda.empty_cache()
    return float(2 * size**3 / seconds)


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
