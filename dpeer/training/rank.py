"""One rank of the policy group with its data and its source of reference log-probs; driven by Ray or by torchrun."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpeer.config import Config
from dpeer.data.layout import Layout, costs
from dpeer.data.token_store import StoredTrees
from dpeer.errors import CheckpointError
from dpeer.heldout_file import Heldout, write_heldout
from dpeer.model.lm import SEQUENCES, attention_kernel, layer_kernels, load_tokenizer
from dpeer.objective.rows import CertificateFile
from dpeer.training import checkpoint
from dpeer.training.calls import Exported, PolicyCalls, ReferenceCalls, References, SaveCost, Scores
from dpeer.training.choice import refuse_team
from dpeer.training.cost import StepCost
from dpeer.training.environment import set_determinism
from dpeer.training.export import export
from dpeer.training.faults import kind, out_of_memory
from dpeer.training.heldout import certificate, heldout_edges, proven
from dpeer.training.keepsake import remembered
from dpeer.training.numerics import numerics
from dpeer.training.policy import Policy
from dpeer.training.prepare import Prepared, prepare
from dpeer.training.pulse import Pulse
from dpeer.training.reference import CachedScores, Reference, cache_path, read_cache
from dpeer.training.samples import spread
from dpeer.training.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def memory_explained(
    config: Config, prepared: Prepared, phase: Callable[[], str], layout: Layout = "tree"
) -> Iterator[None]:
    """OutOfMemory, which says what to lower, for whatever way in which a GPU says that its memory is full."""
    try:
        yield
    except RuntimeError as error:
        if kind(error) != "memory":
            raise
        longest = max(int(costs(data.trees, layout).max()) for data in prepared.splits.values())
        raise out_of_memory(error, config, phase(), longest) from error


def carry_out(rank: TrainingRank | ReferenceRank, method: str, *args: Any, **options: Any) -> Any:
    """A call of a rank by the method's name."""

    def phase() -> str:
        return rank.pulse.phase if rank.pulse.beating else method.replace("_", " ")

    with memory_explained(rank.config, rank.prepared, phase, rank.layout):
        return getattr(rank, method)(*args, **options)


def layout_in(means: Mapping[str, Any]) -> Layout:
    return "sequences" if means["attention"] == SEQUENCES else "tree"


def means(config: Config, world: World) -> dict[str, Any]:
    """Put this process's kernels in place, before a model is built; and what it computes with."""
    return {
        "attention": attention_kernel(config.model, world.device),
        "kernels": layer_kernels(config.model, world.device),
        "numerics": numerics(world.device),
        "sequence_parallel": config.training.sequence_parallel,
    }


