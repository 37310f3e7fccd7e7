"""The rounds of a loop, and their state on disk. Each stage finds what it has done: a killed loop goes on there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from dpeer.config import Config
from dpeer.errors import ClusterError, ConfigError, DpeerError
from dpeer.integrity import read_state, stamped, write_state
from dpeer.json_safe import json_safe
from dpeer.launcher.lock import claim, holder
from dpeer.launcher.loop.built import build_spec, make
from dpeer.launcher.loop.rule import Reached, gained, next_tolerances, weakness
from dpeer.launcher.loop.spec import BASE, Loop, completed, evaluation, fixed, run_name, training
from dpeer.launcher.signals import Signals
from dpeer.launcher.tolerance import levels
from dpeer.training.dates import began
from dpeer.training.run_dir import RunDir, differences, may_change

if TYPE_CHECKING:
    from dpeer.eval.irt.result import Result
    from dpeer.eval.irt.types import Floats, Posterior

STATE, PAGE = "loop.json", "loop.html"
LOST = "Delete it: the rounds are counted again from what they left."
AGAIN = "What was made is kept; the same command goes on from there."


@dataclass(frozen=True)
class LoopFolder:
    """output_dir/NAME: loop.json, round-N/ (run folders), evaluation/, fits/round-N/, loop.html, locks/."""

    path: Path

    @property
    def state(self) -> dict[str, Any]:
        """`rounds`: what each finished round reached and decided; `ended`: why there is no further one, or None."""
        if not (self.path / STATE).exists():
            return {}
        return read_state(self.path / STATE, LOST, ConfigError)

    def write(self, state: Mapping[str, Any]) -> None:
        write_state(self.path / STATE, state)

    def run(self, number: int) -> RunDir:
        return RunDir(self.path / run_name(number))

    def fit(self, number: int) -> Path:
        return self.path / "fits" / run_name(number)


class Stop(BaseException):
    """A signal ended the training of a round after it was saved; `code` is the exit code of the process."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def run(loop: Loop, path: Path, console: Console) -> int:
    """Make the rounds that are not made yet, and the page; returns 0 or the code with which a signal ends it."""
    first = training(loop, path, 1)
    folder = LoopFolder(first.output_dir)
    lock = folder.path / "locks" / "loop.json"
    with Signals(again=AGAIN), claim(lock) as ours:
        if not ours:
            who = owner.place if (owner := holder(lock)) else "another driver"
            raise ClusterError(f"{folder.path}: {who} is at this loop. Wait for its end, or rename this one.")
        try:
            if loop.build is not None and not folder.run(1).manifest.exists():
                console.rule("[bold]data", align="left")
                make(build_spec(loop.build, path), console)
            _rounds(loop, path, first, folder, console)
        except Stop as stopped:
            return stopped.code
        page = write_page(loop, path, folder)
        console.print(f"report      {escape(str(page))}", soft_wrap=True)
    return 0


def _rounds(loop: Loop, path: Path, first: Config, folder: LoopFolder, console: Console) -> None:
    judged = evaluation(loop, path, first, 1)
    state = _begun(folder, fixed(loop, first, judged), partial(completed, config=first, judged=judged))
    while not (ended := _ended(loop, state["rounds"])):
        number = len(state["rounds"]) + 1
        done = f" of {loop.rounds}"
        console.rule(f"[bold]round {number}{done}", align="left")
        config = _config(loop, path, number, state["rounds"], folder)
        if number > 1 and not RunDir(config.run_dir).finished:
            refuse_other(folder.run(1), _facts(config))
        _train(config)
        fitted = _judged(loop, path, first, folder, number, console)
        state["rounds"].append(_decided(loop, config, folder, number, fitted))
        state["ended"] = None
        folder.write(state)
        write_page(loop, path, folder)
        show(state["rounds"][-1], console)
    if state.get("ended") != ended:
        folder.write(state | {"ended": ended})
    console.print(f"[bold]ended:[/] {escape(ended)}", soft_wrap=True)


