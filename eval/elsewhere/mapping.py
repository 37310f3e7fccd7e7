"""Which of a user's columns hold what: the mapping, checked, and what to write where it cannot work."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from dpeer.data.read import Row
from dpeer.errors import ConfigError
from dpeer.eval.elsewhere.labels import sampled
from dpeer.eval.elsewhere.verdicts import pair_options, twin
from dpeer.eval.store.columns import empty
from dpeer.eval.store.scores import halves, suspected

REQUIRED = ("model", "item", "judge")
DEFAULTS = {"dimension": "overall", "criterion": "overall", "sample": "0"}
"""What a table may leave out, and what it means then."""
OPTIONAL = (*DEFAULTS, "response_id", "model_family", "judge_family", "response", "rationale")
SCORE, JUDGE = "score", "judge"
OTHER, WINNER = "other_model", "winner"
OTHERS = (OTHER, "other_response", "other_response_id", "other_model_family")
"""Of the response that one of `model` was compared with."""
KNOWN = (*REQUIRED, *OPTIONAL, SCORE, *OTHERS, WINNER)
ALIASES = {
    "model": ("system", "model_name", "assistant", "bot", "llm", "candidate"),
    "item": ("prompt", "question", "query", "instruction", "task", "prompt_id", "question_id", "item_id", "id"),
    "judge": ("rater", "annotator", "evaluator", "reviewer", "labeler", "labeller", "coder", "worker", "worker_id"),
    "dimension": ("aspect", "trait", "attribute"),
    "score": ("rating", "label", "verdict", "stars", "grade", "points"),
    "response": ("answer", "output", "completion"),
    "rationale": ("comment", "comments", "reason", "explanation", "notes"),
}
"""Names that tables made elsewhere use for our columns."""
NUMERIC, MOST_SCORES = 0.6, 31
"""A column holds scores where this share of its labels are numbers, and they have at most so many values."""
WINNERS = re.compile(r"\[\[[abc]\]\]|(model|response|answer|system|assistant)[ _]?(a|b|1|2)|tie\b.*", re.IGNORECASE)


class MappingError(ConfigError):
    """A mapping that cannot work; `options` are those of a command that can, where that is known; `final`: no
    other reading of the same columns can."""

    def __init__(self, problem: str, options: Sequence[str] = (), final: bool = False) -> None:
        self.problem, self.options, self.final = problem, tuple(options), final
        super().__init__(problem)


@dataclass(frozen=True, slots=True)
class Plan:
    """columns: ours -> theirs. scores: per column of scores what it says of each: judge, dimension, criterion."""

    columns: dict[str, str]
    scores: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def compared(self) -> bool:
        """Whether each row compares two models, and the column of scores says which of them won."""
        return WINNER in self.columns


def own_names(columns: Iterable[str]) -> dict[str, str]:
    """The mapping of a table whose columns have our names."""
    marks = (f"{SCORE}:", f"{JUDGE}:")
    return {name: name for name in columns if name in KNOWN or name.startswith(marks)}


def plan(mapping: Mapping[str, str], constants: Collection[str]) -> Plan:
    """The mapping, read and checked. Raises ConfigError that says what is wrong with it."""
    columns: dict[str, str] = {}
    scores: dict[str, dict[str, str]] = {}
    for theirs, ours in mapping.items():
        if ours == SCORE or ours.startswith((f"{SCORE}:", f"{JUDGE}:")):
            scores[theirs] = _score_column(theirs, ours)
            continue
        _known(ours)
        if ours in columns:
            raise ConfigError(f"columns {columns[ours]!r} and {theirs!r} are both mapped to {ours}; keep one")
        columns[ours] = theirs
    for ours in constants:
        _known(ours)
        if ours in columns:
            raise ConfigError(f"{ours} is given as a constant and as column {columns[ours]!r}; keep one")
    if WINNER in columns:
        scores[columns[WINNER]] = {}
    if (WINNER in columns) != (OTHER in {*columns, *constants}) or (WINNER in columns and len(scores) > 1):
        raise MappingError(
            f"a comparison needs {OTHER} (the model compared with) and {WINNER} (who won), and no score; map both"
        )
    given = {*columns, *constants, *(("judge",) if any("judge" in what for what in scores.values()) else ())}
    if missing := [ours for ours in REQUIRED if ours not in given]:
        raise MappingError(f"nothing is mapped to {missing[0]}; map a column to it or give it as a constant")
    _check_scores(scores, {*columns, *constants})
    return Plan(columns, scores)


def _score_column(theirs: str, ours: str) -> dict[str, str]:
    """What score:DIMENSION/CRITERION or judge:NAME/DIMENSION/CRITERION says of the ratings in a column."""
    kind, _, rest = ours.partition(":")
    names = rest.split("/") if rest else []
    keys = ("dimension", "criterion") if kind == SCORE else ("judge", "dimension", "criterion")
    form = "score:DIMENSION/CRITERION" if kind == SCORE else "judge:NAME/DIMENSION/CRITERION"
    if (ours != SCORE and not names) or len(names) > len(keys) or not all(name.strip() for name in names):
        raise ConfigError(f"column {theirs!r} is mapped to {ours!r}; write {form.partition('/')[0]}, or {form}")
    return {key: tidy(name) for key, name in zip(keys, names, strict=False)}


def _known(ours: str) -> None:
    if ours == SCORE or ours not in KNOWN:
        near = difflib.get_close_matches(ours, KNOWN, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{ours!r} is no column of the ratings table that can be imported; known: {', '.join(KNOWN)}, "
            f"score:DIMENSION, score:DIMENSION/CRITERION, judge:NAME, judge:NAME/DIMENSION{hint}"
        )


def _check_scores(scores: Mapping[str, Mapping[str, str]], given: Collection[str]) -> None:
    if not scores:
        raise MappingError(
            "nothing is mapped to score; map the column with the labels to score, with one column per dimension each "
            "to score:DIMENSION, with one column per rater each to judge:NAME"
        )
    said = [tuple(what) for what in scores.values()]
    if len({what[:1] for what in said}) > 1 or len({"dimension" in what for what in said}) > 1 or said.count(()) > 1:
        raise MappingError(
            "map either one column to score or each of several to its own score:DIMENSION or judge:NAME, not both"
        )
    if len({tuple(what.items()) for what in scores.values()}) < len(scores):
        raise ConfigError(
            "two columns are mapped to the same score:DIMENSION or judge:NAME; keep one, or add /CRITERION to each"
        )
    for ours, form in (("judge", "judge:NAME"), ("dimension", "score:DIMENSION"), ("criterion", "/CRITERION")):
        if ours in given and any(ours in what for what in scores.values()):
            raise ConfigError(f"{ours} is given twice: by its own column or constant and by {form}; keep one")


def tidy(name: str) -> str:
    """A name as it is compared: composed (Unicode NFC), no blanks at its ends."""
    return unicodedata.normalize("NFC", name).strip()


def present(mapping: Mapping[str, str], header: Iterable[str]) -> dict[str, str]:
    """The mapping with the columns' names as the table spells them, in whichever Unicode form."""
    spelt = {tidy(name): name for name in header}
    return {spelt.get(tidy(theirs), theirs): ours for theirs, ours in mapping.items()}


