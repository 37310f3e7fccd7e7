"""`dpeer sweep`: ablations over anything that a recipe can say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dpeer.escape import markup

if TYPE_CHECKING:
    from dpeer.launcher.sweep.folder import SweepFolder
    from dpeer.launcher.sweep.spec import Cell, Sweep

app = typer.Typer(no_args_is_help=True)

File = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file (YAML), or the name of a shipped one.")]
Place = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, the name of a shipped one, or its folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the sweep file, e.g. retries=0; repeat."),
]
Chosen = Annotated[
    list[str] | None, typer.Option("--cell", metavar="CELL", help="Only this cell (number, name or id); repeat.")
]


@app.command()
def run(
    sweep: File,
    cell: Chosen = None,
    lanes: Annotated[int | None, typer.Option(min=1, help="Most cells trained side by side.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="With --cell: put its run aside and train the cell anew.")
    ] = False,
    set_: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and stop, as `plan` does.")] = False,
) -> None:
    """Train every cell that is not finished, side by side where they fit; a stopped sweep goes on where it was."""
    path, spec, cells = _load(sweep, set_)
    if dry_run:
        _show_plan(spec, cells)
        return
    from dpeer.errors import ConfigError
    from dpeer.launcher.lock import claim
    from dpeer.launcher.sweep.folder import SweepFolder
    from dpeer.launcher.sweep.report import write_report
    from dpeer.launcher.sweep.run import run as train

    chosen = _choose(cells, cell)
    folder = SweepFolder(cells[0].config.output_dir)
    gone = folder.write_manifest(spec, cells)
    if gone:
        typer.echo(f"no longer in {path}, kept in {folder.path}: {', '.join(gone)}")
    if again:
        if not cell:
            raise ConfigError("--again trains single cells anew: name them with --cell")
        for one in chosen:
            with claim(folder.lock(one.name)) as ours:
                if not ours:
                    raise ConfigError(f"{one.name} is being trained; stop that first, or wait for its end")
                if moved := folder.set_aside(one.name):
                    typer.echo(f"put aside: {moved}")
    overrides = [part for override in set_ or () for part in ("--set", override)]
    command = [sys.executable, "-m", "dpeer.launcher.cli", "sweep", "lane", str(path), *overrides]
    code = train(spec, chosen, folder, command, lanes)
    if code == 0 and all(folder.state(c.name).kind == "finished" for c in cells):
        typer.echo(f"report: {write_report(folder)}")
    raise typer.Exit(code)


@app.command(hidden=True)
def lane(sweep: File, cell: Chosen = None, set_: Overrides = None) -> None:
    """One of the lanes of `run`."""
    from dpeer.launcher.sweep.folder import SweepFolder
    from dpeer.launcher.sweep.run import die_with_parent, run_lane

    die_with_parent()
    _, spec, cells = _load(sweep, set_)
    raise typer.Exit(run_lane(SweepFolder(cells[0].config.output_dir), _choose(cells, cell), spec.retries))


@app.command()
def plan(
    sweep: File,
    set_: Overrides = None,
    count: Annotated[bool, typer.Option("--count", help="Print the number of cells only, for a job array.")] = False,
) -> None:
    """List the cells with what each changes in the recipe."""
    _, spec, cells = _load(sweep, set_)
    if count:
        typer.echo(len(cells))
    else:
        _show_plan(spec, cells)


@app.command()
def status(
    sweep: Place,
    set_: Overrides = None,
    once: Annotated[bool, typer.Option("--once", help="Print once, also on a terminal.")] = False,
) -> None:
    """Show what every cell is doing; live on a terminal."""
    from dpeer.launcher.sweep.status import overview, show

    folder, console = _folder(sweep, set_), Console(highlight=False)
    if once:
        console.print(overview(folder))
    else:
        show(folder, console)


@app.command()
def report(
    sweep: Place,
    set_: Overrides = None,
    abilities: Annotated[
        Path | None, typer.Option(help="Folder of `dpeer irt fit` whose models are named as the cells are.")
    ] = None,
) -> None:
    """Write sweep.html and its tables from the cells that are finished."""
    from dpeer.launcher.sweep.report import write_report

    typer.echo(write_report(_folder(sweep, set_), abilities))


def _load(sweep: str, overrides: list[str] | None) -> tuple[Path, Sweep, tuple[Cell, ...]]:
    from dpeer.launcher.sweep.spec import load_sweep, resolve, sweep_path

    path = sweep_path(sweep)
    spec = load_sweep(path, overrides or ())
    return path, spec, resolve(spec, path)


def _folder(sweep: str, overrides: list[str] | None) -> SweepFolder:
    from dpeer.launcher.sweep.folder import SweepFolder
    from dpeer.launcher.sweep.spec import folder_of, load_sweep, sweep_path

    if Path(sweep).is_dir():
        return SweepFolder(Path(sweep))
    path = sweep_path(sweep)
    return SweepFolder(folder_of(load_sweep(path, overrides or ()), path))


def _choose(cells: tuple[Cell, ...], wanted: list[str] | None) -> list[Cell]:
    from dpeer.errors import ConfigError

    if not wanted:
        return list(cells)
    chosen = []
    for text in wanted:
        exact = [c for c in cells if text in (str(c.index), c.name)]
        matches = exact or [c for c in cells if len(text) >= 4 and c.id.startswith(text)]
        if len(matches) != 1:
            problem = "several cells fit" if matches else "no such cell"
            raise ConfigError(
                f"--cell {text}: {problem}; give a number from 0 to {len(cells) - 1}, a name, or the first characters "
                "of an id, as `dpeer sweep plan` lists them"
            )
        chosen += matches
    return chosen


def _show_plan(spec: Sweep, cells: tuple[Cell, ...]) -> None:
    import json

    table = Table("cell", title=f"{spec.name}: {len(cells)} cells of {markup(spec.recipe)}", title_justify="left")
    for column in ("name", "seed", "changes in the recipe"):
        table.add_column(column, overflow="fold")
    for c in cells:
        changes = "\n".join(f"{key}={json.dumps(value)}" for key, value in c.values.items())
        table.add_row(str(c.index), c.name, str(c.seed), markup(changes))
    Console(highlight=False).print(table)
