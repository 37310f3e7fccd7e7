"""Tables of comparisons made elsewhere: which of two models won, in the words of the tables that are about."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from dpeer.data.read import Row
from dpeer.eval.store.columns import empty

SIDES = re.compile(r"^(.*?)[ _.-]?(a|b|1|2|left|right)$", re.IGNORECASE)
_FIRST, _SECOND = ("a", "1", "left", "first"), ("b", "2", "right", "second")
_SIDE = re.compile(
    r"(?:the )?(?:model|response|answer|system|assistant|candidate|option)?[ _-]?(\w+)(?: is better| wins)?"
)
_TIE = re.compile(r"tie\b.*|draw|equal(?:ly good)?|same|neither|both(?: ?(?:are )?(?:good|bad))?|c")
WINNERS = ("winner", "preferred", "preference", "verdict", "choice", "better", "vote", "label")
"""Names of columns that say who won."""


def outcome(label: str, this: str = "", other: str = "") -> int | None:
    """1: this one is better, the first of the two; -1: the other; 0: a tie; None: not known.

    Knows the forms of Chatbot Arena and MT-bench (model_a, tie, "tie (bothbad)", [[A]]), left and right, first and
    second, and the models' own names.
    """
    if this != other and label in (this, other):
        return 1 if label == this else -1
    said = label.casefold().strip("[]() .").replace("_", " ")
    if _TIE.fullmatch(said):
        return 0
    side = _SIDE.fullmatch(said)
    if side is None:
        return None
    return 1 if side[1] in _FIRST else -1 if side[1] in _SECOND else None


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
            if n.casefold().strip() in WINNERS and labels[n] and any(outcome(v) is not None for v in labels[n])
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
