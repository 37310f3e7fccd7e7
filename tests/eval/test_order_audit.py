"""The order audit: planted violations are found, whatever the judges' severity, and intervals cover what they say."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from dpeer.data.load import load
from dpeer.data.order import edges
from dpeer.data.schema import DataSet
from dpeer.errors import DataError
from dpeer.eval.audit import rates
from dpeer.eval.audit.audit import Audit, Group, audited
from dpeer.eval.audit.pairs import Pairs, margins, pairs
from dpeer.eval.audit.rates import (
    UNKNOWN,
    Interval,
)
from dpeer.eval.backends.config import Farm, Served
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.backends.types import Answer, Answers, Backend, Call, Job, Say
from dpeer.eval.report.order_audit import finding, write_page
from dpeer.eval.store.parts import content_id
from dpeer.eval.toy_judges import QUALITY, SEVERITIES, score_distribution
from dpeer.launcher.cli import app
from dpeer.launcher.commands.evaluation import evaluation_config
from dpeer.toyworld import world as toyworld

PLANTED = 0.1


def interrupt() -> None:
    raise KeyboardInterrupt


class Toy(Backend):
    """The toy judges' rating model, without the language models that learn it; `path` is a name in SEVERITIES."""

    def __init__(self) -> None:
        self.asked = 0
        self.broken_after = math.inf
        self.broken_by: Callable[[], object] = interrupt

    def identity(self, served: Served) -> str:
        return content_id(toy=served.path)

    def session(self, farm: Farm, say: Say) -> AbstractContextManager[Answers]:
        return nullcontext(self.answers)

    def answers(self, job: Job, calls: Iterable[Call]) -> Iterator[list[Answer]]:
        for some in batched(calls, 100):
            if self.asked >= self.broken_after:
                self.broken_by()
            self.asked += len(some)
            yield [self.answer(call, SEVERITIES[job.served.path]) for call in some]

    def answer(self, call: Call, severity: float) -> Answer:
        _, response = (segment.text for segment in call.segments if not segment.trusted)
        quality = QUALITY[toyworld.oracle(response)[call.segments[-1].text[0]]]
        return Answer(call.id, "stop", logprobs=tuple(map(math.log, score_distribution(quality, severity))))


def batched(calls: Iterable[Call], size: int) -> Iterator[list[Call]]:
    waiting = iter(calls)
    while some := list(islice(waiting, size)):
        yield some


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    backend = Toy()
    BACKENDS.names()
    monkeypatch.setitem(BACKENDS._entries, "toy", backend)
    monkeypatch.setattr(rates, "BURN_IN", 500)
    monkeypatch.setattr(rates, "DRAWS", 1000)
    return backend


def recipe(folder: Path, judges: Iterable[str] = tuple(SEVERITIES), **judging: Any) -> Path:
    values = {
        "name": "toy",
        "output_dir": str(folder / "out"),
        "judges": [{"name": name, "path": name, "backend": "toy"} for name in judges],
        "judging": {"rubric": "toyworld", "score": "sampled"} | judging,
    }
    path = folder / "judges.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def swapped_world(folder: Path, n: int, seed: int) -> tuple[Path, dict[str, float], set[str]]:
    """A toy world, an edge per row, in which golden and reject change places in one of ten; the true share of violated
    edges per dimension, and the rows that have one."""
    rng = np.random.default_rng(seed)
    wrong: dict[str, list[bool]] = {d: [] for d in toyworld.DIMENSIONS}
    lines, rows = [], set()
    for record in toyworld.generate(n, seed).records:
        for edge in edges(record):
            texts = [record.responses[edge.better].text, record.responses[edge.worse].text]
            swap = bool(rng.random() < PLANTED)
            wrong[edge.dimension].append(swap)
            golden, reject = reversed(texts) if swap else texts
            prompt = record.prompt[0].content
            lines.append(
                {"prompt": prompt, "mask": [edge.dimension], "golden": golden, f"reject_{edge.dimension}": reject}
            )
            rows |= {f"train.jsonl:{len(lines)}"} if swap else set()
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, {d: float(np.mean(w)) for d, w in wrong.items()}, rows


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", "audit", *map(str, arguments)])
    return result.exit_code, result.stdout