def _begun(
    folder: LoopFolder, kept: dict[str, Any], complete: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> dict[str, Any]:
    """The state to go on from. ConfigError: the loop began otherwise, so that its rounds could not be compared.

    `complete` adds what this version knows and the one that began the loop may not have known."""
    state, kept = folder.state, json_safe(kept)
    if not state or not (state["rounds"] or folder.run(1).manifest.exists()):
        folder.path.mkdir(parents=True, exist_ok=True)
        state = {"fixed": kept, "rounds": [], "ended": None}
        folder.write(state)
    elif changed := _differing(json_safe(complete(state["fixed"])), kept):
        lines = "\n  ".join(f"{key}: was {before!r}, now {after!r}" for key, before, after in changed)
        raise ConfigError(
            f"{folder.path}: this loop began otherwise, and its rounds are compared with each other. Changed since:\n  "
            f"{lines}\nRestore these, or give the loop another name. `rounds`, `patience` and `fit` may change."
        )
    return state


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """As `differences`, less the keys of training that change no result."""
    free = tuple(f"training.{key}" for key in may_change(now.get("training", {}).get("training", {})))
    return [change for change in differences(before, now) if not change[0].startswith(free)]


def _ended(loop: Loop, rounds: list[dict[str, Any]]) -> str:
    """Why there is no further round; empty where there is one."""
    if not rounds:
        return ""
    last = rounds[-1]
    if not last["moves"] or set(last["moves"].values()) == {"kept"}:
        return f"round {len(rounds)} left nothing to change: the weakest dimension is at the least tolerance"
    since = next((n for n, r in enumerate(reversed(rounds)) if r["gained"]), len(rounds))
    if since >= loop.patience:
        words = "the last round" if since == 1 else f"the last {since} rounds"
        return f"{words} did not raise the weakest ability clearly (probability of a gain below 0.95)"
    if len(rounds) >= loop.rounds:
        return f"{loop.rounds} rounds are used"
    return ""


def _config(loop: Loop, path: Path, number: int, rounds: list[dict[str, Any]], folder: LoopFolder) -> Config:
    """All rounds train from the base model, on the same batches and under the same date: only tolerances differ."""
    if number == 1:
        from dpeer.training.prepare import prepare

        config = training(loop, path, 1)
        dimensions = prepare(config).train.dimensions
        given = config.objective.constraint.tolerance
        found = given if isinstance(given, dict) else dict.fromkeys(dimensions, given)
        return training(loop, path, 1, {d: found.get(d, math.inf) for d in dimensions})
    config = training(loop, path, number, _given(rounds[-1]["next"]))
    day = config.data.date or began(folder.run(1))
    return config.model_copy(update={"data": config.data.model_copy(update={"date": day})})


def _facts(config: Config) -> dict[str, Any]:
    from dpeer.training.prepare import prepare

    return prepare(config).facts


def refuse_other(first: RunDir, facts: Mapping[str, Any]) -> None:
    """ConfigError: what lies at the places of data and models is no longer what round 1 was trained with, so that a
    gain could not be laid to tolerances."""
    began = first.read_manifest()
    if changed := differences({key: began.get(key) for key in facts}, json_safe(facts)):
        named = ", ".join(key for key, *_ in changed)
        raise ConfigError(
            f"{first.path.parent}: data or models are no longer those of round 1 ({named}), and rounds are compared "
            "with each other. Restore them, or give the loop another name."
        )


def _train(config: Config) -> None:
    from dpeer.launcher.cluster import connect
    from dpeer.launcher.group import Groups
    from dpeer.launcher.train import train

    files = RunDir(config.run_dir)
    if files.finished:
        files.check_resumable(config, {})
        return
    with connect(config.cluster.address):
        groups = Groups(config)
        try:
            if code := train(config, groups, resume=files.manifest.exists()):
                raise Stop(code)
        finally:
            groups.close()


def _judged(loop: Loop, path: Path, first: Config, folder: LoopFolder, number: int, console: Console) -> Posterior:
    """The ratings of base and all rounds so far, and one fit to all of them: rounds stand on one scale by that."""
    from dpeer.eval.generate import generate
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.types import Options
    from dpeer.eval.judge import judge
    from dpeer.launcher.cluster import connect
    from dpeer.launcher.fitting import run_fit

    config = evaluation(loop, path, first, number)
    link = partial(connect, config.farm.address)
    generate(config, link, console=console)
    ratings, place = judge(config, link, console=console), folder.fit(number)
    options = Options(warmup=loop.fit.warmup, draws=loop.fit.draws, seed=loop.fit.seed)
    made = {"ratings": sha256(ratings.read_bytes()).hexdigest(), "options": asdict(options)}
    if not stamped(place / "made.json", made):
        result, _ = run_fit(ratings, place, options, BASE, (), console)
        _refuse_unsound(result, place)
        write_state(place / "made.json", made)
    return load(place)


def _refuse_unsound(result: Result, place: Path) -> None:
    if not result.gate["green"]:
        raise DpeerError(
            f"{place}: this fit has not passed its diagnostics ({'; '.join(result.gate['reasons'])}), so no tolerance "
            f"follows from it. {' '.join(result.gate['advice'])} Give the loop more draws (fit.draws, fit.warmup) or "
            "more prompts, and start it again: what was trained and judged is kept."
        )


def abilities(posterior: Posterior, model: str, dimensions: tuple[str, ...]) -> Floats:
    """Draws [S, D] of a model's abilities mu + theta in logits: comparable between the models of one fit."""
    r = posterior.ratings
    columns = [r.dimensions.index(d) for d in dimensions]
    theta = posterior.flat("theta")[:, r.models.index(model)] + posterior.flat("mu")
    return theta[:, columns]


def _decided(loop: Loop, config: Config, folder: LoopFolder, number: int, posterior: Posterior) -> dict[str, Any]:
    """What a round reached, and the tolerances of the next."""
    import torch

    from dpeer.objective.preference import edge_loss

    given = config.objective.constraint.tolerance
    assert isinstance(given, dict)
    dimensions = tuple(d for d in posterior.ratings.dimensions if d in given)
    if not dimensions:
        raise ConfigError(
            f"The judges rate {', '.join(posterior.ratings.dimensions)}, the data have {', '.join(given)}: no "
            "dimension is in both, so no tolerance follows from an ability. Give the evaluation a rubric with these."
        )
    found = levels(folder.run(number).ledger)
    mine = abilities(posterior, run_name(number), dimensions)
    lowest, stronger = weakness(mine)
    reached = {
        d: Reached(given[d], found.loss[d], found.se[d], float(lowest[k]), float(stronger[k]))
        for k, d in enumerate(dimensions)
    }
    untrained = float(edge_loss(torch.zeros(1, dtype=torch.float64), config.objective))
    following = next_tolerances(reached, loop.rule, untrained)
    earlier = [abilities(posterior, run_name(n), dimensions) for n in range(1, number)]
    best = max(earlier, key=lambda draws: float(draws.min(axis=1).mean()), default=None)
    row: dict[str, Any] = json_safe(
        {
            "round": number,
            "tolerance": given,
            "level": found.loss,
            "error": found.se,
            "weakest": {d: r.weakest for d, r in reached.items()},
            "stronger": {d: r.stronger for d, r in reached.items()},
            "gained": best is None or gained(mine, best),
            "next": given | following.tolerance,
            "moves": following.moves,
        }
    )
    return row


def show(row: Mapping[str, Any], console: Console) -> None:
    for d, move in row["moves"].items():
        level, now, after = row["level"][d], row["tolerance"][d], row["next"][d]
        weakest = f", weakest with probability {row['weakest'][d]:.2f}" if row["weakest"][d] >= 0.5 else ""
        reached = "unknown" if level is None else f"{level:.3f}"
        words = f"tolerance {now} kept" if move == "kept" else f"tolerance {move}, {now} to {after}"
        console.print(f"{escape(d)}: level {reached}{weakest}; {words}", soft_wrap=True)


def write_page(loop: Loop, path: Path, folder: LoopFolder) -> Path:
    """The page of all finished rounds; abilities are those of the last fit, which has all of them."""
    from dpeer.eval.irt.fit import load
    from dpeer.eval.report.loop import Rounds
    from dpeer.eval.report.loop import write_page as write
    from dpeer.report.sweep_choice import corrected

    state = folder.state
    rows, config = state["rounds"], training(loop, path, 1)
    posterior = load(folder.fit(len(rows)))
    dimensions = tuple(rows[-1]["moves"])
    names = (BASE, *(run_name(row["round"]) for row in rows))  # the fit has them in the order of letters
    found = {name: abilities(posterior, name, dimensions) for name in names}
    best = max((row["round"] for row in rows), key=lambda n: float(found[run_name(n)].min(axis=1).mean()))
    held = config.objective.constraint.model_copy(update={"tolerance": _given(rows[best - 1]["tolerance"])})
    objective = config.objective.model_copy(update={"constraint": held})
    verdicts = corrected(folder.run(best).path, objective, len(rows))
    return write(
        Rounds(loop.name, dimensions, found, rows, run_name(best), verdicts, state["ended"] or ""), folder.path
    )


def _given(tolerance: Mapping[str, Any]) -> dict[str, float]:
    """Tolerances as they were before JSON."""
    return {d: math.inf if t == "inf" else float(t) for d, t in tolerance.items()}
