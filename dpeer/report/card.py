"""The model card: README.md of an exported model, with the front matter that model hubs read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dpeer.config_sources import paths
from dpeer.data.places import place
from dpeer.errors import DpeerError
from dpeer.escape import markdown
from dpeer.report.page import templates
from dpeer.report.run import Run, read_run
from dpeer.report.text import (
    constraint_form,
    edge_words,
    exact,
    exported_words,
    finding,
    interval,
    method_name,
    stop_words,
    subtitle,
)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DATA_FILES = (".csv", ".json", ".jsonl", ".parquet")


def model_card(run_dir: Path) -> str:
    """Markdown of the card. A run without certificate gets a card that says so.

    Raises:
        DpeerError: the run has no ledger, or its manifest does not name the base model.
    """
    run = read_run(run_dir)
    if not run.get("config.model.path"):
        raise DpeerError(
            f"{run_dir / 'manifest.json'} does not name the model that was trained, so no model card can be written. "
            "Restore the manifest, or train again."
        )
    model, data = run.get("config.model.path"), paths(run.get("config.data.train", "unknown"))
    card = templates(autoescape=False)
    card.filters["markdown"] = markdown
    return card.get_template("card.md.j2").render(
        front_matter=yaml.safe_dump(_front_matter(run, model, data), sort_keys=False, allow_unicode=True),
        name=run.get("config.name", "model"),
        base=_public_name(model),
        method=method_name(run),
        finding=finding(run),
        subtitle=subtitle(run),
        data="Trained on " + ", ".join(s if is_hub_id(place(s).path) else _public_name(s) for s in data),
        splits=list(_splits(run)),
        recipe=list(_recipe(run)),
        certificate=run.certificate,
        interval=interval,
        loader=_loader(run_dir / "export" / "config.json"),
    )  # fmt: skip


def is_hub_id(name: str) -> bool:
    """True for "owner/name" that is neither a data file nor a path on this machine."""
    return bool(HUB_ID.fullmatch(name)) and not name.endswith(DATA_FILES) and not Path(name).exists()


def _loader(config: Path) -> str:
    """transformers' class for the exported model: of one that sees or hears, not the one for text alone."""
    try:
        whole = "text_config" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        whole = False
    return "AutoModelForImageTextToText" if whole else "AutoModelForCausalLM"


def _public_name(name: str) -> str:
    """A hub id as it is; of a local path only the last part, so that the card gives no folder names away."""
    return name if is_hub_id(name) else Path(name).name


def _front_matter(run: Run, model: str, data: list[str]) -> dict[str, Any]:
    kind = ["sft"] if run.get("config.objective.kind") == "sft" else ["dpo", "preference-optimization"]
    tags = ["dpeer", *kind, *(["lagrangian"] if run.lagrangian else [])]
    base = {"base_model": model} if is_hub_id(model) else {}
    public = [name for source in data if is_hub_id(name := place(source).path)]
    datasets = {"datasets": public} if public else {}
    return {**base, "library_name": "transformers", "pipeline_tag": "text-generation", **datasets, "tags": tags}


def _splits(run: Run) -> Iterator[dict[str, Any]]:
    for key, name in (("train", "training"), ("dual", "dual (moves the multipliers)"), ("heldout", "held-out")):
        if split := run.get(f"data.{key}"):
            yield {
                "name": name,
                "records": f"{split.get('records', 0):,}",
                "edges": edge_words(split),
                "sha256": split.get("sha256", "unknown"),
            }


def _recipe(run: Run) -> Iterator[str]:
    """What was optimized, one line each."""
    setting = run.get("config.objective", {})
    if setting.get("kind") == "sft":
        yield "Maximum likelihood on golden responses; rejected responses are not used."
    else:
        yield f"Edge loss: {setting.get('loss', 'sigmoid')}, beta {setting.get('beta', 'unknown')}."
        if anchor := setting.get("golden_nll"):
            yield f"Anchor: negative log-likelihood of golden responses, weight {anchor:g}."
        primary = setting.get("primary", "uniform")
        words = ", ".join(f"{d} {w:g}" for d, w in primary.items()) if isinstance(primary, Mapping) else primary
        yield f"Primary weights: {markdown(words)}."
    if run.constraints:
        constraint = setting.get("constraint", {})
        form = constraint_form(run)
        yield f"Constraint form `{form.name}`: {form.meaning}."
        slack = f"; slack {constraint.get('slack', 0):g}" if form.uses_slack else ""
        yield f"Tolerance: {_tolerance_words(constraint.get('tolerance'))}{slack}."
        if run.lagrangian:
            dual = setting.get("dual", {})
            yield (
                f"Multipliers: controller `{dual.get('controller', 'ascent')}`, "
                f"step size {dual.get('eta', 'unknown')}, at most {dual.get('max', 'unknown')}."
            )
        else:
            yield "The constraints were measured, not enforced: all multipliers stayed 0."
    yield f"Weights trained: {_trained(run.get('config.model.lora'))}."
    batch = run.get("config.training.records_per_step", "an unknown number of")
    yield f"{len(run.ledger)} optimizer steps of {batch} records."
    if words := stop_words(run):
        yield words
    if words := exported_words(run):
        yield f"Exported and certified: {words}."


def _tolerance_words(tolerance: Any) -> str:
    if isinstance(tolerance, Mapping):
        return ", ".join(f"{markdown(d)} {_tolerance_words(value)}" for d, value in tolerance.items())
    return "none" if tolerance is None else exact(float(tolerance))


def _trained(adapter: Mapping[str, Any] | None) -> str:
    if not adapter:
        return "all"
    if adapter.get("path"):
        return f"LoRA adapters, which start from those of {markdown(adapter['path'])}"
    kind = "DoRA" if adapter.get("dora") else "LoRA"
    return f"{kind} adapters of rank {adapter.get('rank')}{', rank-stabilised' if adapter.get('rslora') else ''}"