class TrainingRank:
    """Every method is collective. References come from the caller (mode `workers`), or from here (the other modes)."""

    def __init__(self, config: Config, world: World, prepared: Prepared | None = None) -> None:
        set_determinism(config.training.deterministic)
        self.prepared = prepared or prepare(config)
        self.config = config
        refuse_team(config, world.size)
        self.means = means(config, world)
        self.layout = layout_in(self.means)
        with memory_explained(config, self.prepared, lambda: "loading the model", self.layout):
            self.policy = Policy(config, self.prepared, world)
            colocated = config.cluster.reference == "colocated"
            beneath = self.policy.engine if config.reference_beneath else None
            self.reference = Reference(config, world, self.policy.pulse, beneath=beneath) if colocated else None
        self.cached: dict[str, CachedScores] = {}
        self.saving: checkpoint.Save | None = None

    def _dearer(self) -> str:
        """What separate sequences cost, of the first records."""
        if self.policy.layout == "tree":
            return ""
        trees = self.prepared.train.trees[:1000]
        ratio = costs(trees, "sequences").sum() / costs(trees, "tree").sum()
        return f"; separate sequences have {ratio:.1f} times the tokens of trees"

    @property
    def summary(self) -> dict[str, Any]:
        """Steps of the run, the facts that must not change when it goes on, what this rank computes with, and how the
        sources were read."""
        choice = self.policy.choice
        return {
            "steps": self.policy.steps,
            "facts": self.prepared.facts,
            "means": {"engine": choice.name} | self.means | remembered(self.prepared),
            "host": socket.gethostname(),
            "why": choice.why + self._dearer(),
            "reading": self.prepared.reading,
            "warnings": self.prepared.warnings,
        }

    @property
    def pulse(self) -> Pulse:
        return self.policy.pulse

    def read_cache(self) -> None:
        """Not collective in itself: reference log-probs of all records, by split."""
        for name, data in self.prepared.splits.items():
            path = cache_path(self.config, data)
            scores = read_cache(path, data)
            if scores is None:
                raise CheckpointError(
                    f"reference cache {path}: this worker does not see it. output_dir must lie on a file system that "
                    "the driver and all workers share."
                )
            self.cached[name] = scores

    def train_step(self, references: References | None = None) -> dict[str, Any]:
        self.policy.meter.start()
        if references is None and self.config.objective.kind == "preference":
            references = self._own_references()
            self.policy.meter.mark("reference")
        return self.policy.train_step(references)

    def timed_step(self, references: References | None = None) -> tuple[dict[str, Any], StepCost]:
        """One optimizer step: its ledger entry, and what it cost on this rank."""
        step = self.policy.step
        entry = self.train_step(references)
        trained, measured = (f(self.config, step) for f in (self.prepared.train_batch, self.prepared.dual_batch))
        writing = self.saving is not None and self.saving.writing
        return entry, self.policy.meter.cost(trained, measured) | {"writing": writing}

    def _own_references(self) -> References:
        prepared, step = self.prepared, self.policy.step
        if self.reference is None:
            values = [self.cached["train"][i] for i in prepared.train_places(self.config, step)]
            values += [self.cached["dual"][i] for i in prepared.dual_places(self.config, step)]
            return dict(enumerate(values))
        trained, measured = prepared.train_batch(self.config, step), prepared.dual_batch(self.config, step)
        # The policy's own plan: this rank scores just what it trains on.
        scores = self.reference.score(trained, everyone=True)
        if measured:
            scores |= {len(trained) + i: v for i, v in self.reference.score(measured, everyone=True).items()}
        return scores

    def score_train(self, start: int, stop: int) -> Scores:
        """Scores by the policy of the training records [start, stop), keyed from 0."""
        return self.policy.score(self.prepared.train.trees[start:stop])

    def score_train_reference(self, start: int, stop: int) -> Scores:
        assert self.reference is not None
        return self.reference.score(self.prepared.train.trees[start:stop])

    def score_start(self, name: str, start: int, stop: int) -> Scores:
        """Scores of the records [start, stop) of a split, keyed from 0, by the reference that the policy is before its
        first step."""
        if self.policy.step or not self.config.model.reference_in_policy:
            raise AssertionError(f"a policy of {self.policy.step} steps is asked for the reference's scores")
        here, pulse = self.policy.world, self.policy.pulse
        reference = Reference(self.config, here, pulse, beneath=self.policy.engine)
        return reference.score(self.prepared.splits[name].trees[start:stop])

    def score_heldout(self) -> Scores:
        return self.policy.score(self.prepared.heldout.trees) if self.prepared.heldout else {}

    def score_heldout_reference(self) -> Scores:
        assert self.reference is not None
        return self.reference.score(self.prepared.heldout.trees) if self.prepared.heldout else {}

    def cached_heldout(self) -> list[list[float]]:
        """Not collective: held-out reference log-probs from the cache."""
        held = self.prepared.heldout
        return list(read_cache(cache_path(self.config, held), held) or []) if held else []

    def score_dual(self) -> Scores:
        return self.policy.score(self.prepared.dual.trees) if self.prepared.dual else {}

    def score_dual_reference(self) -> Scores:
        assert self.reference is not None
        return self.reference.score(self.prepared.dual.trees) if self.prepared.dual else {}

    def cached_dual(self) -> list[list[float]]:
        """Not collective: reference log-probs of the dual split from the cache."""
        return list(self.cached["dual"])

    def proven(self, policy: list[list[float]], reference: list[list[float]], look: int) -> bool:
        """Not collective: whether these scores of the dual split prove every tolerance, at the k-th look."""
        assert self.prepared.dual is not None
        return proven(self.config, self.prepared.dual, policy, reference, self.policy.lagrangian.state, look)

    def sample(self) -> list[dict[str, str]]:
        """Collective: greedy replies to the same few prompts at each call, as text on rank 0, empty elsewhere."""
        trees = (self.prepared.dual or self.prepared.train).trees
        places = spread(range(len(trees)), self.config.training.sample_prompts)
        replies = self.policy.reply([trees[i] for i in places])
        if self.policy.world.rank:
            return []
        decode = self._tokenizer.decode
        texts = [str(decode(reply, skip_special_tokens=True)).strip() for reply in replies]
        assert isinstance(trees, StoredTrees)
        return [{"prompt": trees.question(i), "reply": text} for i, text in zip(places, texts, strict=True)]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.config.model.path, self.config.model.revision)

    def certificate(
        self, policy: list[list[float]], reference: list[list[float]], margins: Path
    ) -> CertificateFile | None:
        """Not collective: the verdicts from all held-out scores; writes the margins. None without held-out records."""
        data, dual = self.prepared.heldout, self.policy.lagrangian.state
        if data is None:
            return None
        edges = heldout_edges(self.config, data, policy, reference)
        write_heldout(margins, Heldout(edges, data.dimensions, dual.form))
        return certificate(self.config, data, policy, reference, dual)

    def save(self, folder: Path) -> SaveCost:
        return checkpoint.save(self.policy, folder, self.prepared.facts)

    def begin_save(self, folder: Path) -> None:
        self.saving = checkpoint.begin(self.policy, folder, self.prepared.facts, background=True)

    def finish_save(self) -> SaveCost:
        assert self.saving
        saving, self.saving = self.saving, None
        return checkpoint.finish(saving)

    def commit(self, temporary: Path, final: Path) -> None:
        """Not collective: make a checkpoint that all ranks have written the newest one."""
        checkpoint.commit(temporary, final)

    def load(self, folder: Path) -> int:
        """Restore and return the number of steps done."""
        checkpoint.load(self.policy, folder, self.prepared.facts)
        return self.policy.step

    def blank(self) -> None:
        """Zero the trained weights, so that a load that does nothing cannot pass for one."""
        self.policy.engine.blank()

    def export(self, folder: Path, adapter: bool = False) -> Exported:
        return export(self.policy, folder, adapter)

    def close(self) -> None:
        """Free the models, so that the process can serve another recipe; the object is of no further use."""
        if self.reference:
            self.reference.close()
        self.policy.close()


