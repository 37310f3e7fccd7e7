"""`dpeer new`: a recipe from a data set and a model, every choice with its reason beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import yaml

from dpeer.config import Certificate, Config
from dpeer.config_io import _put, _setting, load_config
from dpeer.config_sources import Map
from dpeer.data.faults import data_error
from dpeer.data.load import load, splits
from dpeer.data.order import edges
from dpeer.data.split import prompt_key
from dpeer.errors import ConfigError, DataError
from dpeer.files import write_text
from dpeer.objective.bounds import provable, records_for
from dpeer.yaml_dialect import Dumper

if TYPE_CHECKING:
    from dpeer.launcher.plan.inputs import GivenLengths

UNTRAINED = math.log(2)
"""Mean loss of an untrained model: a tolerance above it asks for nothing."""
STEP = 0.05
SHARES = (0.1, 0.2, 0.3, 0.4)
LEAST_DUAL = 8
"""Prompts of each dimension that move its multiplier."""
EPOCHS, LEAST_STEPS = 3, 100
"""Multipliers want at least so many steps to settle."""
BATCHES = (32, 16, 8, 4)
GPU_PACK, CPU_PACK = 8192, 2048
HOST_SHARE = 0.5
STATE_BYTES = 16
"""Per parameter in fp32: weights, gradients and two moments."""

Tree = dict[str, Any]
Comments = dict[str, str]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asks for. lora None: by memory. gpu: name in gpus.json; None: those of this machine."""

    data: str
    model: str
    name: str
    map: Map | None = None
    lora: bool | None = None
    tolerance: float = 0.5
    gpu: str | None = None
    gpus: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What data and model say. prompts: distinct ones per dimension; heldout: the same of a test split, if there is
    one. Lengths in tokens: longest is prompt + response, tree a record with all of its responses."""

    records: int
    prompts: Mapping[str, int]
    heldout: Mapping[str, int] | None
    longest: int
    tree: int
    typical: tuple[int, int, int]
    """Prompt, response and number of rejects of a record, medians."""
    positions: int | None
    parameters: int


@dataclass(frozen=True, slots=True)
class Mode:
    """How the model is trained, and why."""

    lora: bool
    recompute: bool
    gpus: int
    why: str


def new(wish: Wish, path: Path, overrides: Sequence[str] = ()) -> Config:
    """Write the recipe and return its config. ConfigError: the file exists, or an override is no setting."""
    if path.exists():
        raise ConfigError(f"{path} is there already and is not overwritten; give another name with --output")
    facts = read(wish, overrides)
    mode = choose_mode(wish, facts)
    tree, comments = compose(wish, facts, mode)
    for override in overrides:
        setting = _setting(override)
        _put(tree, *setting)
        comments.pop(setting[0], None)
    title = [
        f"# Written by `dpeer new` for {wish.data} ({facts.records:,} records) and {wish.model}.",
        f"# Next: dpeer preflight {path}, then dpeer train {path}. All options: docs/api/config.md",
    ]
    write_text(path, "\n".join([*title, *lines(tree, comments)]) + "\n")
    try:
        return load_config(path)
    except ConfigError:
        path.unlink()
        raise


def read(wish: Wish, overrides: Sequence[str] = ()) -> Facts:
    """Data and model, looked at once, as the overrides say. Raises DataError for what training would refuse."""
    from dpeer.config import Model
    from dpeer.data.tokenize import audit
    from dpeer.estimate.footprint import count_weights
    from dpeer.launcher.plan.inputs import model_config
    from dpeer.launcher.recipe import HOW_TO_SET, config_of
    from dpeer.model.families import refuse_unsupported
    from dpeer.model.shape import model_facts
    from dpeer.model.towers import text_part
    from dpeer.model.words import options_of, tokenizer_of

    config = config_of(wish.data, wish.model, wish.map, overrides)
    model, columns = Model(path=config.model.path, revision=config.model.revision), config.data.map
    data, known = load(wish.data, map=columns), model_facts(model.path, model.revision)
    trees, faults = audit(data, tokenizer_of(config), options_of(config), known.media if known else frozenset())
    if faults:
        raise DataError(f"{data_error(wish.data, faults)}\n{HOW_TO_SET}")
    shape = text_part(model_config(model, None)[0], model.path)
    refuse_unsupported(shape, model.path)
    tested = "test" in splits(wish.data)
    heldout = load(wish.data, "test", data.dimensions, columns) if tested else None
    responses = [len(r) for t in trees for r in t.responses]
    return Facts(
        records=len(data.records),
        prompts=_prompts(data.records, data.dimensions),
        heldout=_prompts(heldout.records, data.dimensions) if heldout else None,
        longest=max(t.longest for t in trees),
        tree=max(len(t.prompt) + sum(map(len, t.responses)) for t in trees),
        typical=(
            round(median(len(t.prompt) for t in trees)),
            round(median(responses)),
            round(median(len(t.responses) - 1 for t in trees)),
        ),
        positions=getattr(shape, "max_position_embeddings", None),
        parameters=count_weights(model, shape).total,
    )


def _prompts(records: Sequence[Any], dimensions: Sequence[str]) -> dict[str, int]:
    asked: dict[str, set[str]] = {d: set() for d in dimensions}
    for record in records:
        for edge in edges(record):
            asked[edge.dimension].add(prompt_key(record))
    return {d: len(prompts) for d, prompts in asked.items()}


def choose_mode(wish: Wish, facts: Facts) -> Mode:
    """All weights where they fit, else adapters; recomputed activations only where they are needed to fit."""
    memory, gpus, card = _cards(wish)
    if not gpus:
        bytes_here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        fits = facts.parameters * STATE_BYTES <= HOST_SHARE * bytes_here
        lora = not fits if wish.lora is None else wish.lora
        return Mode(lora, False, 0, "no GPU here: trains on the CPU" if wish.lora is None else "as asked")
    for lora, recompute in ((False, False), (False, True), (True, False), (True, True)):
        if wish.lora in (None, lora) and _fits(wish, facts, lora, recompute, memory, gpus):
            how = "adapters: all weights do not fit" if lora and wish.lora is None else "fits"
            return Mode(lora, recompute, gpus, f"{how} {gpus} x {card}")
    raise ConfigError(
        f"{wish.model} does not fit {gpus} x {card}{' with all weights' if wish.lora is False else ''}: take a smaller "
        "model or more GPUs (--gpus)"
        + (", or adapters (--lora)." if wish.lora is False else ". `dpeer plan` shows what a recipe needs.")
    )


def _cards(wish: Wish) -> tuple[float, int, str]:
    """GiB of one GPU, how many, and their name: as asked, else those of this machine; none: (0, 0, "")."""
    from dpeer.launcher.nvidia import cards
    from dpeer.launcher.plan.inputs import gpu

    if wish.gpus == 0:
        return 0.0, 0, ""
    if wish.gpu:
        return gpu(wish.gpu).memory_gib, wish.gpus or 1, wish.gpu
    here = [card for card in cards() if card.total]
    if not here:
        return 0.0, 0, ""
    return min(card.total or 0 for card in here) / 1024, wish.gpus or len(here), here[0].name


def _fits(wish: Wish, facts: Facts, lora: bool, recompute: bool, memory: float, gpus: int) -> bool:
    from dpeer.launcher.plan.inputs import GivenLengths
    from dpeer.launcher.plan.planning import Request, make_plan
    from dpeer.launcher.recipe import RECIPES

    prompt, response, rejects = facts.typical
    lengths: GivenLengths = GivenLengths(facts.records, max(1, prompt), max(2, response), max(1, rejects))
    overrides = (
        f"model.path={wish.model}",
        f"model.lora={'{rank: 16}' if lora else 'null'}",
        f"model.gradient_checkpointing={str(recompute).lower()}",
        f"training.tokens_per_pack={max(GPU_PACK, facts.tree)}",
    )
    request = Request(
        RECIPES / "llama3_8b.yaml", overrides, 1, gpus, wish.gpu or "h100", gpu_memory=memory, lengths=lengths
    )
    return make_plan(request).fits_gpu


def heldout_share(prompts: Mapping[str, int], tolerance: float) -> float:
    """The smallest share that can prove the tolerance in every dimension in which the largest one can."""
    needed = _likely(tolerance)
    within = [n for n in prompts.values() if round(SHARES[-1] * n) >= needed]
    return next((s for s in SHARES if all(round(s * n) >= needed for n in within)), SHARES[-1])


def _likely(tolerance: float) -> float:
    """Held-out prompts with which half of the tolerance proves it; see `dpeer.estimate.support`."""
    level, bound = tolerance / 2, Certificate().bound
    return records_for(tolerance - level, level * min(1.0, bound - level), bound) or math.inf


def provable_tolerance(prompts: int, tolerance: float) -> float:
    """The tolerance, or where so few held-out prompts cannot prove it a larger one; inf where that asks for nothing."""
    certificate = Certificate()
    best = provable(prompts, certificate.bound, 1 - certificate.confidence)
    if best < tolerance:
        return tolerance
    larger = math.ceil((best + STEP) / STEP) * STEP
    return round(larger, 2) if larger < UNTRAINED else math.inf


def compose(wish: Wish, facts: Facts, mode: Mode) -> tuple[Tree, Comments]:
    """The recipe, and comments by dotted key."""
    held = None if facts.heldout else heldout_share(facts.prompts, wish.tolerance)
    rarest = min(n for n in facts.prompts.values() if n)
    dual = next((s for s in SHARES[:-1] if s * rarest >= LEAST_DUAL), SHARES[-2])
    train = round(facts.records * (1 - (held or 0)) * (1 - dual))
    batch = next((b for b in BATCHES if EPOCHS * train / b >= LEAST_STEPS), BATCHES[-1])
    steps = max(1, math.ceil(EPOCHS * train / batch))
    longest = min(facts.longest, facts.positions or facts.longest)
    room = max(64, 64 * math.ceil(longest / 64)) if longest == facts.longest else longest
    model: Tree = {"path": wish.model, "dtype": "bf16" if mode.gpus else "fp32"}
    comments: Comments = {"model.path": f"{facts.parameters / 1e6:,.1f} million parameters"}
    comments["cluster.policy_workers" if mode.gpus else "model.dtype"] = mode.why
    if mode.lora:
        model["lora"] = {"rank": 16, "alpha": 32}
        comments["model.lora"] = "low-rank adapters; leave this section out to train all weights"
    if mode.recompute:
        model["gradient_checkpointing"] = True
    data: Tree = {"train": wish.data}
    if wish.map is not None:
        data["map"] = wish.map.model_dump(mode="json", exclude_unset=True)
    if held:
        data["heldout"] = f"{held:.0%}"
        comments["data.heldout"] = "looked at once, after training, for the certificate"
    data |= {"dual": f"{dual:.0%}", "max_tokens": room}
    comments["data.dual"] = "moves the multipliers, never the policy"
    comments["data.max_tokens"] = f"the longest prompt + response has {facts.longest:,}"
    tolerances, notes = _tolerances(wish, facts, held)
    comments |= notes
    tree: Tree = {
        "name": wish.name,
        "model": model,
        "data": data,
        "objective": {"constraint": {"form": "threshold", "tolerance": tolerances}},
        "training": {
            "epochs": EPOCHS,
            "records_per_step": batch,
            "tokens_per_pack": max(GPU_PACK if mode.gpus else CPU_PACK, facts.tree),
            "checkpoint_every": max(5, math.ceil(steps / 4)),
        },
        "cluster": {"policy_workers": max(1, mode.gpus), "reference_workers": max(1, mode.gpus)},
    }
    comments["objective.constraint.tolerance"] = "mean loss per pair; 0.69 is the untrained model. See dpeer tolerance"
    comments["training.epochs"] = f"about {steps} steps over {train:,} records"
    return tree, comments


def _tolerances(wish: Wish, facts: Facts, held: float | None) -> tuple[dict[str, float], Comments]:
    found, comments = {}, {}
    for d, prompts in facts.prompts.items():
        if not prompts:
            continue
        out = round(held * prompts) if held else (facts.heldout or {}).get(d, 0)
        found[d] = provable_tolerance(out, wish.tolerance)
        note = f"{out:,} held-out prompts of {prompts + (0 if held else out):,}"
        if math.isinf(found[d]):
            note += ": too few to prove anything, so nothing is enforced"
        elif found[d] > wish.tolerance:
            note += f": too few to prove {wish.tolerance:g}"
        comments[f"objective.constraint.tolerance.{d}"] = note
    return found, comments


def lines(tree: Tree, comments: Comments, prefix: str = "", indent: str = "") -> Iterator[str]:
    """YAML of nested mappings, a comment beside each key that has one."""
    for key, value in tree.items():
        comment = comments.get(f"{prefix}{key}", "")
        beside = f"  # {' '.join(comment.split())}" if comment else ""
        if isinstance(value, dict) and value:
            yield f"{indent}{_scalar(key)}:{beside}"
            yield from lines(value, comments, f"{prefix}{key}.", f"{indent}  ")
        else:
            yield f"{indent}{_scalar(key)}: {_scalar(value)}{beside}"


def _scalar(value: object) -> str:
    text: str = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
