"""How a table of ratings is read: the options that `dpeer ratings import` and `dpeer irt fit` share."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dpeer.escape import markup

if TYPE_CHECKING:
    import pandas as pd

Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="THEIRS=OURS",
        help="Column mapping, e.g. annotator=judge, stars=score:E, Ann=judge:Ann; repeat. Default: columns that have "
        "our names.",
    ),
]
Label = Annotated[list[str] | None, typer.Option("--label", metavar="TEXT=SCORE", help="Score of a label; repeat.")]
Constant = Annotated[
    list[str] | None, typer.Option("--constant", metavar="OURS=VALUE", help="Value that no column holds; repeat.")
]
Human = Annotated[list[str] | None, typer.Option("--human", help="A judge who is a person; repeat.")]
Family = Annotated[
    list[str] | None, typer.Option("--family", metavar="NAME=FAMILY", help="Family of a model or judge; repeat.")
]
HalfPoints = Annotated[bool, typer.Option("--half-points", help="Scores come in halves: double them all, 3.5 to 7.")]
Missing = Annotated[
    list[str] | None, typer.Option("--missing", metavar="LABEL", help="A label that means no score, e.g. 99; repeat.")
]
KeepCopies = Annotated[
    bool, typer.Option("--keep-copies", help="Rows that are identical in every column are ratings of their own.")
]


@dataclass(frozen=True, slots=True)
class Options:
    """As typed."""

    map: Sequence[str]
    label: Sequence[str]
    constant: Sequence[str]
    human: Sequence[str]
    family: Sequence[str]
    missing: Sequence[str]
    half_points: bool
    keep_copies: bool

    def words(self, *without: str) -> list[str]:
        """As they would be typed again, but for those of some names."""
        flags = {"half_points": self.half_points, "keep_copies": self.keep_copies}
        lists = ("map", "label", "constant", "human", "family", "missing")
        typed = [w for name in lists if name not in without for v in getattr(self, name) for w in (f"--{name}", v)]
        return [*typed, *(f"--{n.replace('_', '-')}" for n, on in flags.items() if on and n not in without)]

    def but(self, better: Sequence[str], *without: str) -> list[str]:
        """As typed, but for those of some names, then the better ones; what both say is said once."""
        missing = [
            v for v in self.missing if not any(better[i : i + 2] == ["--missing", v] for i in range(len(better)))
        ]
        half_points = self.half_points and "--half-points" not in better
        return [*replace(self, missing=missing, half_points=half_points).words(*without), *better]


def options(
    map_: list[str] | None,
    label: list[str] | None,
    constant: list[str] | None,
    human: list[str] | None,
    family: list[str] | None,
    missing: list[str] | None,
    half_points: bool,
    keep_copies: bool,
) -> Options:
    def listed(given: list[str] | None) -> tuple[str, ...]:
        return tuple(given or ())

    return Options(
        listed(map_),
        listed(label),
        listed(constant),
        listed(human),
        listed(family),
        listed(missing),
        half_points,
        keep_copies,
    )


def read(path: Path, given: Options, command: Sequence[str]) -> pd.DataFrame:
    """The table as the options say. Errors print a command that works where one is known: `command`, the words up to
    the options, with those that read the table."""
    from dpeer.errors import ConfigError, DataError
    from dpeer.eval.elsewhere.importer import import_ratings
    from dpeer.eval.elsewhere.labels import ScoreError
    from dpeer.eval.elsewhere.mapping import MappingError

    try:
        with _warnings_told():
            return import_ratings(
                path,
                pairs(given.map, "--map") or None,
                _labels(given.label) or None,
                constants=pairs(given.constant, "--constant") or None,
                humans=given.human,
                families=pairs(given.family, "--family") or None,
                half_points=given.half_points,
                missing=given.missing,
                keep_copies=given.keep_copies,
            )
    except MappingError as error:
        if not error.options:
            raise
        told = f"{error.problem}. As its columns look, this reads it"
        raise ConfigError(f"{told}:\n  {shlex.join([*command, *given.but(error.options, 'map', 'label')])}") from None
    except ScoreError as error:
        if not error.options:
            raise
        raise DataError(
            f"{error}. This reads it:\n  {shlex.join([*command, *given.but(error.options, 'label')])}"
        ) from None


def _labels(given: Sequence[str]) -> Mapping[str, int]:
    from dpeer.errors import ConfigError

    labels = {}
    for text, score in pairs(given, "--label").items():
        try:
            labels[text] = int(score)
        except ValueError:
            raise ConfigError(f"--label {text}={score}: the score must be a whole number") from None
    return labels


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    from dpeer.errors import ConfigError

    found = {}
    for text in given:
        left, equals, right = text.rpartition("=")
        if not equals or not left or not right:
            raise ConfigError(f"{option} {text}: write it as LEFT=RIGHT")
        if left in found:
            raise ConfigError(f"{option}: {left} is given twice")
        found[left] = right
    return found


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Warnings of the block as lines of the command, without the place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            console = Console(stderr=True, highlight=False, soft_wrap=True)
            for warning in caught:
                console.print(f"[yellow]warning:[/] {markup(warning.message)}")