_policy: type[PolicyCalls] = TrainingRank


class ReferenceRank:
    """One rank of a separate reference group."""

    def __init__(self, config: Config, world: World) -> None:
        set_determinism(config.training.deterministic)
        self.prepared = prepare(config)
        self.config = config
        refuse_team(config, world.size, "cluster.reference_workers")
        self.means = means(config, world)
        self.layout = layout_in(self.means)
        with memory_explained(config, self.prepared, lambda: "loading the reference", self.layout):
            self.reference = Reference(config, world)

    @property
    def pulse(self) -> Pulse:
        return self.reference.pulse

    def close(self) -> None:
        """Free the model; the object is of no further use."""
        self.reference.close()

    def score_step(self, step: int) -> Scores:
        """References for what is scored in optimizer step `step` (0-based): training batch, then dual batch."""
        return self.reference.score(self.prepared.records_of(self.config, step))

    @property
    def summary(self) -> dict[str, Any]:
        return {"facts": self.prepared.facts, "means": self.means, "host": socket.gethostname()}

    def score_train(self, start: int, stop: int) -> Scores:
        """Scores of the training records [start, stop), keyed from 0."""
        return self.score_split("train", start, stop)

    def score_split(self, name: str, start: int, stop: int) -> Scores:
        """The same of a split."""
        return self.reference.score(self.prepared.splits[name].trees[start:stop])

    def score_dual(self) -> Scores:
        return self.reference.score(self.prepared.dual.trees) if self.prepared.dual else {}

    def score_heldout(self) -> Scores:
        return self.reference.score(self.prepared.heldout.trees) if self.prepared.heldout else {}


_reference: type[ReferenceCalls] = ReferenceRank
