"""The methods section of a paper, from what a run recorded: Markdown with citations for Pandoc, or LaTeX for natbib."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

import yaml
from jinja2 import ChainableUndefined
from markupsafe import Markup

from dpeer.config_sources import paths
from dpeer.data.places import place
from dpeer.escape import latex, markdown
from dpeer.report.card import is_hub_id
from dpeer.report.page import templates
from dpeer.report.run import Certified, Run
from dpeer.report.text import (
    certified_words,
    constraint_form,
    exact,
    exported_words,
    listing,
    number,
    relaxed_words,
    stop_words,
)

Medium = Literal["md", "tex"]
REFERENCES = Path(__file__).with_name("references.yaml")
BREAK = "\x1e"
"""Between paragraphs of a template, whose own line breaks mean nothing."""
WIDTH = 110


class Unknown(ChainableUndefined):
    """What a damaged or older manifest does not say; never a default in its place."""

    def __str__(self) -> str:
        return "unknown"


@dataclass
class Writer:
    """Text of one medium; remembers what it cites."""

    medium: Medium
    cited: dict[str, None] = field(default_factory=dict)

    def write(self, template: str, *packages: str, **values: Any) -> str:
        """A template of sections, in which `h` makes a heading, `cite` a citation, and `q` guards a name from data."""
        made = templates(*packages, autoescape=False)
        made.undefined, made.trim_blocks = Unknown, False
        made.filters |= {"q": self.name, "listing": listing}
        made.globals |= {"h": self.heading, "cite": self.cite}
        text = made.get_template(template).render(**values)
        parts = [" ".join(part.split()) for part in self._spelt(text).split(BREAK)]
        return "\n\n".join(fill(part, WIDTH, break_long_words=False) for part in parts if part) + "\n"

    def _spelt(self, text: str) -> str:
        return re.sub(r"[ \u00a0]%", r"\\,\\%", text) if self.medium == "tex" else text

    def heading(self, title: str) -> str:
        shown = rf"\paragraph{{{title}.}}" if self.medium == "tex" else f"## {title}"
        return Markup(BREAK + shown + BREAK)  # of ours: names from data lose control characters

    def title(self, name: str) -> str:
        return f"\\section*{{{self.name(name)}}}\n\n" if self.medium == "tex" else f"# {self.name(name)}\n\n"

    def cite(self, *keys: str) -> str:
        known = references()
        self.cited |= dict.fromkeys(key for key in keys if known[key])
        return rf"\citep{{{','.join(keys)}}}" if self.medium == "tex" else f"[{'; '.join(f'@{key}' for key in keys)}]"

    def name(self, text: object) -> str:
        return latex(text) if self.medium == "tex" else markdown(text)

    def bibliography(self) -> str:
        """BibTeX of all that was cited, by key."""
        return "\n".join(_bibtex(key, references()[key]) for key in sorted(self.cited))


def references() -> dict[str, dict[str, str]]:
    """Works by key, each with its BibTeX fields, `type` among them."""
    known: dict[str, dict[str, str]] = yaml.safe_load(REFERENCES.read_text(encoding="utf-8"))
    return known


def _bibtex(key: str, work: Mapping[str, str]) -> str:
    fields = ",\n".join(f"  {name} = {{{value}}}" for name, value in work.items() if name != "type")
    return f"@{work['type']}{{{key},\n{fields}\n}}\n"


def training_methods(run: Run, writer: Writer) -> str:
    """What one run did and what its certificate says, in the words and numbers of a methods section."""
    setting, training = run.get("config.objective", {}), run.get("config.training", {})
    return writer.write(
        "methods.j2",
        run=run,
        get=run.get,
        model=_public(run.get("config.model.path", "an unnamed model")),
        sources=[_public(source) for source in paths(run.get("config.data.train", "unknown"))],
        splits=list(_splits(run)),
        setting=setting,
        sft=setting.get("kind") == "sft",
        reference=_public(reference) if (reference := run.get("config.model.reference_path")) else "",
        dual_split=list(_dual_split(run)),
        weights=_weights(setting.get("primary", "uniform"), writer.name),
        form=constraint_form(run) if run.constraints else None,
        paired=any(" over " in name for name in run.constraints) and setting["constraint"]["form"] == "balance",
        tolerance=_tolerances(setting.get("constraint", {}).get("tolerance"), writer.name),
        enforced=run.lagrangian,
        dual=setting.get("dual", {}),
        below=_below(run),
        relaxes=run.lagrangian and not constraint_form(run).simplex and math.isfinite(_price(run)),
        relaxed=relaxed_words(run),
        training=training,
        optimizer=training.get("optimizer", {}),
        steps=len(run.ledger),
        trained=_trained(run),
        stopped=stop_words(run),
        kept=exported_words(run),
        earlier=certified_words(run.certificate) if run.certificate else "",
        retold=run.get("config.objective.certificate.tolerance") is not None,
        certificate=run.certificate,
        verdicts=list(_verdicts(run)),
        versions=_versions(run.get("versions", {})),
    )  # fmt: skip


def _public(name: str) -> str:
    """A hub id as it is, of a path only its end: no folder names of the authors' machines."""
    path = place(name).path
    return path if is_hub_id(path) else Path(path).name


