"""The loop of a build: what records need is asked for, rated or given up, until every mask is full or out of seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Console

from dpeer.data.duplicates import Index
from dpeer.errors import DataError
from dpeer.escape import markup
from dpeer.eval.build.gate import refused, together
from dpeer.eval.build.slots import Slot, key_of, load_seeds, planned
from dpeer.eval.build.spec import JOIN, BuildSpec
from dpeer.eval.build.texts import RETRIED, TEXTS, Texts, bases, texts_folder
from dpeer.eval.build.verify import Verdicts, refuse_related, rubric_of, verification_plan, write_rubric
from dpeer.eval.build.walk import Candidate, Fault, Made, State, Walker
from dpeer.eval.config import EvalConfig
from dpeer.eval.judge import RETRIED as UNRATED
from dpeer.eval.judge import rate
from dpeer.eval.plan import Plan, ratings_folder
from dpeer.eval.quality.review import filled_in
from dpeer.eval.quality.verify import Verification
from dpeer.eval.run import Connect
from dpeer.eval.store.parts import drop_rows, lock

Place = tuple[str, tuple[str, ...]]
"""A split and a mask."""
FIRST = ("test", "dual", "train")
"""Which split keeps a prompt that two have."""


@dataclass(frozen=True, slots=True)
class Dropped:
    slot: Slot
    stage: str
    kind: str


@dataclass(frozen=True, slots=True)
class Built:
    """All that a build has come to. short: places with fewer records than wanted, (there, wanted)."""

    spec: BuildSpec
    seeds: int
    left_out: Mapping[str, int]
    records: Mapping[Place, tuple[Made, ...]]
    dropped: tuple[Dropped, ...]
    short: Mapping[Place, tuple[int, int]]
    verdicts: Verdicts
    candidates: tuple[Candidate, ...]
    ratings: pd.DataFrame
    texts: pd.DataFrame
    together: Verification | None
    """All ratings of made records in one model; None without any."""
    sheets: tuple[pd.DataFrame, ...]
    """What people have answered."""
    notes: tuple[str, ...]

    @property
    def made(self) -> list[Made]:
        """The records that are kept."""
        return [one for ones in self.records.values() for one in ones]

    @property
    def drops(self) -> dict[tuple[str, str], int]:
        """(stage, reason) -> records, most first."""
        return dict(Counter((d.stage, d.kind) for d in self.dropped).most_common())


@dataclass
class _Verifying:
    """Candidates so far, and what verifiers say of them."""

    spec: BuildSpec
    connect: Connect
    console: Console
    candidates: dict[str, Candidate] = field(default_factory=dict)
    verdicts: Verdicts | None = None
    ratings: pd.DataFrame = field(default_factory=pd.DataFrame)

    def rate(self, more: Sequence[Candidate]) -> None:
        self.candidates.update((c.id, c) for c in more)
        every = list(self.candidates.values())
        voters = self.verdicts.scales if self.verdicts else None

        def plan(cfg: EvalConfig) -> Plan:
            return verification_plan(cfg, self.spec, every, voters)

        table = rate(self.spec.evaluation, self.connect, False, self.console, plan)
        self.ratings = pd.read_parquet(table)
        self.verdicts = Verdicts.of(self.spec, self.ratings)

    def judged(self, candidate: Candidate) -> tuple[Fault, ...] | None:
        assert self.verdicts is not None, "checks are rated before anything is written"
        return self.verdicts.faults(candidate)


def prepare(spec: BuildSpec, limit: int | None = None) -> tuple[dict[Place, list[Slot]], int, dict[str, int]]:
    """The records that may be made, per split and mask, how many seeds there are, and which were left out why.

    `limit`: at most so many of each mask and split are wanted.
    """
    seeds, left_out = load_seeds(spec)
    return planned(spec, seeds, limit), len(seeds), left_out


def limited(spec: BuildSpec, limit: int | None) -> BuildSpec:
    if limit is None:
        return spec
    masks = {
        JOIN.join(mask): counts.model_copy(update={s: min(limit, counts.of(s)) for s in FIRST})
        for mask, counts in spec.wanted.items()
    }
    return spec.model_copy(update={"masks": masks})


def build(
    spec: BuildSpec,
    connect: Connect,
    limit: int | None = None,
    retry_errors: bool = False,
    answers: Sequence[Path] = (),
    console: Console | None = None,
) -> Built:
    """Make what is missing, until every mask has its records or no seed is left to try.

    answers: sheets that people have filled; what they say fails is left out, and replaced.
    Raises DataError where no verifier tells known good from known bad responses, before anything is written, and
    ClusterError as `dpeer.eval.run.execute` does. The same call goes on where a stopped one was.
    """
    console = console or Console(highlight=False)
    with lock(texts_folder(spec)):
        write_rubric(spec)
        rubric_of(spec)
        notes = refuse_related(spec)
        slots, seeds, left_out = prepare(spec, limit)
        if retry_errors:
            dropped = drop_rows(texts_folder(spec), RETRIED, TEXTS) + drop_rows(
                ratings_folder(spec.evaluation), UNRATED
            )
            console.print(f"{dropped} failed or truncated texts and ratings are asked for again.")
        verifying = _Verifying(spec, connect, console)
        verifying.rate(())
        assert verifying.verdicts is not None
        verifying.verdicts.refuse_if_none()
        notes += [
            f"Refused: {verifying.verdicts.words(key)}; it has no vote there." for key in verifying.verdicts.refused
        ]
        if answers:
            told = ", ".join(path.name for path in answers)
            notes.append(f"People have read responses of these records ({told}); they have the last word.")
        for note in notes:
            console.print(f"[yellow]note:[/] {markup(note)}", soft_wrap=True)
        sheets = [filled_in(path) for path in answers]
        texts = Texts(spec)
        walker = Walker(spec, bases(spec), texts.get, verifying.judged)
        wanted = {place: limited(spec, limit).wanted[place[1]].of(place[0]) for place in slots}
        tried = dict(wanted)
        while True:
            active = [slot for place, every in slots.items() for slot in every[: tried[place]]]
            states = _settle(walker, texts, verifying, active, connect, console)
            made = [state.made for state in states.values() if state.made]
            found, unread = together(verifying.verdicts, made, sheets)
            kept, again = _distinct(slots, states, refused(found))
            more = {p: further(tried[p], wanted[p] - len(kept[p]), len(slots[p])) for p in slots}
            if more == tried:
                break
            replaced = sum(more.values()) - sum(tried.values())
            console.print(f"{replaced:,} records are tried anew from other seeds.", soft_wrap=True)
            tried = more
    gone = [Dropped(s, *st.dropped) for s, st in states.items() if st.dropped]
    notes += _about_others(answers, sheets, unread, console)
    short = {p: (len(kept[p]), n) for p, n in wanted.items() if len(kept[p]) < n}
    kept, surplus = _cut(kept, wanted, "surplus", "more than are wanted")
    kept, cut = _balanced(spec, kept, wanted)
    return Built(
        spec,
        seeds,
        left_out,
        kept,
        (*gone, *again, *surplus, *cut),
        short,
        verifying.verdicts,
        tuple(verifying.candidates.values()),
        verifying.ratings,
        texts.table,
        found,
        tuple(sheets),
        tuple(notes),
    )


def further(tried: int, lacking: int, most: int) -> int:
    """How many records to try next. Never fewer: what is refused among these may hold among more, and the other way
    round, so that a build which went back could do so for ever."""
    return max(tried, min(most, tried + lacking))


def _settle(
    walker: Walker, texts: Texts, verifying: _Verifying, slots: Sequence[Slot], connect: Connect, console: Console
) -> dict[Slot, State]:
    """Until every one of the records is made or dropped: write what can be written, then rate what is written."""
    while True:
        states = {slot: walker.state(slot) for slot in slots}
        asks = {ask.id: ask for state in states.values() for ask in state.asks}
        rate = {c.id: c for state in states.values() for c in state.rate}
        if asks:
            stages = Counter(ask.stage + (" again" if ask.attempt else "") for ask in asks.values())
            console.print("to write: " + ", ".join(f"{n:,} {stage}" for stage, n in stages.items()), soft_wrap=True)
            texts.ask(asks.values(), connect, console)
        elif rate:
            console.print(f"to verify: {len(rate):,} responses", soft_wrap=True)
            verifying.rate(list(rate.values()))
        else:
            return states


def _distinct(
    slots: Mapping[Place, Sequence[Slot]], states: Mapping[Slot, State], refused: Mapping[str, str]
) -> tuple[dict[Place, tuple[Made, ...]], list[Dropped]]:
    """Made records that are not refused and whose prompts differ; and those that are, or nearly repeat one before.

    Test comes before dual and train, so that what leaks is dropped from what is trained on.
    """
    order = sorted(slots, key=lambda place: FIRST.index(place[0]))
    made = [
        (place, state.made) for place in order for slot in slots[place] if (state := states.get(slot)) and state.made
    ]
    index, owner = Index(), dict[str, str]()  # of kept prompts only: many that are alike would pass for boilerplate
    kept: dict[Place, list[Made]] = {place: [] for place in slots}
    dropped = []
    for place, one in made:
        if one.slot.id in refused:
            dropped.append(Dropped(one.slot, "verification", refused[one.slot.id]))
            continue
        key = key_of(one.prompt)
        if found := ({key} & owner.keys()) | index.alike(key):
            of = {owner[k] for k in found}
            kind = (
                "nearly repeats a prompt" if of == {place[0]} else f"nearly repeats a prompt of {min(of - {place[0]})}"
            )
            dropped.append(Dropped(one.slot, "duplicates" if of == {place[0]} else "leakage", kind))
            continue
        owner[key] = place[0]
        index.add(key)
        kept[place].append(one)
    return {place: tuple(ones) for place, ones in kept.items()}, dropped


def _balanced(
    spec: BuildSpec, kept: Mapping[Place, tuple[Made, ...]], wanted: Mapping[Place, int]
) -> tuple[dict[Place, tuple[Made, ...]], list[Dropped]]:
    """With `balance: cut` every mask of a split is cut to the share that its worst mask has reached."""
    if spec.balance == "report":
        return dict(kept), []
    share = {s: min(len(kept[p]) / n for p, n in wanted.items() if p[0] == s) for s, _ in kept}
    most = {place: int(share[place[0]] * wanted[place] + 1e-9) for place in kept}
    return _cut(kept, most, "balance", "above the share of the worst mask")


def _cut(
    kept: Mapping[Place, tuple[Made, ...]], most: Mapping[Place, int], stage: str, kind: str
) -> tuple[dict[Place, tuple[Made, ...]], list[Dropped]]:
    """The first records of each place, and those above `most`."""
    lost = [Dropped(one.slot, stage, kind) for place, ones in kept.items() for one in ones[most[place] :]]
    return {place: ones[: most[place]] for place, ones in kept.items()}, lost


def _about_others(
    paths: Sequence[Path], sheets: Sequence[pd.DataFrame], unread: Sequence[int], console: Console
) -> list[str]:
    """Notes on answers that are about no text of this run. DataError: all of a sheet's are."""
    told = []
    for path, sheet, lost in zip(paths, sheets, unread, strict=True):
        if lost == len(sheet):
            raise DataError(
                f"{path}: none of its {lost:,} answers is about a text of this build: it belongs to another one, or "
                "all texts were written anew since. Write a new sheet with --review; nothing was written over."
            )
        if lost:
            told.append(
                f"{lost:,} of {len(sheet):,} answers of {path.name} are about texts that are none of this run's (fewer "
                "records are asked for, or they were written anew since): they say nothing here."
            )
            console.print(f"[yellow]note:[/] {markup(told[-1])}", soft_wrap=True)
    return told


def refuse_nothing_made(built: Built) -> None:
    """DataError where not a single record is left."""
    if any(built.records.values()):
        return
    reasons = "; ".join(f"{n:,} {stage}: {kind}" for (stage, kind), n in list(built.drops.items())[:5])
    raise DataError(
        f"no record is left ({reasons}). The texts are in {texts_folder(built.spec)} and dropped.csv says what became "
        "of each record; read some, and take another generator, or more retries."
    )
