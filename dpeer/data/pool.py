"""Blocks of a source in order, by this process or by one per core.

The helpers are started as `python -m dpeer.data.pool`, not forked or spawned: they import neither the caller's main
module nor torch, and end when whoever started them does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from dpeer.data.blocks import Block, BlockMaker, Options
from dpeer.data.stream import Chunk, Records
from dpeer.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEW = 4
"""Chunks that are done in the time in which a helper starts."""
MOST = 64
"""Helpers: one process reads for all of them, and can feed no more."""
CPUS = "DPEER_TOKENIZE_CPUS"


def cpus() -> int:
    """Processes that tokenise: the cores that this one may use, or DPEER_TOKENIZE_CPUS."""
    given = os.environ.get(CPUS, "")
    return min(MOST, int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0)))


def blocks(chunks: Iterable[Chunk | Records], tokenizer: PreTrainedTokenizerBase, options: Options) -> Iterator[Block]:
    """A block for every chunk, in order, few of them in memory at once. Raises what reading a chunk does."""
    make, chunks = BlockMaker(tokenizer, options), iter(chunks)
    few = list(islice(chunks, FEW))
    helpers = 1 if len(few) < FEW else cpus()
    if helpers == 1:
        yield from map(make, chain(few, chunks))
        return
    team, threads = _Team(tokenizer, options), ThreadPoolExecutor(helpers)
    pending: deque[Future[Block]] = deque()
    try:
        for chunk in chain(few, chunks):
            pending.append(threads.submit(team.make, chunk))
            if len(pending) > 2 * helpers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        team.close()


@dataclass
class _Helper:
    process: subprocess.Popen[bytes]
    line: Connection


class _Team:
    """A helper for each thread that asks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
        self.beginning, self.own, self.helpers = (tokenizer, options), threading.local(), list[_Helper]()

    def make(self, chunk: Chunk | Records) -> Block:
        helper: _Helper = getattr(self.own, "helper", None) or self._start()
        try:
            if not hasattr(self.own, "begun"):
                helper.line.send(self.beginning)
                self.own.begun = True
            helper.line.send(chunk)
            answer = helper.line.recv()
        except (EOFError, OSError) as error:
            raise DataError(
                f"a process that tokenises ended early (exit code {helper.process.poll()}); the machine may have run "
                f"out of memory. Fewer of them need less: {CPUS}=2 in the environment."
            ) from error
        if isinstance(answer, BaseException):
            raise answer
        block: Block = answer
        return block

    def _start(self) -> _Helper:
        ours, theirs = Pipe()
        paths = os.pathsep.join(path for path in sys.path if path)
        alone = {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "dpeer.data.pool", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, **alone, "TRANSFORMERS_VERBOSITY": "error"},
            start_new_session=True,  # Ctrl-C is for the one that asks, whose end they see
        )
        theirs.close()
        self.own.helper = helper = _Helper(process, ours)
        self.helpers.append(helper)
        return helper

    def close(self) -> None:
        for helper in self.helpers:
            helper.process.kill()
            helper.process.wait()
            helper.line.close()


def _serve(line: Connection) -> None:
    """Blocks for chunks, until nobody asks any more; who asks may be killed in the middle of it."""
    with suppress(EOFError, OSError):
        make = BlockMaker(*line.recv())
        while True:
            chunk: Chunk | Records = line.recv()
            try:
                answer: Block | Exception = make(chunk)
            except Exception as error:  # told to whoever asked
                answer = error
            line.send(answer)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
