"""Pairwise judge prompts: two responses to one prompt, fenced as untrusted data, then the question which is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from dpeer.data.schema import Message
from dpeer.eval.questions.prompting import TAG, TERSE_TAG, Mode, Segment, fence_tag, reference_segments, visible
from dpeer.eval.questions.readout import Reading, read_logprobs, read_structured
from dpeer.eval.questions.rubric import Rubric
from dpeer.eval.questions.shown import PLAIN, RESPONSE, Shown
from dpeer.eval.store.schema import OUTCOMES, PLACES

CHOICES = ("A", "B", "C")
"""The first response, the second, a tie: the letters of MT-bench (Zheng et al. 2023, arXiv 2306.05685)."""
_OUTCOMES = dict(
    zip(PLACES, (dict(zip(CHOICES, (1, -1, 0), strict=True)), dict(zip(CHOICES, (-1, 1, 0), strict=True))), strict=True)
)
"""Score of a choice, by where the response stood for which it counts."""


def pair_segments(
    rubric: Rubric,
    prompt: str,
    first: str,
    second: str,
    dimension: str,
    criterion: str,
    mode: Mode,
    shown: tuple[Shown, Shown] = (PLAIN, PLAIN),
) -> tuple[Segment, ...]:
    """The user message of one comparison: fence, prompt, divider, response A, divider, response B, fence, question.

    Of conversations (`shown` of the first response and of the second) what both have in common stands once, then how
    each went on; a reference answer follows behind fences of its own. All but the last segment depend on rubric and
    texts only; fences as in `judge_segments`. Raises ConfigError for a dimension or criterion that the rubric lacks.
    """
    task = (_terse_question if rubric.terse else _question)(rubric, dimension, criterion, mode, shown[0])
    plain = [(Message("user", prompt), Message(RESPONSE, response)) for response in (first, second)]
    said = [list(own.messages or other) for own, other in zip(shown, plain, strict=True)]
    common = _common(*said)
    talk = [("", message) for message in said[0][:common]]
    talk += [(side, message) for side, own in zip(CHOICES, said, strict=False) for message in own[common:]]
    texts = [visible(message.content) for _, message in talk]
    reference = visible(shown[0].reference)
    tag = fence_tag([*texts, *([reference] if reference else [])], TERSE_TAG if rubric.terse else TAG)
    dividers, closing = _terse_fences(talk, tag) if rubric.terse else _fences(rubric, shown[0], talk, tag)
    pieces = [s for d, t in zip(dividers, texts, strict=True) for s in (Segment(d, True), Segment(t, False))]
    return (*pieces, Segment(closing, True), *reference_segments(rubric, reference, tag), Segment(task, True))


def _common(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many messages two conversations begin with in common, before any that is compared."""
    same = (a == b and a.role != RESPONSE for a, b in zip(first, second, strict=False))
    return sum(1 for _ in takewhile(bool, same))


def _fences(rubric: Rubric, shown: Shown, talk: Sequence[tuple[str, Message]], tag: str) -> tuple[list[str], str]:
    """What stands before each message, and behind the last."""
    words = rubric.words
    kind, told = ("conversation", words.pair_conversation) if shown.messages else ("exchange", words.pair)
    role = f"{rubric.role}\n\n" if rubric.role else ""
    lines = [f"<{message.role}{f'-{side}' if side else ''}-{tag}>\n" for side, message in talk]
    opening = f"{role}{told.format(tag=tag)}\n\n<{kind}-{tag}>\n{lines[0] if shown.messages else ''}"
    return [opening, *(f"\n{line}" for line in lines[1:])], f"\n</{kind}-{tag}>\n"


def _terse_fences(talk: Sequence[tuple[str, Message]], tag: str) -> tuple[list[str], str]:
    return [f"<{tag}>", *(f"|{tag}|" for _ in talk[1:])], f"</{tag}>"


def _question(rubric: Rubric, dimension: str, criterion: str, mode: Mode, shown: Shown) -> str:
    words, about = rubric.words, rubric.dimension(dimension)
    question, anchors = shown.criteria, dict[int, str]()
    if not shown.instead:
        content = rubric.criterion(dimension, criterion)
        question, anchors = content.question, content.anchors
    also = [words.item.format(criteria=shown.criteria)] if shown.criteria and not shown.instead else []
    looks = words.looks.format(worst=rubric.scale[0], best=rubric.scale[-1])
    answer = (words.letter if mode == "logprob" else words.json_pair).format(listed=words.choices)
    return "\n".join(
        [
            "",
            (words.compare_all if shown.whole else words.compare_last).format(title=about.title),
            *([about.description] if about.description else []),
            "",
            question,
            *also,
            *([looks] if anchors else []),
            *(f"{score}: {anchors[score]}" for score in rubric.scale if anchors),
            "",
            f"{words.which} {answer}",
        ]
    )


def _terse_question(rubric: Rubric, dimension: str, criterion: str, mode: Mode, shown: Shown) -> str:
    answer = "" if mode == "logprob" else ' {"rationale", "better"}'
    return f"{rubric.criterion(dimension, criterion).question} A-C{answer}"


def lowest_first(logprobs: Sequence[float], place: str) -> tuple[float, ...]:
    """Log-probabilities of CHOICES as those of OUTCOMES, for the response that stood at `place`."""
    if len(logprobs) != len(CHOICES):
        return tuple(logprobs)
    by_outcome = {_OUTCOMES[place][choice]: value for choice, value in zip(CHOICES, logprobs, strict=True)}
    return tuple(by_outcome[outcome] for outcome in OUTCOMES)


def read_pair_logprobs(logprobs: Sequence[float], place: str, min_mass: float, draw: float | None = None) -> Reading:
    """Reading of the log-probability of each of CHOICES, for the response that stood at `place`. Where several are
    equally the most probable the score is a tie, whichever response is asked about."""
    return read_logprobs(lowest_first(logprobs, place), OUTCOMES, min_mass, draw, undecided=0)


def read_pair_structured(text: str | None, finish_reason: str | None, place: str) -> Reading:
    """Reading of a JSON answer with the keys rationale and better; as `read_structured`."""
    reading = read_structured(text, finish_reason, CHOICES)
    return reading if reading.choice is None else replace(reading, score=_OUTCOMES[place][reading.choice])
