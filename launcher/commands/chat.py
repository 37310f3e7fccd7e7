"""`dpeer chat` and `dpeer serve`: talk to a trained model beside its base."""

from __future__ import annotations

import shlex
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dpeer.escape import markup

if TYPE_CHECKING:
    from dpeer.eval.backends.config import Served
    from dpeer.eval.config import EvalConfig
    from dpeer.launcher.chat.scores import Judges

Models = Annotated[
    list[str],
    typer.Argument(
        help="Run folders, model folders, hub ids, or endpoints: MODEL@http://host:port/v1 (NAME=MODEL@... names one).",
        metavar="MODEL|RUN...",
    ),
]
NoBase = Annotated[bool, typer.Option("--no-base", help="Of runs, only what they trained, not what they began with.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")]
System = Annotated[str | None, typer.Option(help="System message before each conversation.")]
KeyEnv = Annotated[str, typer.Option(help="Environment variable with the key of endpoints.")]
MaxLength = Annotated[int, typer.Option(min=32, help="Longest conversation, in tokens, for models that run here.")]


def chat(
    models: Models,
    no_base: NoBase = False,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    system: System = None,
    key_env: KeyEnv = "OPENAI_API_KEY",
    max_length: MaxLength = 8192,
) -> None:
    """Talk to models in the terminal; of a run to what it trained, beside its base."""
    from dpeer.eval.config import Generation
    from dpeer.launcher.chat.terminal import talk
    from dpeer.launcher.chat.who import talkers

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers and their folders go
    console = Console(highlight=False)
    generation = Generation(max_tokens=max_tokens, temperature=temperature, system=system)
    with _served(talkers(models, not no_base, key_env), max_length, console) as served:
        talk(served, generation, console)


def serve(
    models: Models,
    no_base: NoBase = False,
    votes: Annotated[Path, typer.Option(help="Table to which votes are added; `dpeer irt fit` reads it.")] = Path(
        "runs/votes.csv"
    ),
    voter: Annotated[str | None, typer.Option(help="Who votes; default: your user name.")] = None,
    dimension: Annotated[
        list[str] | None, typer.Option(help="What votes are about; repeat. Default: the judges' rubric, or overall.")
    ] = None,
    judges: Annotated[
        str | None, typer.Option(help="Evaluation whose judges score replies on request.", metavar="RECIPE")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes any free one.")] = 0,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    system: System = None,
    key_env: KeyEnv = "OPENAI_API_KEY",
    max_length: MaxLength = 8192,
) -> None:
    """Show models side by side in a page of this machine, with names hidden, and collect votes, until Ctrl-C."""
    import getpass

    from dpeer.eval.config import Generation
    from dpeer.launcher.chat.app import Room, run
    from dpeer.launcher.chat.votes import Votes
    from dpeer.launcher.chat.who import talkers

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers and their folders go
    console, voter = Console(highlight=False), voter or getpass.getuser()
    generation = Generation(max_tokens=max_tokens, temperature=temperature, system=system)
    table, found, config = Votes(votes), talkers(models, not no_base, key_env), _judges(judges)
    before = len(table.rows)
    try:
        with _listener(port) as listener:
            everybody = [*found, *(config.judges if config else ())]
            with _served(everybody, max_length, console, config) as served:
                rated = _seated(config, served[len(found) :])
                room = Room(served[: len(found)], generation, table, voter, rated, tuple(dimension or ()))
                listener.listen()  # whoever opens the address at once waits, and is not turned away
                console.print(f"{room.address(listener)}\nOnly browsers on this machine can open it. Ctrl-C ends it.")
                run(room, listener)
    finally:
        if len(table.rows) > before:
            words = ["dpeer", "irt", "fit", str(votes), "--human", voter, "-o", "runs/votes"]
            console.print(f"{len(table.rows) - before} new votes, {len(table.rows)} in {votes}. What they say:")
            console.print(markup(f"    {shlex.join(words)}"), soft_wrap=True)


@contextmanager
def _listener(port: int) -> Iterator[socket.socket]:
    """A port of this machine, taken before models are loaded for it."""
    from dpeer.errors import ConfigError
    from dpeer.launcher.chat.app import HOSTS

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOSTS[0], port))
        except OSError as error:
            raise ConfigError(f"--port {port}: cannot be used ({error.strerror}). Leave it out.") from None
        yield listener


@contextmanager
def _served(
    models: list[Served], max_length: int, console: Console, config: EvalConfig | None = None
) -> Iterator[list[Served]]:
    from dpeer.eval.backends.config import Engine
    from dpeer.launcher.chat.servers import serving

    settings = (config.engine if config else Engine()).model_copy(update={"max_model_len": max_length})
    with serving(models, settings, lambda line: console.print(markup(line), soft_wrap=True)) as served:
        yield served


def _judges(recipe: str | None) -> EvalConfig | None:
    from dpeer.errors import ConfigError
    from dpeer.launcher.commands.evaluation import evaluation_config

    if recipe is None:
        return None
    config = evaluation_config(recipe, None)
    if not config.judges:
        raise ConfigError(f"--judges {recipe}: this evaluation has no judges")
    if config.judging.mode == "pairwise":
        raise ConfigError(
            f"--judges {recipe}: its judges compare; scores of single replies need mode logprob or structured"
        )
    return config


def _seated(config: EvalConfig | None, served: list[Served]) -> Judges | None:
    from dpeer.launcher.chat.scores import Judges

    return None if config is None else Judges.of(config.model_copy(update={"judges": tuple(served)}))
