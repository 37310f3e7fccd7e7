"""What an engine wants written, apart from its writing: so that a copy of it can be written while training goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
BESIDE = 5
"""By how much a thread that writes is nicer than the training beside it."""


@dataclass(frozen=True)
class Snapshot:
    """Files of one rank: trees of tensors with the paths at which `dump` writes them. The tensors are the engine's own
    until they are copied."""

    parts: tuple[tuple[Any, Path], ...]
    dump: Callable[[Any, Path], None]

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for tree, _ in self.parts for t in _tensors(tree))

    def copied(self) -> Snapshot:
        """With tensors in host memory that nothing else holds."""
        held: dict[int, torch.Tensor] = {}
        return replace(self, parts=tuple((_copied(tree, held), path) for tree, path in self.parts))

    def write(self) -> None:
        for tree, path in self.parts:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.dump(tree, path)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)


def _copied(tree: Any, held: dict[int, torch.Tensor]) -> Any:
    """What is neither tensor nor plain container is no state of training, and is kept as it is. A tensor that occurs
    twice occurs twice in the copy."""
    if isinstance(tree, torch.Tensor):
        if id(tree) not in held:
            held[id(tree)] = tree.detach().to("cpu", copy=True)
        return held[id(tree)]
    if isinstance(tree, dict):
        same = copy(tree)  # of its own class, with the attributes that state_dict gives it
        for key, value in tree.items():
            same[key] = _copied(value, held)
        return same
    if isinstance(tree, list):
        return [_copied(value, held) for value in tree]
    if isinstance(tree, tuple):
        values = [_copied(value, held) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)  # a torch.Size stays one
    return tree


class Beside(Generic[T]):
    """Work in a thread of its own, which ends with the process; `result` waits, and raises what the work has raised."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done: Future[T] = Future()
        threading.Thread(target=self._run, name="writing a checkpoint", daemon=True).start()

    def _run(self) -> None:
        try:
            with suppress(OSError):  # where it is not permitted
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BESIDE)  # of this thread alone, on Linux
            self._done.set_result(self._work())
        except BaseException as error:
            self._done.set_exception(error)
        finally:
            del self._work  # with the copy that it holds

    @property
    def running(self) -> bool:
        return not self._done.done()

    def result(self) -> T:
        return self._done.result()