def test_planted_violations_are_recovered_and_a_stopped_audit_goes_on(tmp_path: Path, toy: Toy) -> None:
    path, true, rows = swapped_world(tmp_path, 250, seed=1)
    toy.broken_after = 500
    assert run(path, "--judges", recipe(tmp_path))[0] == 130
    toy.broken_after = math.inf
    code, output = run(path, "--judges", recipe(tmp_path), "--json", "--limit", 0.02)
    told = json.loads(output)
    assert code == 1, "with a limit below what is planted"
    planned = 3 * 2 * sum(g["edges"] for g in told["groups"])
    assert toy.asked <= planned, "ratings that were there are not made again"
    for group in told["groups"]:
        rate, corrected = group["rate"], group["corrected"]
        assert corrected["low"] < true[group["dimension"]] < corrected["high"], group
        assert rate["low"] < rate["rate"] < rate["high"] and corrected["high"] - corrected["low"] < 0.25
        assert [j["judge"] for j in group["judges"]] == list(SEVERITIES)
        assert group["upheld"] + group["tied"] + group["violated"] == group["edges"]
        assert all(j["error"]["rate"] < 0.15 for j in group["judges"])
    worst = told["worst"]
    assert [w["excess"] for w in worst] == sorted((w["excess"] for w in worst), reverse=True)
    assert worst[-1]["excess"] > 0 and not told["notes"]
    assert {w["row"] for w in worst} <= rows and worst[0]["better"] != worst[0]["worse"]
    asked = toy.asked
    assert run(path, "--judges", recipe(tmp_path))[0] == 0 and toy.asked == asked
    page = (tmp_path / "out" / "toy-audit" / "audit.html").read_text()
    assert "Judges contradict the order most in" in page and worst[0]["row"] in page


def test_judges_verify_a_data_set_whatever_their_severity(tmp_path: Path, toy: Toy) -> None:
    path, _, rows = swapped_world(tmp_path, 60, seed=2)
    given = ["data", "quality", str(path), "--judges", str(recipe(tmp_path)), "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    records = {r["row"]: r["status"] for r in told["tables"]["records"]}
    sound = set(records) - rows
    assert sum(records[r] == "holds" for r in rows) <= 0.1 * len(rows)
    assert sum(records[r] == "fails" for r in sound) <= 0.05 * len(sound)
    asked = toy.asked
    assert CliRunner().invoke(app, given).exit_code == 0 and toy.asked == asked, "ratings that are there are used"


def test_a_scheduler_stops_an_audit_with_its_code(tmp_path: Path, toy: Toy) -> None:
    path, *_ = swapped_world(tmp_path, 60, seed=2)
    toy.broken_after, toy.broken_by = 100, lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert run(path, "--judges", recipe(tmp_path))[0] == 143
    toy.broken_by = lambda: os.kill(os.getpid(), signal.SIGUSR1)
    assert run(path, "--judges", recipe(tmp_path))[0] == 85


def test_a_sample_of_edges_grows_and_each_source_has_its_own_rates(tmp_path: Path, toy: Toy) -> None:
    path, *_ = swapped_world(tmp_path, 60, seed=2)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(path.read_text().splitlines(keepends=True)[:40]))
    code, output = run(path, other, "--judges", recipe(tmp_path, ["neutral"]), "--edges", 5, "--json")
    told = json.loads(output)
    assert code == 0 and {g["source"] for g in told["groups"]} == {str(path), str(other)}
    assert {g["edges"] for g in told["groups"]} == {5}
    assert all(g["corrected"] is None for g in told["groups"]) and "a second judge" in told["assumption"].lower()
    few, more = (pairs({"": load(str(path))}, most, seed=0).edges for most in (5, 8))
    assert set(map(tuple, few.to_numpy())) < set(map(tuple, more.to_numpy()))
    assert set(map(tuple, few.to_numpy())) != set(map(tuple, pairs({"": load(str(path))}, 5, seed=1).edges.to_numpy()))
    code, output = run(path, "--judges", recipe(tmp_path, ["neutral"]), "--edges", 5, "--plan-only")
    assert code == 0 and "0 to make" in output, "the same ratings serve"
    asked = toy.asked
    refused = CliRunner().invoke(
        app, ["data", "audit", str(path), "--judges", str(recipe(tmp_path, ["neutral"])), "--limit", "0.1"]
    )
    assert refused.exit_code == 1 and "judging.repeats=2" in refused.output and toy.asked == asked
    repeated = recipe(tmp_path, ["neutral"], repeats=2)
    told = json.loads(run(path, "--judges", repeated, "--json")[1])
    assert all(g["corrected"] is not None for g in told["groups"]) and "repeats" in told["assumption"]


