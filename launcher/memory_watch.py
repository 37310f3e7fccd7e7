"""Compares the GPU memory that training takes with what `dpeer plan` would have said of the same packs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from dpeer.config import Config
from dpeer.objective.rows import TimingRow

GIB = 2**30


class MemoryWatch:
    """Plans once, beside the training, when a first step has told its packs; speaks at most once.

    What only reports may not end a run: a plan that fails says nothing.
    """

    def __init__(self, config: Config, plan: Callable[[Config, TimingRow], float] | None = None) -> None:
        self.config, self.plan = config, plan or planned_tensors
        self.planned: Future[float] | None = None
        self.largest = 0
        self.spoken = False

    def warning(self, timing: TimingRow) -> str | None:
        """A message when tensors took more than planned for the largest pack so far; needs the plan to be there."""
        taken = timing["memory_allocated"]
        if taken is None or self.spoken:
            return None
        if self.planned is None or (self.planned.done() and timing["largest_pack"] > self.largest):
            self.largest = timing["largest_pack"]
            self.planned = _beside(lambda: self.plan(self.config, timing))
            return None
        if not self.planned.done() or self.planned.exception() or taken <= self.planned.result():
            return None
        self.spoken = True
        return (
            f"step {timing['step']}: tensors on a GPU took {taken / GIB:.1f} GiB, and `dpeer plan` expects at most "
            f"{self.planned.result() / GIB:.1f} GiB for packs of {self.largest} tokens. If memory runs out, lower "
            "training.tokens_per_pack; please report the model and these figures, because the plan is wrong for it."
        )


def _beside(work: Callable[[], float]) -> Future[float]:
    """Started in a thread that the end of the process does not wait for; at once where this process trains itself, as
    under torchrun: making a model sets the default dtype of the whole process."""
    import torch.distributed as dist

    future: Future[float] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    if dist.is_available() and dist.is_initialized():
        run()
    else:
        threading.Thread(target=run, daemon=True).start()
    return future


def planned_tensors(config: Config, timing: TimingRow) -> float:
    """Bytes of all tensors at the peak, "up to", for packs and records like those of a step."""
    import torch.distributed as dist

    from dpeer.estimate.footprint import count_activations, count_weights
    from dpeer.estimate.memory import Zero, per_gpu
    from dpeer.launcher.plan.inputs import model_config
    from dpeer.model.probe import layout_of
    from dpeer.training.choice import began_with
    from dpeer.training.engine import model_settings
    from dpeer.training.run_dir import RunDir

    shape, _ = model_config(config.model, None)
    weights = count_weights(config.model, shape)
    responses = (timing["response_tokens"],) * timing["responses"]
    layout = layout_of(shape, config.model.path, config.model.layout)
    team = int(RunDir(config.run_dir).read_manifest().get("sequence_parallel", 1))
    activations = count_activations(config.model, shape, timing["prompt_tokens"], responses, layout, team)
    zero = Zero.plain() if began_with(config) == "plain" else Zero.of(model_settings(config, shape, trained=True))
    ranks = dist.get_world_size() if dist.is_initialized() else config.cluster.policy_workers
    memory = per_gpu(config, weights, activations, zero, ranks, timing["largest_pack"])
    return sum(p.high for p in (*memory.resident, *memory.phases[memory.peak_phase]))
