"""`dpeer irt`: abilities from ratings, and studies of how well they are recovered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dpeer.launcher.commands import reading
from dpeer.launcher.commands.irt_options import (
    Claim,
    ModelItem,
    Output,
    PeopleScale,
    Smallest,
    Table,
    Terms,
    Thresholds,
    anchors_of,
    choice,
    scale_of,
    terms_of,
)
from dpeer.launcher.commands.irt_robust import models, sensitivity
from dpeer.launcher.commands.irt_show import show
from dpeer.launcher.commands.irt_studies import recover, simulate
from dpeer.launcher.fitting import page_of, run_fit

if TYPE_CHECKING:
    import pandas as pd


app = typer.Typer(no_args_is_help=True)


@app.command()
def fit(
    table: Table,
    output: Output = Path("runs/irt"),
    model: Annotated[
        str,
        typer.Option(help="gmfrm: each judge has a discrimination; rasch: all equal; graded: cumulative logits."),
    ] = "gmfrm",
    base: Annotated[
        str | None, typer.Option(help="Model that the others are compared with; default: the first.")
    ] = None,
    dimension: Annotated[list[str] | None, typer.Option(help="Use this dimension; repeat. Default: all.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out the ratings of this judge; repeat.", metavar="JUDGE")
    ] = None,
    terms: Terms = None,
    response_effect: Annotated[
        bool | None,
        typer.Option(
            "--response-effect/--no-response-effect", help="Default: on where responses are rated repeatedly."
        ),
    ] = None,
    model_item: ModelItem = None,
    people_scale: PeopleScale = None,
    thresholds: Thresholds = "judge",
    severity_prior: Annotated[
        str,
        typer.Option(help="shrunken: uncertain severities are drawn to their mean; wide: not at all, as in FACETS."),
    ] = "shrunken",
    chains: Annotated[int, typer.Option(min=1)] = 4,
    warmup: Annotated[int, typer.Option(min=10, help="Warm-up iterations per chain.")] = 1000,
    draws: Annotated[int, typer.Option(min=10, help="Draws per chain after warm-up.")] = 1000,
    threads: Annotated[int, typer.Option(min=1, help="Threads per chain; useful for large data on many cores.")] = 1,
    seed: Annotated[int, typer.Option(min=1)] = 1,
    approx: Annotated[bool, typer.Option("--approx", help="A short run, labelled approximate; no claims.")] = False,
    anchor: Annotated[
        Path | None, typer.Option(help="Folder of an earlier fit: hold its judges and items in place.", metavar="FIT")
    ] = None,
    anchor_sd: Annotated[
        float | None,
        typer.Option(
            min=0, help="Logits by which an anchor may move, 0: not at all. Default: its earlier posterior sd."
        ),
    ] = None,
    not_anchor: Annotated[
        list[str] | None, typer.Option(help="Judge or item of the earlier fit that is no anchor, e.g. drifted; repeat.")
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="Possible scores, e.g. 1-5. Default: from the least to the greatest given.")
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(help="Folder of an earlier fit to fewer ratings: go on from there, in less time.", metavar="FIT"),
    ] = None,
    keep_csv: Annotated[
        bool, typer.Option("--keep-csv", help="Keep CmdStan's own files in the subfolder csv, for CmdStanPy.")
    ] = False,
    smallest: Smallest = 0.0,
    claim: Claim = None,
    map_: reading.Map = None,
    label: reading.Label = None,
    constant: reading.Constant = None,
    human: reading.Human = None,
    family: reading.Family = None,
    half_points: reading.HalfPoints = False,
    missing: reading.Missing = None,
    keep_copies: reading.KeepCopies = False,
) -> None:
    """Estimate abilities, severities and difficulties; write draws, tables, figures and report.html.

    Tables made elsewhere are read as by `dpeer ratings import`, with its options.
    """
    from dpeer.eval.irt.claims import Claims
    from dpeer.eval.irt.types import MODELS, Options

    options = Options(
        model=choice("--model", model, MODELS),
        response_effect=response_effect,
        model_item=model_item,
        people_scale=people_scale,
        thresholds=choice("--thresholds", thresholds, ("common", "judge", "item")),
        severity_prior=choice("--severity-prior", severity_prior, ("shrunken", "wide")),
        chains=chains,
        warmup=warmup,
        draws=draws,
        threads=threads,
        seed=seed,
        approx=approx,
        anchors=anchors_of(anchor, anchor_sd, tuple(not_anchor or ())),
        **terms_of(terms),
    )
    console = Console(highlight=False)
    given = reading.options(map_, label, constant, human, family, missing, half_points, keep_copies)
    result = run_fit(
        _table(table, given, output),
        output,
        options,
        base,
        tuple(dimension or ()),
        console,
        scale_of(scale),
        wanted=Claims(smallest, tuple(claim or ())),
        without=tuple(without or ()),
        start_from=start_from,
        keep_csv=keep_csv,
    )
    show(*result, console)


def _table(path: Path, given: reading.Options, output: Path) -> Path | pd.DataFrame:
    """The table itself, or what an import makes of it: where an option asks for one, or its columns are not ours.

    ConfigError for options that would lose what `dpeer judge` wrote beside the scores."""
    from dpeer.errors import ConfigError
    from dpeer.eval.elsewhere.importer import with_families
    from dpeer.eval.irt.ratings_files import judged, own_form, read

    if own_form(path) and not given.words():
        return path
    if path.exists() and judged(path):
        if refused := given.words("human", "family"):
            raise ConfigError(
                f"{path} was written by dpeer, whose scores need no reading: {refused[0]} is for tables made elsewhere."
                " Leave it out (--human and --family may stay)"
            )
        families = reading.pairs(given.family, "--family")
        return with_families(read(path), given.human, families, str(path))
    return reading.read(path, given, ["dpeer", "irt", "fit", str(path), "-o", str(output)])


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a fit.", metavar="FIT")],
    base: Annotated[
        str | None, typer.Option(help="Model that the others are compared with; default: the first.")
    ] = None,
    before: Annotated[
        Path | None, typer.Option(help="Folder of an earlier fit: show which judges and items have moved since.")
    ] = None,
    smallest: Smallest = 0.0,
    claim: Claim = None,
) -> None:
    """Write tables, figures and report.html of a fit again."""
    from dpeer.eval.irt import robustness
    from dpeer.eval.irt.claims import Claims
    from dpeer.eval.irt.design import check
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.tables import tabulate

    posterior = load(folder)
    if posterior.facts.get("design_checked", True):  # fits of earlier versions did not keep the warnings
        warnings = [str(w) for w in check(posterior.ratings, posterior.options).warnings]
        posterior = replace(posterior, facts=posterior.facts | {"design_warnings": warnings})
    wanted, robust = Claims(smallest, tuple(claim or ())), robustness.load(folder, posterior)
    result = tabulate(posterior, base, load(before) if before else None, wanted, robust)
    show(result, page_of(result, folder), Console(highlight=False))


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a fit.", metavar="FIT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the files; made if it is missing.")],
    format_: Annotated[
        list[str] | None, typer.Option("--format", help="csv, json, md, tex or netcdf; repeat. Default: csv, md, tex.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Model that the others are compared with; default: the first.")
    ] = None,
) -> None:
    """Write every table of a fit for papers and other programs, and its draws for ArviZ (netcdf)."""
    from dpeer.errors import ConfigError
    from dpeer.eval.irt import robustness
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.inference_data import write_netcdf
    from dpeer.eval.irt.tables import tabulate
    from dpeer.report.table_files import FORMATS, write_frames

    formats = format_ or ["csv", "md", "tex"]
    if unknown := [name for name in formats if name not in (*FORMATS, "netcdf")]:
        raise ConfigError(f"--format {unknown[0]}: must be one of {', '.join(FORMATS)}, netcdf")
    posterior = load(folder)
    written = []
    if "netcdf" in formats:
        written.append(write_netcdf(posterior, output / "draws.nc"))
    if tables := [name for name in formats if name != "netcdf"]:
        robust = robustness.load(folder, posterior)
        written += write_frames(tabulate(posterior, base, robust=robust).tables, output, tables)
    typer.echo(f"{output}: {len(written)} files")


app.command()(sensitivity)
app.command()(models)
app.command()(simulate)
app.command()(recover)
