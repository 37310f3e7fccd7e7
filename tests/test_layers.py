"""Imports point down: launcher, eval, dpeer; the pure rooms stay pure."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IO = {"os", "sys", "socket", "subprocess", "pathlib", "shutil", "tempfile", "datasets", "transformers", "deepspeed"}


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def offenders(folder: str, forbidden: set[str]) -> list[str]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"no files in {folder}: has it moved?"
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in sorted(imported(path))
        if any(name == f or name.startswith(f"{f}.") for f in forbidden)
    ]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("dpeer", {"ray", "launcher", "eval"}),
        ("eval", {"launcher"}),
        ("dpeer/objective", {"torch.distributed", "ray", "dpeer.data", "dpeer.model", "dpeer.training"} | IO),
        ("dpeer/data", {"dpeer.training", "dpeer.objective", "torch.distributed"}),
        ("dpeer/model", {"dpeer.training", "dpeer.objective", "torch.distributed"}),
    ],
)
def test_layers(folder: str, forbidden: set[str]) -> None:
    assert offenders(folder, forbidden) == []


def test_no_remote_code_and_no_pickles_of_strangers() -> None:
    for path in (*(ROOT / "dpeer").rglob("*.py"), *(ROOT / "launcher").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"torch.load", "pickle.load", "pickle.loads", "eval", "exec"}, f"{path}: {name}"
                for keyword in node.keywords:
                    if keyword.arg == "trust_remote_code":
                        assert ast.unparse(keyword.value) == "False", path