# What to write instead


def _alias(name: str) -> str | None:
    """Ours for which a column's name stands."""
    plain = re.sub(r"\W+", "_", tidy(name).casefold()).strip("_")
    return next((ours for ours in KNOWN if plain == ours or plain in ALIASES.get(ours, ())), None)


def suggestion(sample: Sequence[Row], constants: Collection[str]) -> tuple[str, ...]:
    """Options that read a table as its columns suggest; none where they leave doubt."""
    if of_pairs := pair_options(sample, _alias, constants):
        return of_pairs
    columns = {name: [row.fields.get(name) for row in sample] for row in sample[:1] for name in row.fields}
    roles: dict[str, str] = {}
    for name in columns:
        ours = _alias(name)
        if ours and ours not in roles and ours not in constants:
            roles[ours] = name
    numbers = {
        name: values for name, texts in columns.items() if name not in roles.values() and (values := _numbers(texts))
    }
    pairs = [(theirs, ours) for ours, theirs in roles.items() if ours != SCORE]
    if SCORE in roles:
        numbers = {roles[SCORE]: _numbers(columns[roles[SCORE]])}
        pairs.append((roles[SCORE], SCORE))
    elif JUDGE in roles or JUDGE in constants:
        pairs += [(name, f"{SCORE}:{_bare(name)}") for name in numbers]
    elif len(numbers) > 1:
        pairs += [(name, f"{JUDGE}:{tidy(name).replace('/', '-')}") for name in numbers]
    rest = [name for name in columns if name not in {*roles.values(), *numbers}]
    lacking = [ours for ours in ("model", "item") if ours not in roles and ours not in constants]
    if len(lacking) == len(rest) == 1:
        pairs.append((rest[0], lacking.pop()))
    if lacking or not any(numbers.values()):
        return ()
    options = [text for theirs, ours in pairs for text in ("--map", f"{theirs}={ours}")]
    values = [value for column in numbers.values() for value in column]
    if any(value.denominator > 1 for value in values) and halves(values):
        options.append("--half-points")
    codes = suspected(Counter(int(value) for value in values if value.denominator == 1))
    return (*options, *(text for code in sorted(codes) for text in ("--missing", str(code))))


def _bare(name: str) -> str:
    """Without what stands in brackets: "Tone (1-5)" is about Tone."""
    return re.sub(r"\s*[(\[].*", "", tidy(name)).replace("/", "-") or tidy(name)


def _numbers(labels: Sequence[object]) -> list[Fraction]:
    """The scores in a column; none where it seems to hold something else."""
    numbers, said = sampled(["" if empty(value) else tidy(_text(value)) for value in labels])
    return numbers if said and len(numbers) >= NUMERIC * said and len(set(numbers)) <= MOST_SCORES else []


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def refuse_pairs(plan: Plan, sample: Sequence[Row], constants: Collection[str]) -> None:
    """Comparisons of two models squeezed into ratings would forget the opponent: MappingError."""
    if not sample or "model" not in plan.columns or plan.compared:
        return
    model, names = plan.columns["model"], set(sample[0].fields)
    labels = {tidy(str(row.fields.get(column))) for row in sample for column in plan.scores}
    mine = {row.fields.get(model) for row in sample}
    other = twin(model, names - {model, *plan.columns.values()})
    if other is None or not mine & {row.fields.get(other) for row in sample}:
        if len(labels) < 2 or not all(WINNERS.fullmatch(label) for label in labels):
            return
        other = "the other response"
    raise MappingError(
        f"each row compares {model} with {other}: a comparison is no rating of a response, and read as one it would "
        f"forget the opponent. Map the columns to model, {OTHER} and {WINNER}",
        pair_options(sample, _alias, constants),
        final=True,
    )
