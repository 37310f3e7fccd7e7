"""Does a farm of four engines that only sleep do four times the work of one, and does vLLM read each conversation once?

Scaling: the farm as shipped, real Ray actors, but engines that only sleep, as long for each conversation; so what is
measured is what the farm adds between engines that never wait for each other. Engines have started before. Reading:
vLLM on the CPU, one engine, as many ratings of each conversation as the rubric has dimensions; the tokens that it
computed (those of the prompts less those from its prefix cache) against the least that there are: each conversation
once, each question once.

usage: python benchmarks/judge_farm.py [--engines 4] [--tasks 48] [--latency 0.5] [--rounds 2] [--part scaling|reading]
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import BenchmarkError, Figure, Recorder, print_table
from dpeer.eval import config
from dpeer.eval.backends.types import Answer, Call, Job, Method
from dpeer.eval.backends.vllm.farm import Farm, conversations, tasks_of
from dpeer.eval.config import Served
from dpeer.eval.questions.prompting import Segment, judge_segments, prefix_length
from dpeer.eval.questions.rubric import load_rubric
from dpeer.launcher.cluster import connect

PER_TASK = 4
"""Conversations per task of the sleeping engines."""
READ = 12
"""Conversations that vLLM reads."""
SCALING, READING = 0.95, 1.05
RUBRIC = load_rubric("toyworld")


class Sleeper:
    """An engine that needs `temperature` seconds for a conversation, whatever else the machine does."""

    def start(self, job: Job) -> None:
        self.seconds = job.method.temperature

    def answer(self, calls: tuple[Call, ...]) -> list[Answer]:
        time.sleep(self.seconds * len(calls))
        return [Answer(call.id, "stop") for call in calls]


def plain(count: int) -> list[Call]:
    return [Call(str(i), str(i), (Segment(f"{i}", True),)) for i in range(count)]


def scaling(engines: int, tasks: int, latency: float, rounds: int) -> dict[int, list[float]]:
    """Seconds for the same work, by number of engines."""
    method = Method("sample", temperature=latency / PER_TASK)
    job = Job(Served(name="sleeper", path="."), config.Engine(), method)
    found: dict[int, list[float]] = {1: [], engines: []}
    for count, seconds in found.items():
        with Farm(config.Farm(replicas=count), worker=Sleeper) as farm:
            for number in range(rounds + 1):
                calls = plain(PER_TASK * (tasks if number else 2 * engines))
                began = time.monotonic()
                answered = sum(map(len, farm.run(job, tasks_of(calls, PER_TASK))))
                if answered != len(calls):
                    raise BenchmarkError(f"{answered} of {len(calls)} calls were answered")
                if number:  # the first round starts the engines
                    seconds.append(time.monotonic() - began)
    return found


def chats(words: int) -> Iterator[Call]:
    """Ratings of conversations of so many words, no two alike, by all dimensions of the rubric."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    for n in range(READ):
        reply = " ".join("".join(rng.choices(letters, k=4)) for _ in range(words))
        for d in RUBRIC.dimensions:
            segments = judge_segments(RUBRIC, f"Question {n}?", reply, d, "clause", "up", "logprob")
            yield Call(f"{n}-{d}", str(n), segments, seed=n)


def reading(folder: Path, words: int) -> tuple[int, int, int]:
    """(computed by vLLM, the least, without a cache) tokens of prompts."""
    from dpeer.model.lm import load_tokenizer
    from dpeer.toyworld.model import tiny_model

    path = tiny_model(folder / "judge", "qwen3", 0)
    calls, tokenizer = list(chats(words)), load_tokenizer(str(path))
    settings = config.Engine(dtype="float32", max_model_len=8192, max_num_seqs=16, device="cpu")
    job = Job(Served(name="judge", path=str(path)), settings, Method("logprob", rubric=RUBRIC), "cpu")
    with Farm(config.Farm()) as farm:
        answers = {a.id: a for batch in farm.run(job, tasks_of(calls, READ)) for a in batch}
    if bad := [a for a in answers.values() if a.finish in ("error", "too_long") or a.cached_tokens is None]:
        raise BenchmarkError(f"{len(bad)} calls without an answer or a count: {bad[0].error or bad[0].finish}")
    prompts = sum(a.prompt_tokens or 0 for a in answers.values())
    computed = prompts - sum(a.cached_tokens or 0 for a in answers.values())
    least = 0
    for task in conversations(calls):
        shared = prefix_length(tokenizer, task[0].segments)
        least += shared + sum((answers[c.id].prompt_tokens or 0) - shared for c in task)
    return computed, least, prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--tasks", type=int, default=48)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds of a task")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--words", type=int, default=200, help="of five tokens, in a conversation that is read")
    parser.add_argument("--part", choices=("scaling", "reading"), action="append")
    recorder = Recorder(parser)
    given = parser.parse_args()
    if given.engines < 2 or given.tasks < 1 or given.tasks % given.engines or given.rounds < 1:
        parser.error("give two engines or more, tasks that they share evenly, and at least one round")
    parts = given.part or ["scaling", "reading"]
    figures, rows = [], []
    # Engines that sleep need no cores of their own: the private cluster has a place for each.
    places = max(given.engines, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder, patch("os.cpu_count", return_value=places), connect():
        if "scaling" in parts:
            one, many = scaling(given.engines, given.tasks, given.latency, given.rounds).values()
            ratio = min(one) / (given.engines * min(many))
            title = f"{given.engines} sleeping engines over {given.engines} times one, work per second"
            figures.append(Figure(title, ratio, "x", "higher", SCALING))
            figures.append(Figure.median(f"{given.tasks} tasks by one engine", one, "s"))
            figures.append(Figure.median(f"{given.tasks} tasks by {given.engines} engines", many, "s"))
            rows.append([title, f"{ratio:.3f}"])
        if "reading" in parts:
            computed, least, prompts = reading(Path(folder), given.words)
            title = "prompt tokens that vLLM computes over the least"
            figures.append(Figure(title, computed / least, "x", "lower", READING))
            figures.append(Figure("prompt tokens over those computed", prompts / computed, "x", "higher"))
            figures.append(Figure("prompt tokens computed", computed, "tokens", "lower"))
            rows.append([title, f"{computed / least:.3f}"])
    print_table("Judge farm", ("", "ratio"), rows, f"{READ} conversations of {given.words} words are read")
    note = "Engines that sleep show the farm alone: the fastest round of each counts, as other work delays both."
    recorder.write(given, figures, note)


if __name__ == "__main__":
    main()
