"""The engine for models that every rank holds whole: plain modules, fp32 master weights, one sum of gradients a step.

Trained parameters lie in a few flat fp32 tensors (`Flat`), one after another. The optimizer updates these, all ranks
alike; where the model computes in fp32 its parameters are views of them, else copies. Gradients of bf16 models are
added up in fp32 as they arrive. What is saved is by name and whole: any number of ranks goes on from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dpeer.config import Config
from dpeer.data.packing import Pack
from dpeer.errors import CheckpointError
from dpeer.files import follow_umask
from dpeer.model.lm import build_lm
from dpeer.model.tree_lm import TreeLM
from dpeer.training.engine import Engine, build_optimizer
from dpeer.training.snapshot import Snapshot
from dpeer.training.world import World
from dpeer.training.zero3 import release

FOLDER = "plain"
RNG, STEPS = "torch_rng", "steps"
FLAT = 2**28  # elements: 1 GiB of each state; what a collective or a kernel takes at once
MOMENTS = {"first moments": "exp_avg", "second moments": "exp_avg_sq"}


class Flat:
    """Parameters, one after another in one fp32 master weight [N] with one gradient [N]."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        self.names, self.parameters = [name for name, _ in named], [p for _, p in named]
        self.sizes = [p.numel() for p in self.parameters]
        self.master = nn.Parameter(torch.cat([p.detach().flatten().float() for p in self.parameters]))
        self.master.grad = torch.zeros_like(self.master)
        self.hooks: list[Any] = []
        for p, weight, gradient in zip(self.parameters, self.views(self.master), self.views(self.grad), strict=True):
            if p.dtype == torch.float32:
                p.data, p.grad = weight, gradient
            else:
                self.hooks.append(p.register_post_accumulate_grad_hook(_Into(gradient)))  # type: ignore[no-untyped-call]

    @property
    def grad(self) -> Tensor:
        assert self.master.grad is not None
        return self.master.grad

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parameters' parts of a tensor [N], in their shapes."""
        parts = torch.split(flat.detach(), self.sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def by_name(self, flat: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.views(flat), strict=True))

    @torch.no_grad()
    def publish(self) -> None:
        """Have the model compute with the master weights as they are now."""
        if self.hooks:
            torch._foreach_copy_([p.data for p in self.parameters], self.views(self.master))

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        for p in (*self.parameters, self.master):
            p.data, p.grad = torch.empty(0, dtype=p.dtype), None


