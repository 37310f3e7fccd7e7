"""Options of `dpeer irt`: their types, and what their values stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dpeer.eval.irt.simulate import Spec

Table = Annotated[Path, typer.Argument(help="Folder of ratings, or one CSV or Parquet file.", metavar="RATINGS")]
TERMS = {
    **{name: name for name in ("halo", "length", "order", "groups")},
    **{"own-family": "self_family", "own-model": "self_model"},
    **{"judge-model": "judge_model", "judge-item": "judge_item", "comparison-scale": "comparison_scale"},
}
Terms = Annotated[list[str] | None, typer.Option("--with", help=f"Add a term: {', '.join(TERMS)}; repeat.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Setting of the simulation, e.g. judges=5; repeat."),
]
ModelItem = Annotated[
    bool | None,
    typer.Option(
        "--model-item/--no-model-item",
        help="What a model does on one item, beyond both. Default: on where models answered items more than once.",
    ),
]
PeopleScale = Annotated[
    bool | None,
    typer.Option(
        "--people-scale/--no-people-scale",
        help="Abilities as people among the judges see them. Default: on where people rated enough.",
    ),
]
Thresholds = Annotated[
    str, typer.Option(help="Score steps: common (rating scale), judge (own deviations) or item (partial credit).")
]
Smallest = Annotated[
    float,
    typer.Option(min=0, help="Smallest effect of interest, in logits: also say what is larger, smaller or no worse."),
]
Claim = Annotated[
    list[str] | None,
    typer.Option(help="Differences that are claimed together, MODEL/DIMENSION with * for all; repeat. Default: all."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the result; made if it is missing.")]


def spec_of(given: list[str] | None) -> Spec:
    """The simulation's settings, from NAME=VALUE pairs."""
    from dataclasses import fields

    import yaml

    from dpeer.errors import ConfigError
    from dpeer.eval.irt.simulate import Spec

    defaults = {field.name: field.default for field in fields(Spec)}
    values = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or name not in defaults:
            raise ConfigError(f"--set {text}: write it as NAME=VALUE with a name among {', '.join(defaults)}")
        read = yaml.safe_load(value)
        wanted = type(defaults[name])
        if wanted is float and isinstance(read, int) and not isinstance(read, bool):
            read = float(read)
        if name == "linked" and isinstance(read, list) and len(read) == 2:
            read = (int(read[0]), int(read[1]))
        elif not isinstance(read, wanted) or isinstance(read, bool):
            raise ConfigError(
                f"--set {text}: must be {'two numbers, [anchors, judges]' if name == 'linked' else 'a number'}"
            )
        values[name] = read
    return Spec(**values)


def choice(option: str, given: str, known: tuple[str, ...]) -> str:
    from dpeer.errors import ConfigError

    if given not in known:
        raise ConfigError(f"{option} {given}: must be {', '.join(known[:-1])} or {known[-1]}")
    return given


def terms_of(given: list[str] | None) -> dict[str, Any]:
    from dpeer.errors import ConfigError

    if unknown := [t for t in given or () if t not in TERMS]:
        raise ConfigError(f"--with {unknown[0]}: no such term; known: {', '.join(TERMS)}")
    return {TERMS[t]: True for t in given or ()}


def anchors_of(folder: Path | None, sd: float | None, without: tuple[str, ...]) -> dict[str, object] | None:
    """All judges and items of the earlier fit but those `without`."""
    from dpeer.errors import ConfigError

    if folder is None:
        if sd is not None or without:
            raise ConfigError("--anchor-sd and --not-anchor need --anchor FIT, the earlier fit")
        return None
    from dpeer.eval.irt.anchors import anchors_from
    from dpeer.eval.irt.fit import load

    earlier = load(folder)
    judges, items = earlier.ratings.judges, earlier.ratings.items
    if unknown := sorted(set(without) - {*judges, *items}):
        raise ConfigError(f"--not-anchor {unknown[0]}: the earlier fit has no judge or item of that name")
    kept_judges, kept_items = ([name for name in names if name not in without] for names in (judges, items))
    return anchors_from(earlier, kept_judges, kept_items, sd)


def scale_of(given: str | None) -> tuple[int, ...] | None:
    """E.g. 1-5."""
    import re

    from dpeer.errors import ConfigError

    if given is None:
        return None
    ends = re.fullmatch(r"(-?\d+)-(-?\d+)", given.strip())
    if not ends or int(ends[1]) >= int(ends[2]):
        raise ConfigError(f"--scale {given}: write the least and the greatest possible score, e.g. 1-5")
    return tuple(range(int(ends[1]), int(ends[2]) + 1))