@pytest.mark.parametrize(
    ("judging", "shown"),
    [
        ({"rubric": "compliance"}, "rubric compliance (judging.rubric) has no A, C, E, T, which the data have"),
        ({"dimensions": ["A", "B"]}, "judging.dimensions names B, but the data have A, C, E, T"),
    ],
)
def test_dimensions_that_do_not_match_are_named(tmp_path: Path, toy: Toy, judging: dict[str, Any], shown: str) -> None:
    path, *_ = swapped_world(tmp_path, 20, seed=3)
    result = CliRunner().invoke(app, ["data", "audit", str(path), "--judges", str(recipe(tmp_path, **judging))])
    assert result.exit_code == 1 and shown in " ".join(result.output.split()) and not toy.asked


def test_both_ends_are_compared_under_the_same_judge_criterion_and_repeat() -> None:
    """Severity (+2 of judge h), a hard criterion (-1) and an order effect (+1) cancel; a rating that failed leaves its
    comparison out."""
    rows = []
    for judge, severity in (("g", 0.0), ("h", 2.0)):
        for criterion, hard in (("c1", 0.0), ("c2", -1.0)):
            for repeat in (0, 1):
                for response, quality in (("x", 3.0), ("y", 2.0)):
                    failed = (judge, criterion, repeat, response) == ("h", "c2", 1, "y")
                    score = quality + severity + hard + repeat
                    rows.append(("D", judge, criterion, repeat, response, "engine_error" if failed else "ok", score))
    ratings = pd.DataFrame(rows, columns=RATED).assign(expected=np.nan)
    compared = pd.DataFrame(
        [("D", "x", "y"), ("D", "y", "x"), ("D", "x", "z")], columns=["dimension", "better", "worse"]
    )
    found, judges = margins(ratings, compared, ["judge"], expected=True)
    assert judges == ["g", "h"]
    np.testing.assert_array_equal(found, [[1, 1], [-1, -1], [np.nan, np.nan]])
    assert margins(ratings, compared, ["judge", "repeat"], expected=True)[1] == ["g #0", "g #1", "h #0", "h #1"]


RATED = ["dimension", "judge", "criterion", "repeat", "response_id", "status", "score"]


def rated(scores: dict[str, list[tuple[int, int]]]) -> tuple[Pairs, pd.DataFrame]:
    """Edges of one dimension, and ratings: per judge the scores of each edge's better and worse response."""
    n = max(map(len, scores.values()))
    rows = [
        ("D", judge, "c", 0, f"{end}{edge}", "ok", float(score))
        for judge, pairs in scores.items()
        for edge, ends in enumerate(pairs)
        for end, score in zip("bw", ends, strict=True)
    ]
    ratings = pd.DataFrame(
        rows, columns=["dimension", "judge", "criterion", "repeat", "response_id", "status", "score"]
    )
    found = pd.DataFrame([("s", f"r:{e}", f"p{e}", "D", f"b{e}", f"w{e}") for e in range(n)])
    found.columns = pd.Index(["source", "row", "prompt", "dimension", "better", "worse"])
    texts = pd.DataFrame(
        {"response_id": [f"{end}{e}" for e in range(n) for end in "bw"], "prompt": "p", "response": "r"}
    )
    return Pairs(found, texts), ratings.assign(expected=np.nan)


