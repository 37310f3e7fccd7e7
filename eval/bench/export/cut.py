"""Python source that stands alone: functions, classes and values with all that they need, cut out of their modules.

What is written is the code that runs here, without annotations and without what is not needed; so a scorer elsewhere
cannot drift away from ours.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import inspect
import itertools
import math
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any

from dpeer.errors import ConfigError

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Cut:
    """Pieces, each after what it needs. Raises ConfigError for what cannot be written."""

    def __init__(self, taken: Collection[str] = ()) -> None:
        """taken: names that nothing may get."""
        self._imports: dict[str, None] = {}
        self._pieces: list[str] = []
        self._bound: dict[str, object] = {name: object() for name in taken}

    def source(self) -> str:
        return "\n".join(self._imports) + "\n\n\n" + "\n\n\n".join(self._pieces) + "\n"

    def add(self, *things: Callable[..., Any]) -> None:
        """Functions or classes of a module, under their names."""
        for thing in things:
            self.add_value(thing.__name__, thing)

    def add_value(self, name: str, value: object) -> None:
        """A value under a name that nothing else has got so far."""
        if self._need(name, value) != name:
            raise ConfigError(f"cannot be exported: two things are called {name}")

    def add_object(self, name: str, thing: object, methods: Iterable[str]) -> None:
        """An object under a name: these methods, wherever inherited from, and what they use of `self`."""
        kept: dict[str, Definition] = {}
        values: dict[str, object] = {}
        due = list(methods)
        while due:
            attribute = due.pop()
            if attribute in kept or attribute in values:
                continue
            found = inspect.getattr_static(type(thing), attribute, None)
            inner = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
            if isinstance(inner, FunctionType) and attribute not in vars(thing):
                kept[attribute] = tree = _tree(inner)
                self._needs(tree, inner.__globals__)
                due += sorted(
                    n.attr
                    for n in ast.walk(tree)
                    if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"
                )
            else:
                values[attribute] = getattr(thing, attribute)
        if name in self._bound:
            raise ConfigError(f"cannot be exported: two things are called {name}")
        self._bound[name] = thing
        lines = [f"{key} = {self._value(value, f'{name}.{key}')}" for key, value in sorted(values.items())]
        bodies = [ast.unparse(kept[key]) for key in sorted(kept)]
        self._pieces.append(
            f"class _{type(thing).__name__}:\n"
            + textwrap.indent("\n\n".join([*lines, *bodies]), "    ")
            + f"\n\n\n{name} = _{type(thing).__name__}()"
        )

    def _need(self, name: str, thing: object) -> str:
        """The name under which a thing stands in the source: its own, or another where that is taken."""
        for called in itertools.chain((name,), (f"{name}_{k}" for k in itertools.count(2))):
            if called not in self._bound:
                self._bound[called] = thing
                self._write(called, thing)
                return called
            if _same(self._bound[called], thing):
                return called
        raise AssertionError("there is always another number")

    def _write(self, name: str, thing: object) -> None:
        if isinstance(thing, ModuleType):
            _refuse_foreign(thing.__name__)
            self._imports[f"import {thing.__name__}" + f" as {name}" * (name != thing.__name__)] = None
            return
        own = inspect.unwrap(thing) if callable(thing) else thing
        module = str(getattr(own, "__module__", ""))
        if callable(own) and module.partition(".")[0] in sys.stdlib_module_names:
            called = getattr(own, "__name__", name)
            self._imports[f"from {module} import {called}" + f" as {name}" * (name != called)] = None
        elif isinstance(own, (FunctionType, type)):
            tree = _tree(own)
            tree.name = name
            self._needs(tree, own.__globals__ if isinstance(own, FunctionType) else vars(sys.modules[own.__module__]))
            self._pieces.append(ast.unparse(tree))
        else:
            self._pieces.append(f"{name} = {self._value(thing, name)}")

    def _needs(self, tree: Definition, around: Mapping[str, Any]) -> None:
        """Writes what a definition needs, and calls it there by the names that it has got."""
        for inside in ast.walk(tree):
            for module in [a.name for a in inside.names] if isinstance(inside, ast.Import) else []:
                _refuse_foreign(module)
            if isinstance(inside, ast.ImportFrom):
                _refuse_foreign(str(inside.module))
        for name in _free(tree):
            if name in around:
                called = self._need(name, around[name])
                if called != name and isinstance(tree, ast.ClassDef):
                    raise ConfigError(
                        f"cannot be exported: class {tree.name} uses {name}, as something else is called there too"
                    )
                for use in ast.walk(tree) if called != name else ():
                    if isinstance(use, ast.Name) and use.id == name:
                        use.id = called
            elif not hasattr(builtins, name):
                raise ConfigError(f"cannot be exported: {tree.name} uses {name}, which its module does not define")

    def _value(self, value: object, name: str) -> str:
        """An expression that gives the value. Texts and numbers, collections of these, patterns, dataclasses."""
        if value is None or isinstance(value, (str, bool, int, bytes)):
            return repr(value)
        if isinstance(value, float):
            return repr(value) if math.isfinite(value) else f"float({str(value)!r})"
        if isinstance(value, (list, tuple, set, frozenset)):
            inner = ", ".join(self._value(v, name) for v in value)
            if isinstance(value, (set, frozenset)):
                return f"{type(value).__name__}(({inner}{',' * bool(value)}))"
            return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
        if isinstance(value, range):
            return repr(value)
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{self._value(k, name)}: {self._value(v, name)}" for k, v in value.items()) + "}"
        if isinstance(value, re.Pattern):
            self._need("re", re)
            return f"re.compile({value.pattern!r}, {int(value.flags)})"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            called = self._need(type(value).__name__, type(value))
            given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            usual = {f.name: f.default for f in dataclasses.fields(value)}
            own = (f"{k}={self._value(v, name)}" for k, v in given.items() if v is not usual[k])
            return f"{called}({', '.join(own)})"
        raise ConfigError(f"cannot be exported: {name} is a {type(value).__name__}, which no text can stand for")


def _refuse_foreign(module: str) -> None:
    if module.partition(".")[0] not in sys.stdlib_module_names:
        raise ConfigError(f"cannot be exported: its code needs {module}, and a task elsewhere has Python alone")


def _same(one: object, other: object) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, (str, int, float, tuple)) and one == other)


def _tree(thing: FunctionType | type) -> Definition:
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        raise ConfigError(f"cannot be exported: there is no source of {thing.__qualname__} by itself") from None
    if not isinstance(tree, Definition):
        raise ConfigError(
            f"cannot be exported: {thing.__qualname__} in {thing.__module__} must be a function with a name"
        )
    bare: Definition = _Bare().visit(tree)
    return ast.fix_missing_locations(bare)


class _Bare(ast.NodeTransformer):
    """Without annotations, whose names would bring half of the library along; fields of dataclasses keep a blank one,
    since where tasks are loaded the module may not be known by its name, by which texts of annotations are resolved."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        for k, inside in enumerate(node.body):
            if isinstance(inside, ast.Assign) and getattr(inside, "was", None):
                node.body[k] = inside.was  # type: ignore[attr-defined]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        self.generic_visit(node)
        node.annotation = ast.Name("object", ast.Load())
        plain: ast.stmt = ast.Assign([node.target], node.value or ast.Constant(None), lineno=node.lineno)
        plain.was = node  # type: ignore[attr-defined]
        return plain

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node


def _free(tree: Definition) -> list[str]:
    """Names that a definition reads and does not bind itself, in a fixed order. What one part binds counts as bound in
    all of it, so code that reads a global under the name of a local elsewhere in it must be written otherwise."""
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    if isinstance(tree, ast.ClassDef):
        outside = [*tree.bases, *tree.decorator_list, *(s for s in tree.body if not isinstance(s, ast.FunctionDef))]
        kept = {n.id for o in outside for n in ast.walk(o) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        own = {n.id for s in tree.body if isinstance(s, ast.Assign) for n in s.targets if isinstance(n, ast.Name)}
        methods = (s for s in tree.body if isinstance(s, ast.FunctionDef))
        return sorted((kept - own - {tree.name}).union(*(_free(m) for m in methods)) - {tree.name})
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    bound |= {n.name for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.name}
    bound |= {
        a.asname or a.name for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names
    }
    bound |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    return sorted(read - bound)
