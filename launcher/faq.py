"""Which section of docs/errors.md explains an error: by its class, or by the part of dpeer that refused.

The page lies in the package too: errors.md is a link to it here, and the page itself in a wheel.
"""

from __future__ import annotations

import re
from pathlib import Path
from traceback import walk_tb

PAGE = Path(__file__).parent / "errors.md"

CLASSES = {
    "Diverged": "diverged",
    "OutOfMemory": "out-of-memory",
    "WorkerLost": "worker",
    "WorkerFailed": "worker",
    "NodeLost": "worker",
    "DamagedCheckpoint": "checkpoint",
    "OverBudget": "budget",
    "DesignError": "design",
    "MappingError": "ratings",
    "ScoreError": "ratings",
    "TreeMismatch": "model",
    "NoSteps": "run-folder",
    "Refused": "bundle",
    "Fault": "preflight",
    "CheckpointError": "checkpoint",
    "IrtError": "fit",
    "ModuleNotFoundError": "missing-part",
}
"""Name of a class -> section, for it and those derived from it."""
PARTS = {
    "dpeer": "run-folder",
    "dpeer.config_io": "recipe",
    "dpeer.yaml_dialect": "recipe",
    "dpeer.registry": "recipe",
    "dpeer.escape": "recipe",
    "dpeer.data": "data",
    "dpeer.toyworld": "data",
    "dpeer.model": "model",
    "dpeer.objective": "objective",
    "dpeer.training": "training",
    "dpeer.training.prepare": "data",
    "dpeer.training.tokens": "data",
    "dpeer.training.token_place": "data",
    "dpeer.eval": "evaluation",
    "dpeer.eval.audit": "audit",
    "dpeer.eval.quality": "audit",
    "dpeer.eval.backends": "judges",
    "dpeer.eval.bench": "bench",
    "dpeer.eval.build": "build",
    "dpeer.eval.elsewhere": "ratings",
    "dpeer.eval.irt": "fit",
    "dpeer.eval.irt.encode": "ratings",
    "dpeer.eval.irt.ratings_files": "ratings",
    "dpeer.eval.questions": "rubric",
    "dpeer.launcher": "command",
    "dpeer.launcher.bundle": "bundle",
    "dpeer.launcher.chat": "chat",
    "dpeer.launcher.cluster": "cluster",
    "dpeer.launcher.group": "cluster",
    "dpeer.launcher.loop": "loop",
    "dpeer.launcher.preflight": "preflight",
    "dpeer.launcher.recipe": "recipe",
    "dpeer.launcher.security": "cluster",
    "dpeer.launcher.slurm": "cluster",
    "dpeer.launcher.sweep": "sweep",
    "dpeer.launcher.train": "cluster",
    "dpeer.launcher.worker": "cluster",
}
"""Module or package that refused -> section; the longest name counts."""
UNEXPECTED = "unexpected"


def section(error: BaseException) -> str:
    """The anchor in docs/errors.md."""
    return section_of([kind.__name__ for kind in type(error).__mro__], raised_in(error))


def raised_in(error: BaseException) -> str:
    """The module of dpeer that raised it."""
    if module := getattr(error, "module", ""):
        return str(module)
    frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    own = [name for name in frames if name.partition(".")[0] == "dpeer"]
    return own[-1] if own else "dpeer.launcher"


def section_of(classes: list[str], module: str) -> str:
    """classes: names from the error's own to `object`; module: where it was raised."""
    if known := next((CLASSES[name] for name in classes if name in CLASSES), None):
        return known
    if "DpeerError" not in classes:
        return UNEXPECTED
    parts = module.split(".")
    return next(PARTS[name] for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in PARTS)


def pointer(error: BaseException) -> str:
    """The line below an error."""
    return f"see: dpeer help {section(error)}"


def sections() -> dict[str, str]:
    """The page's sections, each from its heading on, by their anchors."""
    parts = re.split(r'<a id="([^"]+)"></a>', PAGE.read_text(encoding="utf-8"))
    texts = (re.split(r"\n(?=## )", text.strip())[0].strip() for text in parts[2::2])
    return dict(zip(parts[1::2], texts, strict=True))
