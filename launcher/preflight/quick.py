"""The quick checks: nodes, files, network. They open every run on a cluster."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dpeer.config import Config
from dpeer.config_sources import paths
from dpeer.errors import ClusterError
from dpeer.launcher.cluster import check_feasible
from dpeer.launcher.gpus import resolved_gpus
from dpeer.launcher.group import bundle, wanted
from dpeer.launcher.nvidia import Card
from dpeer.launcher.preflight import judge
from dpeer.launcher.preflight.checklist import Checklist, Warn
from dpeer.launcher.preflight.nodes import Nodes
from dpeer.launcher.preflight.probe import source_hash, versions

if TYPE_CHECKING:
    from dpeer.estimate.saved_size import SavedSize

Say = Callable[[str], Any]


def check_quickly(config: Config) -> None:
    """The first phase of a run, connected already: the quick checks. ClusterError with all red lines."""
    checks = Checklist()
    quick(config, checks)
    console = Console(highlight=False)
    if warned := checks.named("warning"):
        checks.show(console, ("warning",))
    if not checks.ok:
        lines = [f"  {line.name}: {line.found} {line.fix}".rstrip() for line in checks.lines if line.status == "failed"]
        raise ClusterError("\n".join([checks.summary(), *lines]))
    if not warned:
        console.print(checks.summary(), soft_wrap=True)


def token(config: Config) -> str | Warn:
    """The cluster's secret, before anything connects with it. Raises a Fault when it cannot be read."""
    return "of this run alone" if is_private(config) else judge.token(os.environ)


def is_private(config: Config) -> bool:
    return not (config.cluster.address or os.environ.get("RAY_ADDRESS"))


def quick(config: Config, checks: Checklist, say: Say = lambda text: None) -> None:
    """Placement, versions, clocks, folders, room and network; seconds, and no model is loaded."""
    say("looking at the nodes")
    config = resolved_gpus(config)
    spec, private, folder = config.cluster, is_private(config), os.getcwd()
    output = config.output_dir.absolute()
    nodes = Nodes(bundle(spec), private=private)
    try:
        checks.check("nodes", judge.node_count, nodes.labels, spec.nodes)
        checks.check("placement", _placement, config)
        facts: dict[str, dict[str, Any]] = {}

        def answers() -> str:
            facts.update(nodes.ask("facts", folder, str(output), _inputs(config)))
            return f"{len(facts)} of {len(nodes.labels)} answer"

        if not checks.check("answers", answers):
            return

        def fact(name: str) -> dict[str, Any]:
            return {label: values[name] for label, values in facts.items()}

        checks.check("GPUs", judge.gpu_count, fact("gpus"), nodes.gpus, spec.gpus_per_worker)
        if spec.on_gpus:
            checks.check("GPU driver", judge.gpu_driver, fact("cards"))
            checks.check("GPU memory", judge.gpu_memory, fact("cards"))
            checks.check("GPU health", judge.gpu_health, fact("cards"))
        checks.check("precision", judge.precision, config)
        if not private:
            checks.check("packages", judge.same_versions, fact("versions"), versions())
            checks.check("code", judge.same_source, fact("source"), source_hash())
            checks.check("clocks", lambda: judge.clock_skew(nodes.skews()))
        checks.check("model and data files", judge.inputs_present, fact("missing"), fact("entered"), folder)
        if not private:
            checks.check("network", lambda: judge.network(nodes.cut()))
        _folders(checks, nodes, output, shared=not private)
        sizes: list[SavedSize] = []
        memory = _rank_memory(config, fact("cards"), fact("memory"))
        if checks.check("model size", lambda: _size(config, memory, sizes)):
            needed = sizes[0].disk(config.training.keep_checkpoints + (config.training.keep == "best"))
            checks.check("disk space", judge.disk_space, fact("free"), needed, bytes_in(config.run_dir), output)
            checks.check("host memory", judge.host_memory, fact("memory"), fact("available"), sizes[0].consolidation)
            if config.model.offload_activations:
                moved = _activations(config, len(facts), sizes[0])
                checks.check("host activations", judge.host_activations, fact("available"), moved)
    finally:
        nodes.close()


def _placement(config: Config) -> str:
    roles, each = wanted(config), bundle(config.cluster)
    check_feasible(roles, each)
    return " + ".join(f"{n} {role}" for role, n in roles.items()) + f" workers of {each} fit"


def _inputs(config: Config) -> list[str]:
    """Files and folders of the recipe that exist here; the rest are hub ids, or told by what reads them."""
    data = config.data
    given = [
        config.model.path,
        config.model.reference_path,
        config.model.start and config.model.start.path,
        config.model.chat_template,
        *paths(data.train),
        *paths(data.heldout),
        *paths(data.dual),
    ]
    return [path for path in given if path and Path(path).exists()]


def _folders(checks: Checklist, nodes: Nodes, output: Path, *, shared: bool) -> None:
    """Every node leaves a file in one folder, then looks for those of the others."""
    canary = output / f".preflight-{uuid.uuid4().hex[:12]}"
    failures: dict[str, str | None] = {}
    names = {label: f"{i}" for i, label in enumerate(nodes.labels)}

    def write() -> str:
        try:
            canary.mkdir(parents=True)
        except OSError as error:
            failures["the driver"] = error.strerror
        else:
            (canary / "driver").touch()
            failures.update(nodes.ask_each("write", {label: (str(canary), name) for label, name in names.items()}))
        return judge.writable(failures, output)

    def look() -> str:
        label_of = {name: label for label, name in names.items()} | {"driver": "the driver"}
        unseen = nodes.ask("unseen", str(canary), list(label_of))
        return judge.shared({a: [label_of[name] for name in others] for a, others in unseen.items()}, output)

    try:
        if checks.check("output folder", write) and shared:
            checks.check("shared folder", look)
    finally:
        shutil.rmtree(canary, ignore_errors=True)


def _rank_memory(config: Config, cards: dict[str, list[Card]], hosts: dict[str, int]) -> float:
    """Bytes of the smallest GPU, or the ranks' share of the smallest host's memory."""
    known = [card.total * 2**20 for found in cards.values() for card in found if card.total]
    if config.cluster.on_gpus and known:
        return min(known)
    return min(hosts.values()) / config.cluster.policy_workers


def _activations(config: Config, nodes: int, size: SavedSize) -> int:
    """Bytes of full packs of a node's ranks."""
    ranks, team = -(-config.cluster.policy_workers // nodes), config.training.sequence_parallel
    return int(ranks / (ranks if team == "auto" else team) * size.activations)


def _size(config: Config, memory: float, sizes: list[SavedSize]) -> str:
    from dpeer.estimate.saved_size import saved_size  # transformers: seconds
    from dpeer.training.choice import one_choice

    engine = one_choice(config, config.cluster.policy_workers, memory).name
    sizes.append(saved_size(config, frozen=engine == "deepspeed"))
    size = sizes[0]
    frozen = f"; {size.towers / 1e6:,.1f} M of towers frozen, not loaded" if size.towers else ""
    return f"{size.parameters / 1e6:,.1f} M parameters, {size.trained / 1e6:,.1f} M trained{frozen}"


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("**/*") if path.is_file())
