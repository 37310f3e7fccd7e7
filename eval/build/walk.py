"""How far a record is: from what is on disk to the calls, the ratings or the end that come next. Pure functions.

Nothing but the rows remembers the state of a build, so one that is stopped anywhere goes on from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dpeer.eval.build.asking import filled, read, template
from dpeer.eval.build.slots import Slot
from dpeer.eval.build.spec import BuildSpec
from dpeer.eval.build.texts import Ask
from dpeer.eval.store.parts import content_id
from dpeer.eval.streak import Row

GOLDEN = "golden"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A response that verifiers rate. kind: golden, or reject_D."""

    id: str
    slot: Slot
    kind: str
    prompt: str
    text: str
    attempt: int
    golden: Candidate | None = None
    """Of a reject."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a text. kind: in words that are counted. told: what the generator is told, if anything."""

    kind: str
    told: str = ""


@dataclass(frozen=True, slots=True)
class Made:
    """A verified record."""

    slot: Slot
    context: str
    trigger: str
    prompt: str
    responses: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class State:
    """What a record needs next; nothing more once it is made or dropped. dropped: (stage, kind of fault)."""

    asks: tuple[Ask, ...] = ()
    rate: tuple[Candidate, ...] = ()
    made: Made | None = None
    dropped: tuple[str, str] | None = None


Get = Callable[[Ask], Row | None]
Judged = Callable[[Candidate], tuple[Fault, ...] | None]
"""Faults of a response by the ratings of verifiers; None: not rated yet."""


