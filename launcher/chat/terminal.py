"""A conversation in the terminal, with one model or several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
from rich.console import Console

from dpeer.escape import markup
from dpeer.eval.backends.config import Served
from dpeer.eval.config import Generation
from dpeer.launcher.chat.stream import reply

HELP = "Empty line or /quit: end.  /new: a new conversation.  Ctrl-C stops a reply."


def talk(models: Sequence[Served], generation: Generation, console: Console) -> int:
    """Until the person has enough; returns how many messages were answered."""
    console.print(f"[dim]{HELP}[/]")
    histories: list[list[dict[str, str]]] = [[] for _ in models]
    answered = 0
    while True:
        try:
            text = console.input("[bold]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return answered
        if text in ("", "/quit", "/exit"):
            return answered
        if text == "/new":
            histories = [[] for _ in models]
            console.print("[dim]A new conversation.[/]")
            continue
        for model, history in zip(models, histories, strict=True):
            if len(models) > 1:
                console.print(f"[bold cyan]{markup(model.name)}[/]")
            asked = [*history, {"role": "user", "content": text}]
            try:
                said = asyncio.run(_shown(model, asked, generation, console))
            except KeyboardInterrupt:
                console.print("\n[yellow](stopped)[/]")
                continue
            if said is not None:  # a message without a whole answer is no part of what the model remembers
                history += [asked[-1], {"role": "assistant", "content": said}]
                answered += 1


async def _shown(
    model: Served, messages: Sequence[dict[str, str]], generation: Generation, console: Console
) -> str | None:
    """The reply, printed as it comes; None for one that failed."""
    told = []
    async with httpx.AsyncClient() as client:
        async for piece in reply(client, model, messages, generation):
            if piece.kind == "text":
                told.append(piece.text)
                console.out(_printable(piece.text), end="", highlight=False)
            elif piece.kind == "error":
                console.print(f"\n[red]{markup(piece.text)}[/]")
                return None
            elif piece.text == "length":
                console.print("[yellow] … cut at --max-tokens[/]", end="")
    console.print()
    return "".join(told)


def _printable(text: str) -> str:
    """What a terminal shows and does not obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
