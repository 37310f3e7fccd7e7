"""Imports point down: launcher, eval, the method; no circle between files or rooms; the pure rooms stay pure."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("launcher", "eval", "dpeer")
IO = {"os", "sys", "socket", "subprocess", "pathlib", "shutil", "tempfile", "datasets", "transformers", "deepspeed"}


def name_of(path: Path) -> str:
    """The import name of a file: the folders `eval` and `launcher` are parts of the package `dpeer`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "dpeer" else ("dpeer", *parts)).removesuffix(".__init__")


FILES = {
    name_of(path): path
    for layer in LAYERS
    for path in sorted((ROOT / layer).rglob("*.py"))
    if "__pycache__" not in str(path)
}


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


GRAPH = {name: {n for n in imported(path) if n in FILES and n != name} for name, path in FILES.items()}


def below(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in prefixes)


def offenders(folder: str, forbidden: set[str]) -> list[str]:
    found = {name: path for name, path in FILES.items() if path.is_relative_to(ROOT / folder)}
    assert found, f"no files in {folder}: has it moved?"
    return [
        f"{name} imports {n}" for name, path in found.items() for n in sorted(imported(path)) if below(n, forbidden)
    ]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("dpeer", {"ray", "dpeer.launcher", "dpeer.eval"}),
        ("eval", {"dpeer.launcher"}),
        ("dpeer/objective", {"torch.distributed", "ray", "dpeer.data", "dpeer.model", "dpeer.training"} | IO),
        ("dpeer/data", {"dpeer.training", "dpeer.objective", "torch.distributed"}),
        ("dpeer/model", {"dpeer.training", "dpeer.objective", "torch.distributed"}),
        ("dpeer/training", {"dpeer.estimate", "dpeer.report", "dpeer.toyworld"}),
        ("eval/irt", {"dpeer.eval.backends", "dpeer.eval.questions"}),
    ],
)
def test_layers(folder: str, forbidden: set[str]) -> None:
    assert offenders(folder, forbidden) == []


@pytest.mark.parametrize("name", ["eval", "launcher"])
def test_the_only_import_name_is_the_packages(name: str) -> None:
    everywhere = [*FILES.values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert [str(path) for path in everywhere if any(below(n, {name}) for n in imported(path))] == []


def room(name: str) -> str:
    """The folder of a file inside its layer; a file that lies directly in a layer is a room of its own."""
    parts = name.split(".")
    return ".".join(parts[: 3 if parts[1:2] in (["eval"], ["launcher"]) else 2])


def circle(graph: dict[str, set[str]], label: Callable[[str], str]) -> list[str]:
    """The names of one circle of a graph whose nodes are merged by `label`; empty if there is none."""
    merged: dict[str, set[str]] = {}
    for name, needs in graph.items():
        merged.setdefault(label(name), set()).update({label(n) for n in needs} - {label(name)})
    try:
        TopologicalSorter(merged).prepare()
    except CycleError as error:
        return [str(n) for n in error.args[1]]
    return []


def test_no_circle_of_files_or_rooms() -> None:
    inner = {name: {n for n in needs if not name.startswith(f"{n}.")} for name, needs in GRAPH.items()}
    assert circle(inner, str) == []
    assert circle(inner, room) == []


def test_a_circle_is_seen() -> None:
    graph = {"dpeer.a.x": {"dpeer.b.y"}, "dpeer.b.z": {"dpeer.a.w"}, "dpeer.a.w": set(), "dpeer.b.y": set()}
    assert circle(graph, str) == []
    assert set(circle(graph, room)) == {"dpeer.a", "dpeer.b"}


def test_files_are_short() -> None:
    tracked = [p for folder in (*LAYERS, "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
    assert [str(p) for p in tracked if p.read_text(encoding="utf-8").count("\n") > 400] == []


def test_no_remote_code_and_no_pickles_of_strangers() -> None:
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call not in {"pickle.load", "pickle.loads", "eval", "exec"}, f"{name}: {call}"
                if call == "torch.load":  # of shards whose instructions were looked at before
                    given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert name == "dpeer.training.pickles" and given["weights_only"] == "True", name
                for keyword in node.keywords:
                    if keyword.arg == "trust_remote_code":
                        assert ast.unparse(keyword.value) == "False", name
