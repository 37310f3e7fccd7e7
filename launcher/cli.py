"""The `dpeer` command line. Heavy imports live inside the commands, so that help appears at once."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from dpeer import __version__
from dpeer.errors import DpeerError, Interrupted
from dpeer.escape import markup
from dpeer.files import follow_umask
from dpeer.launcher.commands import evaluation as eval_commands
from dpeer.launcher.commands import slurm as slurm_commands
from dpeer.launcher.commands import sweep as sweep_commands
from dpeer.launcher.commands.audit import audit
from dpeer.launcher.commands.bench import bench
from dpeer.launcher.commands.build import build
from dpeer.launcher.commands.bundle import bundle, verify
from dpeer.launcher.commands.chat import chat, serve
from dpeer.launcher.commands.compare import compare
from dpeer.launcher.commands.config import app as config_app
from dpeer.launcher.commands.data import app as data_app
from dpeer.launcher.commands.eval_plan import app as eval_app
from dpeer.launcher.commands.fsck import fsck
from dpeer.launcher.commands.help import help_
from dpeer.launcher.commands.irt import app as irt_app
from dpeer.launcher.commands.loop import loop
from dpeer.launcher.commands.methods import methods
from dpeer.launcher.commands.new import new
from dpeer.launcher.commands.open import open_
from dpeer.launcher.commands.plan import plan
from dpeer.launcher.commands.preflight import preflight
from dpeer.launcher.commands.quality import quality
from dpeer.launcher.commands.tables import tables
from dpeer.launcher.commands.tolerance import tolerance
from dpeer.launcher.commands.watch import watch
from dpeer.launcher.faq import pointer
from dpeer.scratch import keep_newest

EXTRAS = {
    "train": ("torch", "transformers", "peft", "datasets", "deepspeed", "ray", "accelerate", "psutil", "tensorboard"),
    "judge": ("httpx", "transformers", "ray", "psutil"),
    "judge,gpu": ("torch", "vllm"),
    "serve": ("starlette", "uvicorn", "anyio", "httpx"),
}
"""What pip installs with each extra, by import name."""
MOST_TRACEBACKS = 20
"""Files of unexpected errors that stay in one folder."""
JUDGING = ("build", "generate", "judge", "bench")
"""Commands that need the extra `judge`; all others that need an extra need `train`."""


def missing_extra(module: str, command: str) -> str | None:
    """One line that names the extra with which an absent module comes; None where no extra has it."""
    package = module.partition(".")[0]
    order = {"serve": ("serve", "judge,gpu"), "chat": ("serve", "judge,gpu")}.get(
        command, ("judge", "judge,gpu", "train") if command in JUDGING else ("train", "judge", "judge,gpu", "serve")
    )
    extra = next((name for name in order if package in EXTRAS[name]), None)
    if extra is None:
        return None
    without_gpu = " (without a GPU: 'dpeer[judge,cpu]')" if extra == "judge,gpu" else ""
    return f"`dpeer {command}` needs {package}, which is not installed: pip install 'dpeer[{extra}]'{without_gpu}"


class _Guarded(TyperGroup):
    """Ends every command with one screen on stderr and an exit code: 1 for a fault, 128 + N for signal N."""

    def invoke(self, ctx: Any) -> Any:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            console.print("interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Interrupted as stopped:
            console.print(markup(str(stopped)))
            raise typer.Exit(stopped.code) from None
        except DpeerError as error:
            console.print(f"[bold red]error:[/] {markup(str(error))}")
            console.print(f"[dim]{pointer(error)}[/]")
            fault: Exception = error
        except Exception as error:
            if hasattr(error, "exit_code"):  # typer's own: usage errors and Exit
                raise
            if isinstance(error, ModuleNotFoundError) and (
                advice := missing_extra(error.name or "", ctx.invoked_subcommand or "")
            ):
                console.print(f"[bold red]error:[/] {markup(advice)}")
                console.print(f"[dim]{pointer(error)}[/]")
                raise typer.Exit(1) from None
            path = _save_traceback(ctx.meta.get("run_dir"))
            console.print(f"[bold red]unexpected {type(error).__name__}:[/] {markup(str(error)[:500])}")
            console.print(f"This is a bug in dpeer or in a library below it. Traceback: {markup(str(path))}")
            console.print(f"[dim]{pointer(error)}[/]")
            fault = error
        if ctx.params.get("debug"):
            console.print(markup("".join(traceback.format_exception(fault))))
        raise typer.Exit(1)


def _save_traceback(run_dir: Path | None) -> Path:
    for folder in (run_dir, None) if run_dir and run_dir.is_dir() else (None,):
        with (
            suppress(OSError),  # the run's disk may be what failed
            tempfile.NamedTemporaryFile("w", prefix="dpeer-error-", suffix=".txt", dir=folder, delete=False) as file,
        ):
            traceback.print_exc(file=file)
            file.flush()
            if folder:
                follow_umask(Path(file.name))
            keep_newest(Path(file.name).parent, "dpeer-error-*.txt", MOST_TRACEBACKS)
            return Path(file.name)
    return Path("(no disk took it)")


app = typer.Typer(
    cls=_Guarded,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Tolerant Lagrangian DPO over persona dimensions, on Ray and DeepSpeed ZeRO-3.",
)
app.add_typer(config_app, name="config", help="The form of recipes, for editors.")
data_app.command()(audit)
data_app.command()(quality)
app.add_typer(data_app, name="data", help="Look at and check data sets.")
app.command()(new)
app.command()(preflight)
app.command()(watch)
app.command(name="open")(open_)
app.command()(fsck)
app.command(name="help")(help_)
app.command()(build)
app.command()(bundle)
app.command()(verify)
app.command()(eval_commands.generate)
app.command()(eval_commands.judge)
app.command()(bench)
app.command()(slurm_commands.slurm)
app.command(hidden=True)(slurm_commands.wait_for_nodes)
app.add_typer(eval_commands.ratings, name="ratings", help="Bring in ratings made elsewhere.")
app.add_typer(eval_app, name="eval", help="Plan an evaluation by the precision that it is to have.")
app.command()(compare)
app.command()(methods)
app.command()(tables)
app.command()(chat)
app.command()(serve)
app.command()(plan)
app.command()(tolerance)
app.command()(loop)
app.add_typer(sweep_commands.app, name="sweep", help="Ablations: many runs from one sweep file.")
app.add_typer(irt_app, name="irt", help="Abilities from ratings, and how well they are recovered.")

Run = Annotated[Path, typer.Argument(help="Run folder, e.g. runs/demo/lagrangian.", metavar="RUN")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"dpeer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Tolerant Lagrangian DPO over persona dimensions, on Ray and DeepSpeed ZeRO-3."""