def test_the_worst_edges_and_a_judge_that_hardly_rated(tmp_path: Path, toy: Toy) -> None:
    scores = {
        "a": [(3, 4)] * 2 + [(2, 5)] + [(5, 4)] * 20,
        "b": [(3, 4)] * 2 + [(5, 5)] + [(5, 4)] * 20,
        "c": [(5, 1), (3, 4), (5, 5)],
    }
    found = audited(evaluation_config(str(recipe(tmp_path)), []), *rated(scores))
    (group,) = found.groups
    assert (group.violated, group.upheld, group.tied) == (3, 20, 0)
    assert [(w.row, w.excess, w.against) for w in found.worst] == [("r:1", 1, 3), ("r:2", 1, 1)]
    errors = [j.error for j in group.judges]
    assert errors[0] and errors[1] and errors[2] is None


def test_a_judge_without_usable_ratings_leaves_the_audit_to_the_others(tmp_path: Path, toy: Toy) -> None:
    found, ratings = rated({"a": [(5, 4)] * 30, "b": [(5, 4)] * 30})
    ratings["error"] = None
    ratings.loc[ratings["judge"] == "b", ["status", "score", "error"]] = "unparsed", np.nan, "no JSON"
    done = audited(evaluation_config(str(recipe(tmp_path)), []), found, ratings)
    assert done.groups[0].upheld == 30 and [j.judge for j in done.groups[0].judges] == ["a"]
    assert "Judge b: none of 60 rows is usable" in done.notes[0] and "`dpeer data audit` again" in done.notes[0]


def test_a_judge_that_contradicts_the_others_is_named(tmp_path: Path, toy: Toy) -> None:
    order, swapped = [(5, 4)] * 90 + [(4, 5)] * 10, [(4, 5)] * 90 + [(5, 4)] * 10
    found = audited(evaluation_config(str(recipe(tmp_path)), []), *rated({"a": order, "b": order, "c": swapped}))
    assert len(found.notes) == 1 and found.notes[0].startswith("Judge c contradicts the others on D ")
    assert found.groups[0].corrected and found.groups[0].corrected.low < 0.1 < found.groups[0].corrected.high
    assert found.notes[0][:40] in write_page(found, tmp_path / "page.html").read_text()
    two = audited(evaluation_config(str(recipe(tmp_path)), []), *rated({"a": order, "c": swapped}))
    assert two.groups[0].corrected is None, "which of two is wrong cannot be told"
    assert two.notes[0].startswith("D: no rate without chance errors")


def test_the_headline_names_the_group_that_is_surely_high() -> None:
    def group(dimension: str, corrected: Interval) -> Group:
        return Group("s", dimension, 9, 9, 9, 0, 0, 0, UNKNOWN, corrected, math.nan, ())

    noisy, sure, low = (0.3, 0.01, 0.45), (0.2, 0.15, 0.25), (0.05, 0.02, 0.09)
    groups = [group(d, Interval(*i)) for d, i in (("N", noisy), ("S", sure), ("L", low), ("W", (0.6, 0.3, 0.9)))]
    assert "most in S: 20.0" in finding(Audit("x", 0.25, tuple(groups), (), "", ()))
    assert "Too few" in finding(Audit("x", 0.25, tuple(groups[3:]), (), "", ()))


def test_without_an_edge_there_is_no_audit() -> None:
    data = DataSet(("A", "C"), ())
    with pytest.raises(DataError, match=r"mine\.jsonl: no record says which of two responses is better in A, C"):
        pairs({"mine.jsonl": data}, None, seed=0)