def _splits(run: Run) -> Iterator[dict[str, Any]]:
    for key, name in (("train", "training"), ("dual", "dual"), ("heldout", "held-out")):
        if split := run.get(f"data.{key}"):
            pairs = split.get("edges", {})
            yield {
                "name": name,
                "records": f"{split.get('records', 0):,}",
                "pairs": f"{sum(pairs.values()):,}",
                "by": ", ".join(f"{d} {n:,}" for d, n in pairs.items()),
                "sha": str(split.get("sha256", ""))[:12],
            }


def _weights(primary: Any, q: Callable[[str], str]) -> str:
    if isinstance(primary, Mapping):
        return "in the proportions " + ", ".join(f"{q(d)} {w:g}" for d, w in primary.items())
    return {"uniform": "equal", "pooled": "proportional to the numbers of pairs"}.get(str(primary), str(primary))


def _tolerances(tolerance: Any, q: Callable[[str], str]) -> str:
    if isinstance(tolerance, Mapping):
        return ", ".join(f"{exact(float(value))} for {q(d)}" for d, value in tolerance.items())
    return "none" if tolerance is None else exact(float(tolerance))


def _trained(run: Run) -> str:
    adapter = run.get("config.model.lora")
    if not adapter:
        return "All weights were trained"
    four = ", on frozen weights in 4 bits," if run.get("config.model.load_in_4bit") else ""
    if start := adapter.get("path"):  # its rank and the like are its own, and no recipe says them
        return f"Low-rank adapters, at first those of {_public(start)},{four[1:]} were trained"
    kind = "Weight-decomposed low-rank" if adapter.get("dora") else "Low-rank"
    return f"{kind} adapters of rank {adapter.get('rank') or 'unknown'}{four} were trained"


def _dual_split(run: Run) -> Iterator[str]:
    """What the dual split was for, where that is known."""
    if run.lagrangian and run.get("config.objective.dual.evidence", "split") == "split":
        yield "moves the Lagrange multipliers"
    if run.get("config.training.keep") == "best":
        yield "decides which checkpoint is kept"
    if run.get("config.training.stop_when") == "certified":
        yield "decides when training ends"


def _below(run: Run) -> str:
    """How far below their tolerances constraints were held; empty where that is not known, or at 0."""
    aim = run.get("config.objective.dual.aim")
    if aim == "certificate":
        return "as much as a proof on the held-out records needs" if run.get("data.heldout") else ""
    return exact(aim) if isinstance(aim, int | float) and aim else ""


def _price(run: Run) -> float:
    """Of violations that are found impossible to avoid; inf: none is relaxed, as before there was a price."""
    return float(run.get("config.objective.dual.relaxed_cost", math.inf))


def _verdicts(run: Run) -> Iterator[dict[str, str]]:
    for c in run.certificate.constrained if run.certificate else ():
        yield {"name": c.name, "verdict": c.verdict, "bounds": _bounds(c), "tolerance": exact(c.tolerance)}


def _bounds(c: Certified) -> str:
    return f"{number(c.estimate)} [{number(c.lower)}, {number(c.upper)}]"


def _versions(versions: Mapping[str, Any]) -> str:
    wanted = ("dpeer", "torch", "transformers", "deepspeed", "ray", "peft", "python")
    return ", ".join(f"{name} {versions[name]}" for name in wanted if versions.get(name))
