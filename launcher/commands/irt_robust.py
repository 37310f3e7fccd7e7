"""`dpeer irt models` and `sensitivity`: which model of judging predicts best, and what a claim rests on."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dpeer.escape import markup
from dpeer.launcher.commands.irt_options import Claim, Smallest, Terms, Thresholds, choice, scale_of, terms_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

    from dpeer.eval.irt.types import Options, Posterior


def models(
    given: Annotated[
        list[Path],
        typer.Argument(
            help="One table of ratings, or folders of fits to the same ratings.", metavar="RATINGS | FIT..."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the comparison, and of fits that are made.")
    ] = Path("runs/irt-models"),
    model: Annotated[
        list[str] | None, typer.Option(help="Of a table: gmfrm, rasch or graded; repeat. Default: all three.")
    ] = None,
    terms: Terms = None,
    thresholds: Thresholds = "judge",
    dimension: Annotated[list[str] | None, typer.Option(help="Use this dimension; repeat. Default: all.")] = None,
    scale: Annotated[
        str | None, typer.Option(help="Possible scores, e.g. 1-5. Default: from the least to the greatest given.")
    ] = None,
    chains: Annotated[int, typer.Option(min=1)] = 4,
    warmup: Annotated[int, typer.Option(min=10, help="Warm-up iterations per chain.")] = 1000,
    draws: Annotated[int, typer.Option(min=10, help="Draws per chain after warm-up.")] = 1000,
    used: Annotated[
        int, typer.Option("--loo-draws", min=100, help="Draws of each fit at which predictions are computed.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Compare models of judging by how well they predict answers left out (PSIS-LOO).

    Fits of a table are kept in OUTPUT; a comparison that was stopped goes on.
    """
    from dpeer.errors import ConfigError
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.loo import compare_models
    from dpeer.eval.irt.types import MODELS, Options
    from dpeer.eval.report.models import write_page
    from dpeer.launcher.commands.compare import WIDTH, names_of
    from dpeer.report.table_files import write_frames

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    folders = [path for path in given if (path / "manifest.json").is_file() and (path / "draws.npz").is_file()]
    if folders and len(folders) < len(given):
        odd = next(path for path in given if path not in folders)
        raise ConfigError(f"{odd} is no fit, and others are; give folders of fits alone, or one table of ratings")
    if len(folders) == 1 or (not folders and len(given) > 1):
        raise ConfigError("give one table of ratings, or two or more folders of fits")
    with _bar(console) as say:
        if folders:
            fits = {name: load(folder) for name, folder in zip(names_of(folders), folders, strict=True)}
        else:
            wanted = [choice("--model", name, MODELS) for name in model or MODELS]
            options = Options(
                thresholds=choice("--thresholds", thresholds, ("common", "judge", "item")),
                chains=chains,
                warmup=warmup,
                draws=draws,
                seed=seed,
                **terms_of(terms),
            )
            of_table = (given[0], tuple(dimension or ()) or None, scale_of(scale))
            fits = {name: _fitted(of_table, replace(options, model=name), output / name, say) for name in wanted}
        table = compare_models(fits, used, lambda name: say(f"leave-one-out: {name}", 0.0))
    write_frames({"models": table}, output)
    page = write_page(table, fits, output / "models.html")
    console.print(_shown(table))
    console.print(f"page        {markup(page)}", soft_wrap=True)


def _fitted(
    given: tuple[Path, tuple[str, ...] | None, tuple[int, ...] | None],
    options: Options,
    folder: Path,
    say: Callable[[str, float], None],
) -> Posterior:
    """The fit that lies in the folder, if it is this one; else a new one, kept there."""
    from dpeer.errors import ConfigError
    from dpeer.eval.irt.encode import encode
    from dpeer.eval.irt.fit import fit, load, save
    from dpeer.eval.irt.loo import comparable

    table, dimensions, scale = given
    ratings = encode(table, dimensions, scale)
    if (folder / "manifest.json").is_file():
        found = load(folder)
        try:
            comparable({"table": ratings, "fit": found.ratings})
            if found.options == options:
                return found
        except ConfigError:
            pass  # of other ratings: made anew
    posterior = fit(ratings, options, lambda what, done: say(f"{options.model}: {what}", done))
    save(posterior, folder)
    return posterior


def _shown(table: pd.DataFrame) -> object:
    from rich.table import Table

    shown = Table("fit", "model", title="How well answers left out are predicted (PSIS-LOO)", title_justify="left")
    for name in ("elpd", "difference", "se", "k-hat > 0.7", "weight"):
        shown.add_column(name, justify="right")
    shown.add_column("verdict")
    for row in table.itertuples():
        numbers = (
            f"{row.elpd:.1f}",
            f"{row.difference:.1f}",
            f"{row.difference_se:.1f}",
            f"{row.unreliable} of {row.units}",
        )
        shown.add_row(markup(row.fit), row.model, *numbers, f"{row.weight:.2f}", markup(row.verdict))
    return shown


def sensitivity(
    folder: Annotated[Path, typer.Argument(help="Folder of a fit.", metavar="FIT")],
    base: Annotated[
        str | None, typer.Option(help="Model that the others are compared with; default: the first.")
    ] = None,
    refits: Annotated[
        int, typer.Option(min=0, help="Judges at most whose ratings are left out by a new fit; 0: none is made.")
    ] = 8,
    used: Annotated[
        int, typer.Option("--loo-draws", min=100, help="Draws of the fit at which likelihoods are computed.")
    ] = 1000,
    smallest: Smallest = 0.0,
    claim: Claim = None,
) -> None:
    """What claims rest on: each judge left out in turn, and the pull of the prior. Writes report.html of the fit again.

    What is found stays in FIT, for `dpeer irt report` and `export`; a run that was stopped goes on.
    """
    from dpeer.eval.irt import robustness
    from dpeer.eval.irt.claims import Claims
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.tables import tabulate
    from dpeer.launcher.commands.irt_show import show
    from dpeer.launcher.fitting import page_of

    console = Console(highlight=False)
    posterior = load(folder)
    wanted = Claims(smallest, tuple(claim or ()))
    tabulate(posterior, base, wanted=wanted)  # a wrong name is told before hours of sampling
    with _bar(console) as say:
        found = robustness.robustness(
            posterior,
            refits,
            used,
            say,
            robustness.load(folder, posterior),
            lambda so_far: robustness.save(so_far, folder),
        )
    result = tabulate(posterior, base, None, wanted, found)
    if "stable" in (table := result.tables["contrasts"]):
        for row in table.itertuples():
            console.print(f"{markup(row.model)} in {markup(row.dimension)}: {markup(row.stable)}", soft_wrap=True)
    for note in robustness.notes(found, result.tables):
        console.print(f"[yellow]note:[/] {markup(note)}", soft_wrap=True)
    show(result, page_of(result, folder), console)


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, float], None]]:
    """Progress on the console: (what, fraction done)."""
    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, done: bar.update(task, description=markup(what), completed=done)
