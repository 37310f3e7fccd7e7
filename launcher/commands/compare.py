"""`dpeer compare`: releases on one scale, what changed, and whether a pipeline is to stop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from dpeer.eval.irt.conditions import Verdict
    from dpeer.eval.irt.releases import Comparison

CONDITION_MET = 3
"""Exit code where --fail-if found what it was to look for; 1 is an error, 2 a wrong command line."""
WIDTH = 120  # of tables where there is no terminal


def compare(
    fits: Annotated[
        list[Path],
        typer.Argument(metavar="FIT FIT...", help="Folders of fits, earliest first; the others go against it."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the page and its tables.")] = Path(
        "runs/compare"
    ),
    same: Annotated[
        list[str] | None,
        typer.Option(help="A model that is the same in all fits, such as the base: it links them; repeat."),
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(metavar="EARLIER=LATER", help="Models to compare; repeat. Default: those of equal name."),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help='Exit with 3 if it holds of the last release: "worst dimension down", "any dimension down", "NAME '
            'down", each also "... by 0.2", "judges drifted", "gate"; repeat.'
        ),
    ] = None,
    probability: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="Posterior probability that --fail-if takes.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the linking error's draws.")] = 0,
) -> None:
    """What changed between releases: abilities on one scale with the linking error, and drift of judges and items."""
    from rich.console import Console

    from dpeer.errors import ConfigError
    from dpeer.eval.irt.conditions import decide, parse
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.releases import compare as run
    from dpeer.eval.irt.releases import unsound
    from dpeer.eval.report.releases import write_page

    if len(fits) < 2:
        raise ConfigError("give two or more folders of fits, the earliest first")
    pairs = []
    for text in pair or ():
        earlier, equals, later = text.partition("=")
        if not (equals and earlier and later):
            raise ConfigError(f"--pair {text}: write it as EARLIER=LATER")
        pairs.append((earlier, later))
    names = names_of(fits)
    first, *others = (load(folder) for folder in fits)
    red = unsound(first, names[0])
    found = [
        run(first, now, name, same=same or (), pairs=pairs, seed=seed, reasons=[*red, *unsound(now, name)])
        for name, now in zip(names[1:], others, strict=True)
    ]
    last = found[-1]
    shared = (*last.dimensions, *last.unlinked)
    verdicts = [decide(parse(text, shared), last, probability) for text in fail_if or ()]
    page = write_page(found, names[0], output, verdicts, probability)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    show(found, verdicts, page, console)
    raise typer.Exit(CONDITION_MET if any(v.met for v in verdicts) else 0)


def names_of(fits: list[Path]) -> list[str]:
    """The last part of each path that tells it from the others."""
    parts = [folder.resolve().parts for folder in fits]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{n + 1}: {folder.name}" for n, folder in enumerate(fits)]


def show(found: list[Comparison], verdicts: list[Verdict], page: Path, console: Console) -> None:
    from rich.table import Table

    from dpeer.escape import markup
    from dpeer.eval.report.releases import finding
    from dpeer.eval.report.words import between, probability, signed

    console.print(f"[bold]{markup(finding(found))}[/]", soft_wrap=True)
    table = Table("release", "model", "dimension", box=None, pad_edge=False)
    for name in ("change (logits)", "95 % interval", "P(down)", "unlinked"):
        table.add_column(name, justify="right")
    for comparison in found:
        for row in comparison.tables["changes"].query("role == 'compared'").itertuples():
            model = row.model if row.model == row.later_model else f"{row.model} -> {row.later_model}"
            table.add_row(
                *map(markup, (comparison.release, model, row.dimension)),
                signed(row.difference),
                between(row.difference_low, row.difference_high),
                probability(row.p_down),
                signed(row.unlinked),
            )
    console.print(table)
    for comparison in found:
        for note in comparison.notes:
            console.print(f"[yellow]note:[/] {markup(f'{comparison.release}: {note}')}", soft_wrap=True)
        for reason in comparison.reasons:
            console.print(f"[yellow]no claim:[/] {markup(reason)}", soft_wrap=True)
    for verdict in verdicts:
        word = "[red]fails[/]" if verdict.met else "[green]holds[/]"
        console.print(f"{word}  {markup(verdict.condition)}: {markup(verdict.why)}", soft_wrap=True)
    console.print(f"report      {markup(page)}", soft_wrap=True)