@app.command()
def train(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or the path of a YAML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. training.steps=100; repeat.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")] = False,
    auto_resume: Annotated[
        bool, typer.Option("--auto-resume", help="Continue the run if it exists, else start it: for job scripts.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
) -> None:
    """Train a model as a recipe says."""
    from dpeer.config_io import resolved_yaml
    from dpeer.launcher.recipe import training_config

    config = training_config(recipe, set_ or ())
    ctx.meta["run_dir"] = config.run_dir
    if dry_run:
        typer.echo(resolved_yaml(config), nl=False)
        return
    from dpeer.launcher.train import run
    from dpeer.training.run_dir import RunDir

    raise typer.Exit(run(config, resume=resume or (auto_resume and RunDir(config.run_dir).manifest.exists())))


@app.command()
def export(
    run: Run,
    output: Annotated[Path | None, typer.Option(help="Folder of the exported model; default: RUN/export.")] = None,
    model: Annotated[Path | None, typer.Option(help="Where the base model is now, if it has been moved.")] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", "--adapter-only", help="Only the adapter of a LoRA run, to RUN/adapter.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="Send the export to a model hub; made first where it is not there yet."
        ),
    ] = None,
    private: Annotated[bool, typer.Option(help="Who may see what --push sends: you alone, or all.")] = True,
) -> None:
    """Write a run's newest checkpoint as a Hugging Face model with its card."""
    if push is None:
        from dpeer.launcher.export import export_run

        typer.echo(export_run(run, output, model, adapter))
    else:
        from dpeer.launcher.push import push_run

        typer.echo(push_run(run, push, private, output, model, adapter))


@app.command()
def report(
    run: Annotated[
        Path,
        typer.Argument(help="Run folder, e.g. runs/demo/lagrangian; with --pdf any folder with a page.", metavar="RUN"),
    ],
    pdf: Annotated[bool, typer.Option("--pdf", help="Print the page to a PDF beside it, by Chromium.")] = False,
) -> None:
    """Write a run's report.html. With --pdf also print it, or the page of a fit, comparison, sweep or other result."""
    from dpeer.launcher.pdf import browser, page_in, print_page

    if pdf:
        browser()  # before anything is written
    trained = not pdf or (run / "ledger.jsonl").is_file()
    if trained:
        from dpeer.report.page import write_report

        typer.echo(page := write_report(run))
    else:
        page = page_in(run)
    if pdf:
        typer.echo(print_page(page))


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")],
    b: Annotated[Path, typer.Argument(help="Another one.", metavar="RUN")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if the runs differ.")] = False,
) -> None:
    """Say why two runs differ: config, data, model, reference, code, and where their ledgers part."""
    from dpeer.launcher.commands.diff import run

    comparison = run(a, b, as_json)
    raise typer.Exit(1 if exit_code and not comparison.same else 0)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of all that the demo makes; another seed replaces it.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the toy world and of training.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check configs and installed files, say what would be done, and stop.")
    ] = False,
) -> None:
    """Train the toy model with every method, compare them, and leave model, ledger, certificate and page."""
    if dry_run:
        from dpeer.launcher.demo_plan import show

        return show(output, seed, Console(highlight=False))
    from dpeer.launcher.demo import run

    raise typer.Exit(run(output, seed))


@app.command()
def doctor() -> None:
    """Show what this machine offers: versions, cores, GPUs, DeepSpeed, CmdStan."""
    from dpeer.launcher.doctor import show

    show()


def main() -> None:
    """The program `dpeer`. Libraries bring a million objects of which none is garbage: they are seldom looked through,
    and not at the end, when all memory goes back at once."""
    gc.set_threshold(50_000, 20, 20)
    atexit.register(gc.freeze)
    app()


if __name__ == "__main__":
    main()