@dataclass(frozen=True, slots=True)
class Walker:
    spec: BuildSpec
    bases: Mapping[str, Mapping[str, Any]]
    get: Get
    judged: Judged

    def state(self, slot: Slot) -> State:
        try:
            scene, _ = self._text(slot, "scene", {"seed": slot.seed.text})
            asked, _ = self._text(slot, "prompt", {"seed": slot.seed.text, **scene})
            return self._responses(slot, scene, asked["prompt"])
        except _Wanting as wanting:
            return wanting.state

    def _responses(self, slot: Slot, scene: Mapping[str, str], prompt: str) -> State:
        """Golden and rejects, attempt by attempt: a golden that fails is written anew with all of its rejects."""
        material = {**scene, "prompt": prompt}
        fault, previous, first = None, "", 0
        while True:
            written, attempt = self._text(slot, "golden", material | {"previous": previous}, fault, first)
            golden = self._candidate(slot, GOLDEN, prompt, written["response"], attempt)
            rejects = self._rejects(slot, golden)
            if (faults := self.judged(golden)) is None:
                return State(rate=(golden, *rejects))
            if faults:
                if attempt >= self.spec.retries:
                    return State(dropped=("golden", faults[0].kind))
                fault, previous, first = faults[0], golden.text, attempt + 1
                continue
            return self._verified(slot, scene, prompt, golden, rejects)

    def _rejects(self, slot: Slot, golden: Candidate) -> list[Candidate]:
        """The first reject of each dimension that is sound in form. Raises what is wanting of all of them at once."""
        asks: list[Ask] = []
        found: list[Candidate] = []
        for dimension in slot.mask:
            try:
                found.append(self._reject(slot, golden, dimension))
            except _Wanting as wanting:
                if not wanting.state.asks:
                    raise
                asks += wanting.state.asks
        if asks:
            raise _Wanting(State(tuple(asks)))
        return found

    def _verified(
        self, slot: Slot, scene: Mapping[str, str], prompt: str, golden: Candidate, rejects: list[Candidate]
    ) -> State:
        """Rejects that verifiers do not uphold are written anew."""
        asks: list[Ask] = []
        rate: list[Candidate] = []
        kept: list[Candidate] = [golden]
        for dimension, reject in zip(slot.mask, rejects, strict=True):
            while faults := self.judged(reject):
                if reject.attempt >= self.spec.retries:
                    return State(dropped=("reject", faults[0].kind))
                try:
                    reject = self._reject(slot, golden, dimension, faults[0], reject.text, reject.attempt + 1)
                except _Wanting as wanting:
                    if wanting.state.dropped:
                        return wanting.state
                    asks += wanting.state.asks
                    break
            else:
                rate += [reject] if faults is None else []
            kept.append(reject)
        if asks or rate:
            return State(tuple(asks), tuple(rate))
        return State(made=Made(slot, scene["context"], scene["trigger"], prompt, tuple(kept)))

    def _reject(
        self,
        slot: Slot,
        golden: Candidate,
        dimension: str,
        fault: Fault | None = None,
        previous: str = "",
        first: int = 0,
    ) -> Candidate:
        material = {"prompt": golden.prompt, "golden": golden.text}
        while True:
            written, attempt = self._text(slot, "reject", material | {"previous": previous}, fault, first, dimension)
            reject = self._candidate(slot, f"reject_{dimension}", golden.prompt, written["response"], attempt, golden)
            if (fault := misshapen(reject, golden, self.spec.length_ratio)) is None:
                return reject
            if attempt >= self.spec.retries:
                raise _Wanting(State(dropped=("reject", fault.kind)))
            previous, first = reject.text, attempt + 1

    def _text(
        self,
        slot: Slot,
        stage: str,
        material: Mapping[str, str],
        fault: Fault | None = None,
        first: int = 0,
        dimension: str = "",
    ) -> tuple[dict[str, str], int]:
        """The first usable text from an attempt on, and which it is. Raises _Wanting: it is to be asked for, or all
        attempts are spent."""
        kind = ""
        for attempt in range(first, self.spec.retries + 1):
            words = self._words(slot, dimension, fault)
            segments = filled(template(stage), words, {"previous": "", **material})
            ask = Ask(slot, stage, dimension, attempt, segments, self.bases[slot.generator])
            row = self.get(ask)
            if row is None:
                raise _Wanting(State((ask,)))
            kind = row["status"]
            if kind in ("ok", "unparsed"):
                content = read(row["text"], template(stage).answers)
                if not isinstance(content, str):
                    return content, attempt
                kind, fault = f"unparsed: {content}", Fault("unparsed", f"{content}.")
        raise _Wanting(State(dropped=(stage, kind)))

    def _words(self, slot: Slot, dimension: str, fault: Fault | None) -> dict[str, str]:
        others = [d for d in slot.mask if d != dimension]
        again = f"An earlier attempt cannot be used: {fault.told} Write it anew." if fault and fault.told else ""
        return {
            "dimensions": self._told(slot.mask),
            "kept": self._told(others) or "Everything else.",
            "failed": self._told([dimension]) if dimension else "",
            "language": slot.language,
            "again": again,
        }

    def _told(self, names: Iterable[str]) -> str:
        """Dimensions as a prompt tells them."""
        return "\n".join(
            f"- {t.title or name}: {t.definition.strip()}\n  It is there when: {t.satisfies.strip()}\n  It is missing "
            f"when: {t.fails.strip()}"
            for name, t in ((n, self.spec.dimensions[n]) for n in names)
        )

    def _candidate(
        self, slot: Slot, kind: str, prompt: str, text: str, attempt: int, golden: Candidate | None = None
    ) -> Candidate:
        beside = {"golden": golden.id} if golden else {}
        told = content_id(record=slot.id, kind=kind, prompt=prompt, response=text, attempt=attempt, **beside)
        return Candidate(told, slot, kind, prompt, text, attempt, golden)


class _Wanting(Exception):
    """The walk ends here, for now or for good."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state


def misshapen(reject: Candidate, golden: Candidate, most: float) -> Fault | None:
    """What is wrong with a reject before anybody rates it; None: nothing."""
    if reject.text.split() == golden.text.split():
        return Fault(f"{reject.kind}: same text as the golden", "it is the same text as the good answer.")
    ratio = len(reject.text) / len(golden.text)
    if not 1 / most <= ratio <= most:
        told = f"it is {ratio:.1f} times as long as the good answer; keep its length."
        longer = "longer" if ratio > 1 else "shorter"
        return Fault(f"{reject.kind}: more than {most:g} times {longer} than the golden", told)
    return None