class _Into:
    """Adds an arriving gradient to its place in fp32, and drops it."""

    def __init__(self, gradient: Tensor) -> None:
        self.gradient = gradient

    def __call__(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.gradient.add_(parameter.grad)
        parameter.grad = None


class Plain:
    """One rank around the policy, or around the frozen reference."""

    name, sharded = "plain", False

    def __init__(self, config: Config, world: World, *, reference: bool = False) -> None:
        self.world, self.clip = world, config.training.optimizer.grad_clip
        with world.device:  # straight to where it stays: all ranks of a host at once would fill its memory
            lm = build_lm(config.model, config.seed, reference=reference)
        self.module: TreeLM = lm.to(world.device)
        self.module.team = world.team
        self.flats = [Flat(named) for named in _grouped(self.module)]
        masters = [flat.master for flat in self.flats]
        for flat in self.flats if world.size > 1 else ():
            dist.broadcast(flat.master.data, 0)  # adapters are drawn, and other GPUs draw other numbers
            flat.publish()
        self.optimizer = build_optimizer(masters, config.training.optimizer) if masters else None
        self.module.train(not reference)

    def __call__(self, pack: Pack, greedy: bool = False) -> Tensor:
        values: Tensor = self.module(pack, greedy=greedy)
        return values

    def train(self) -> None:
        self.module.train()

    def eval(self) -> None:
        self.module.eval()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        torch.autograd.backward(loss)

    @torch.no_grad()
    def step(self, lr: float) -> float:
        assert self.optimizer is not None
        gradients = [flat.grad for flat in self.flats]
        if self.world.size > 1:
            for gradient in gradients:
                dist.all_reduce(gradient)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        if self.clip:
            torch._foreach_mul_(gradients, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        for flat in self.flats:
            flat.grad.zero_()
            flat.publish()
        return float(norm)

    def held(self) -> dict[str, list[Tensor]]:
        states = self._states()
        moments = {name: [state[key] for state in states if key in state] for name, key in MOMENTS.items()}
        return {"master weights": [flat.master.detach() for flat in self.flats]} | moments

    def snapshot(self, folder: Path) -> Snapshot:
        parts = []
        for i, (flat, state) in enumerate(zip(self.flats, self._states(), strict=True)):
            kept = {"weights": flat.master} | {key: state[key] for key in MOMENTS.values() if key in state}
            tensors = {
                f"{key}/{name}": view for key, whole in kept.items() for name, view in flat.by_name(whole).items()
            }
            tensors[RNG], tensors[STEPS] = torch.get_rng_state(), torch.tensor(int(state.get("step", 0)))
            parts.append((tensors, folder / FOLDER / f"{i:04d}.safetensors"))
        return Snapshot(() if self.world.rank else tuple(parts), _dump)

    @torch.no_grad()
    def load(self, folder: Path, world_size: int) -> None:
        assert self.optimizer is not None
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(p, "pt")) for p in sorted((folder / FOLDER).glob("*.safetensors"))]
            where = {key: file for file in files for key in file.keys()}  # noqa: SIM118
            self._refuse_other(folder / FOLDER, where)
            steps = int(where[STEPS].get_tensor(STEPS))
            for flat in self.flats:
                _read(flat.by_name(flat.master), "weights", where)
                flat.publish()
                state = self.optimizer.state[flat.master]
                state.clear()
                if steps:
                    # A tensor on the CPU would be refused by the fused kernel on a GPU.
                    state["step"] = torch.tensor(float(steps), device=flat.master.device)
                    for key in MOMENTS.values():
                        state[key] = torch.empty_like(flat.master)
                        _read(flat.by_name(state[key]), key, where)
            torch.set_rng_state(where[RNG].get_tensor(RNG))

    def _refuse_other(self, folder: Path, where: dict[str, Any]) -> None:
        """CheckpointError unless the files hold exactly what this model trains."""
        saved = {k: tuple(file.get_slice(k).get_shape()) for k, file in where.items() if k.startswith("weights/")}
        mine = {f"weights/{n}": tuple(v.shape) for flat in self.flats for n, v in flat.by_name(flat.master).items()}
        if other := sorted(key for key in saved.keys() | mine.keys() if saved.get(key) != mine.get(key)):
            raise CheckpointError(
                f"{folder}: holds other trained parameters than this model ({len(other)} differ, among them "
                f"{', '.join(key.removeprefix('weights/') for key in other[:3])}). Restore model.path and model.lora."
            )

    def whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
        return nullcontext()

    def blank(self) -> None:
        for flat in self.flats:
            flat.master.data.zero_()
            flat.publish()

    def close(self) -> None:
        for flat in self.flats:
            flat.close()
        if self.optimizer:
            self.optimizer.state.clear()
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            tensor.data = torch.empty(0, dtype=tensor.dtype)
        self.flats.clear()
        self.optimizer = None
        del self.module
        release(self.world)

    def _states(self) -> list[dict[str, Any]]:
        """The optimizer's state of each flat; empty before the first step."""
        assert self.optimizer is not None
        return [self.optimizer.state.get(flat.master, {}) for flat in self.flats]


def _grouped(module: nn.Module) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Trained parameters by name, in groups of at most FLAT elements; a larger one is a group of its own."""
    group: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if group and size + parameter.numel() > FLAT:
            yield group
            group, size = [], 0
        group.append((name, parameter))
        size += parameter.numel()
    if group:
        yield group


def _dump(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path)
    follow_umask(path)  # safetensors writes for its owner alone


def _read(into: dict[str, Tensor], key: str, where: dict[str, Any]) -> None:
    for name, view in into.items():
        view.copy_(where[f"{key}/{name}"].get_tensor(f"{key}/{name}"))


_engine: type[Engine] = Plain
