"""Tables of comparisons made elsewhere: which of two models won, in the words of the tables that are about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction

from dpeer.data.read import Row
from dpeer.errors import DataError
from dpeer.eval.store.columns import empty
from dpeer.eval.store.scores import decimal, number

SIDES = re.compile(r"^(.*?)[ _.-]?(a|b|1|2|left|right)$", re.IGNORECASE)
_FIRST, _SECOND = ("a", "1", "left", "first"), ("b", "2", "right", "second")
_SIDE = re.compile(
    r"(?:the )?(?:(?:model|response|answer|system|assistant|candidate|option)[ -]?)?(\w+)"
    r"(?: (?:is )?(?:much |slightly |significantly )?better| wins| won)?"
)
_TIE = re.compile(
    r"tied?\b.*|draw|(?:about )?(?:the )?same|equal(?:ly (?:good|bad))?|no (?:preference|difference|winner)|c"
    r"|neither(?: (?:is |are )?(?:good|better))?|both(?: ?(?:are )?(?:equally )?(?:good|bad))?"
)
_AROUND = "[]() ."
_RELATION = re.compile(r"(.+?)\s*(>>?|<<?|==?)\s*(.+)")
WINNERS = ("winner", "preferred", "preference", "verdict", "choice", "better", "vote", "label")
"""Names of columns that say who won."""
SHOWN = 5


def outcome(label: str, this: str = "", other: str = "") -> int | None:
    """1: this one is better, the first of the two; -1: the other; 0: a tie; None: not known.

    Knows the forms of Chatbot Arena and MT-bench (model_a, tie, "tie (bothbad)", [[A]], [[A>>B]]), left and right,
    first and second, and the models' own names. What a bare number says depends on its whole column, see `outcomes`.
    """
    if (side := _side(label, this, other)) is not None:
        return None if _number(label) is not None and label not in (this, other) else side
    if _TIE.fullmatch(_plain(label)):
        return 0
    if relation := _RELATION.fullmatch(label.strip(_AROUND)):
        sides = (_side(relation[1], this, other), _side(relation[3], this, other))
        if set(sides) == {1, -1}:
            return {">": sides[0], "<": sides[1], "=": 0}[relation[2][0]]
    return None


def _number(label: str) -> Fraction | None:
    return number(label.strip(_AROUND))


def _plain(label: str) -> str:
    return " ".join(re.sub(r"[\[\]()._]", " ", label.casefold()).split())


def _side(label: str, this: str, other: str) -> int | None:
    """1: the label stands for the first of the two; -1: for the second; None: for neither."""
    if this != other and label in (this, other):
        return 1 if label == this else -1
    side = _SIDE.fullmatch(_plain(label))
    return None if side is None else 1 if side[1] in _FIRST else -1 if side[1] in _SECOND else None


def outcomes(said: Sequence[tuple[str, str, str]], where: str) -> list[int | None]:
    """`outcome` of each (label, this, other) of a whole column; an empty label says nothing.

    Numbers are outcomes where a -1 is among them, or where 0 stands beside words for either side; 1 and 2 are the
    first and the second where nothing else but words for ties is there. DataError, beginning with `where`: numbers
    that leave doubt.
    """
    known = {each: outcome(*each) if each[0] else None for each in set(said)}
    values = {each: _number(each[0]) for each, meant in known.items() if each[0] and meant is None}
    numbers = Counter(value for each in said if (value := values.get(each)) is not None)
    if not numbers:
        return [known[each] for each in said]
    sides = any(known.values())
    alone = not sides and None not in values.values()
    if numbers.keys() <= {-1, 0, 1} and (-1 in numbers or (1 not in numbers and sides)):
        meaning = {-1: -1, 0: 0, 1: 1}
    elif numbers.keys() <= {1, 2} and alone:
        meaning = {1: 1, 2: -1}
    else:
        listed = ", ".join(f"{decimal(value)} in {n:,} rows" for value, n in numbers.most_common(SHOWN))
        raise DataError(
            f"{where}: who won is said by numbers ({listed}) that may be meant in several ways; 1, 0 and -1 are "
            "understood where there is a -1, and 1 and 2 beside words for ties only. Say what every label means, 1 "
            "for the first, -1 for the second and 0 for a tie, as in --label 1=1 --label 0=-1, and name those that "
            "mean nothing with --missing"
        )
    return [known[each] if (value := values.get(each)) is None else meaning[int(value)] for each in said]


def twin(model: str, columns: Collection[str]) -> str | None:
    """The column that names the other model, where `model` looks like one of two sides (model_a, model_b)."""
    side = SIDES.match(model)
    for other in columns:
        match = SIDES.match(other)
        if side and match and side[1] == match[1] and side[2].casefold() != match[2].casefold():
            return other
    return None


def pair_options(
    sample: Sequence[Row], alias: Callable[[str], str | None], constants: Mapping[str, str] | Collection[str]
) -> tuple[str, ...]:
    """Options that read a table of comparisons as its columns suggest; none where they leave doubt.

    alias: ours that a column's name stands for.
    """
    names = list(sample[0].fields) if sample else []
    labels = {name: [str(row.fields.get(name)) for row in sample if not empty(row.fields.get(name))] for name in names}
    firsts = [n for n in names if (m := SIDES.match(n)) and m[2].casefold() in _FIRST and (twin(n, names))]
    models = next((n for n in firsts if "model" in n.casefold()), firsts[0] if len(firsts) == 1 else None)
    winner = next(
        (
            n
            for n in names
            if n.casefold().strip() in WINNERS
            and any(outcome(v) is not None or _number(v) in (-1, 1, 2) for v in labels[n])
        ),
        None,
    )
    if models is None or winner is None:
        return ()
    pairs = {models: "model", str(twin(models, names)): "other_model", winner: "winner"}
    for name in names:
        ours = alias(name)
        if name not in pairs and ours in ("item", "judge", "dimension") and ours not in {*pairs.values(), *constants}:
            pairs[name] = str(ours)
    options = [text for theirs, ours in pairs.items() for text in ("--map", f"{theirs}={ours}")]
    if "item" not in {*pairs.values(), *constants}:
        return ()
    if "judge" not in {*pairs.values(), *constants}:
        options += ["--constant", "judge=people"]
    return tuple(options)
