"""The order audit: planted violations are found, whatever the judges' severity, and intervals cover what they say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dpeer.data.load import load
from dpeer.data.order import edges
from dpeer.eval.audit.pairs import margins, pairs
from dpeer.eval.audit.rates import contradicted, design_effect, majority, share, truth, votes
from dpeer.eval.backends.config import Farm, Served
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.backends.types import Answer, Answers, Backend, Call, Job, Say
from dpeer.eval.store.parts import content_id
from dpeer.eval.toy_judges import QUALITY, SEVERITIES, score_distribution
from dpeer.launcher.cli import app
from dpeer.toyworld import world as toyworld

PLANTED = 0.1


class Toy(Backend):
    """The toy judges' rating model, without the language models that learn it; `path` is a name in SEVERITIES."""

    def __init__(self) -> None:
        self.asked = 0
        self.broken_after = math.inf

    def identity(self, served: Served) -> str:
        return content_id(toy=served.path)

    def session(self, farm: Farm, say: Say) -> AbstractContextManager[Answers]:
        return nullcontext(self.answers)

    def answers(self, job: Job, calls: Iterable[Call]) -> Iterator[list[Answer]]:
        for some in batched(calls, 100):
            if self.asked >= self.broken_after:
                raise KeyboardInterrupt
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
        assert all(j["error"] < 0.15 for j in group["judges"])
    worst = told["worst"]
    assert [w["margin"] for w in worst] == sorted(w["margin"] for w in worst) and worst[0]["margin"] < 0
    assert {w["row"] for w in worst} <= rows and worst[0]["better"] != worst[0]["worse"]
    asked = toy.asked
    assert run(path, "--judges", recipe(tmp_path))[0] == 0 and toy.asked == asked
    page = (tmp_path / "out" / "toy-audit" / "audit.html").read_text()
    assert "Judges contradict the order most in" in page and worst[0]["row"] in page


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
    names = ["dimension", "judge", "criterion", "repeat", "response_id", "status", "score"]
    ratings = pd.DataFrame(rows, columns=names).assign(expected=np.nan)
    compared = pd.DataFrame(
        [("D", "x", "y"), ("D", "y", "x"), ("D", "x", "z")], columns=["dimension", "better", "worse"]
    )
    found, judges = margins(ratings, compared, ["judge"], expected=True)
    assert judges == ["g", "h"]
    np.testing.assert_array_equal(found, [[1, 1], [-1, -1], [np.nan, np.nan]])
    assert margins(ratings, compared, ["judge", "repeat"], expected=True)[1] == ["g #0", "g #1", "h #0", "h #1"]


def test_votes_and_majorities_by_hand() -> None:
    cast = votes(np.array([[1.0, 0.2, -2.0], [0.0, np.nan, -0.25], [np.nan, np.nan, np.nan]]), tie=0.25)
    np.testing.assert_array_equal(cast, [[1, 0, -1], [0, np.nan, -1], [np.nan] * 3])
    np.testing.assert_array_equal(majority(cast), [0, -1, np.nan])
    assert contradicted(cast) == 1 and math.isnan(contradicted(cast[1:]))
    np.testing.assert_array_equal(votes(np.array([[0.0, 0.1]]), tie=0), [[0, 1]])


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(1, 6))
def test_copies_of_edges_within_a_prompt_say_nothing_new(hits: list[bool], copies: int) -> None:
    """Each observation `copies` times in its cluster: the rate stays, and the interval is no narrower."""
    one = share(np.array(hits), np.arange(len(hits)))
    many = share(np.repeat(hits, copies), np.repeat(np.arange(len(hits)), copies))
    assert many.rate == pytest.approx(one.rate) and many.high - many.low >= one.high - one.low - 1e-9
    assert design_effect(np.repeat(hits, copies), np.repeat(np.arange(len(hits)), copies)) >= copies - 1e-9


def test_wilsons_interval_of_a_known_case() -> None:
    """Newcombe 1998, table I: 15 of 148, Wilson's score method."""
    found = share(np.arange(148) < 15, np.arange(148))
    assert (round(found.low, 4), round(found.high, 4)) == (0.0624, 0.1605)


def test_without_two_opinions_no_error_can_be_told() -> None:
    assert truth(np.array([[1.0, np.nan], [np.nan, -1.0], [0.0, 1.0]]), np.arange(3)) is None


REPLICATIONS = 200


def test_intervals_cover_at_their_level() -> None:
    """Two judges of unlike error on 240 edges in pairs per prompt, half of which share their truth; 10 % violated. The
    corrected interval covers the true rate; the interval as judged covers what judges of such errors say on average."""
    rng = np.random.default_rng(5)
    error, ties, prompts = np.array([0.06, 0.14]), 0.15, np.repeat(np.arange(120), 2)
    agree = PLANTED * (1 - error).prod() + (1 - PLANTED) * error.prod()
    against = (
        PLANTED * (1 - error).prod() + (1 - PLANTED) * error.prod(),
        PLANTED * error.prod() + 0.9 * (1 - error).prod(),
    )
    one = [PLANTED * (1 - e) + (1 - PLANTED) * e for e in error]
    decided = (1 - ties) ** 2 * sum(against) + 2 * ties * (1 - ties)
    judged = ((1 - ties) ** 2 * agree + ties * (1 - ties) * sum(one)) / decided
    covered, covered_raw, middle = 0, 0, []
    for replication in range(REPLICATIONS):
        shared, own = rng.random(120) < PLANTED, rng.random(240) < PLANTED
        violated = np.where((rng.random(120) < 0.5)[prompts], shared[prompts], own)
        cast = np.where(violated[:, None] ^ (rng.random((240, 2)) < error), -1.0, 1.0)
        cast[rng.random(cast.shape) < ties] = 0
        found = truth(cast, prompts, replication)
        assert found is not None
        side = majority(cast)
        raw = share(side[side != 0] < 0, prompts[side != 0])
        covered += found.rate.low <= PLANTED <= found.rate.high
        covered_raw += raw.low <= judged <= raw.high
        middle.append(found.rate.rate)
    # 95 % of 200: 190, standard error 3
    assert covered >= 181 and covered_raw >= 181
    assert abs(np.mean(middle) - PLANTED) < 0.01 < judged - PLANTED, "the rate as judged is too high, the other is not"
