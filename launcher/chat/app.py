"""The page's server: replies side by side, scores on request, votes. For browsers of this machine with its token."""

from __future__ import annotations

import getpass
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dpeer.errors import DpeerError
from dpeer.eval.backends.config import Served
from dpeer.eval.config import Generation
from dpeer.launcher.chat.scores import Judges
from dpeer.launcher.chat.stream import reply
from dpeer.launcher.chat.talks import Talk, Talks, text_of
from dpeer.launcher.chat.votes import TIE, Vote, Votes

HOSTS = ("127.0.0.1", "localhost")
PAGE = Path(__file__).with_name("page.html")
MOST_BYTES = 1 << 20
"""Of one request."""
OVERALL = "overall"
"""Dimension of votes where no rubric names any."""


@dataclass
class Room:
    """What one server has: models behind endpoints, where votes go, and judges, if any."""

    models: Sequence[Served]
    generation: Generation
    votes: Votes
    voter: str = field(default_factory=getpass.getuser)
    judges: Judges | None = None
    dimensions: tuple[str, ...] = ()
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    voting: anyio.Lock = field(default_factory=anyio.Lock)
    talks: Talks = field(init=False)

    def __post_init__(self) -> None:
        self.talks = Talks([model.name for model in self.models])
        self.dimensions = self.dimensions or (self.judges.dimensions if self.judges else (OVERALL,))

    def address(self, listener: socket.socket) -> str:
        return f"http://{HOSTS[0]}:{listener.getsockname()[1]}/{self.token}/"

    def served(self, name: str) -> Served:
        return next(model for model in self.models if model.name == name)


def run(room: Room, listener: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    import uvicorn

    settings = uvicorn.Config(application(room), log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=[listener])


class OnlyHere:
    """Nothing for requests that reached this machine under another name (DNS rebinding), or are too large."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        length = headers.get("content-length", "")  # without one a request has no end that could be checked
        if headers.get("host", "").rpartition(":")[0] not in HOSTS:
            answer: Response = PlainTextResponse("Nothing here.", 404)
        elif scope["method"] == "POST" and not (length.isdigit() and int(length) <= MOST_BYTES):
            answer = JSONResponse({"error": "this request is too large"}, 413)
        else:
            await self.app(scope, receive, send)
            return
        await answer(scope, receive, send)


Handler = Callable[[Room, dict[str, Any]], Awaitable[Response]]


def application(room: Room) -> Starlette:
    """The server of a room, below its token. What a request gets wrong is answered with 400 and a sentence."""

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient() as client:
            app.state.client = client
            yield

    async def page(_: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        return HTMLResponse(PAGE.read_text(encoding="utf-8").replace("NONCE", nonce), headers=_guards(nonce))

    async def state(_: Request) -> Response:
        return JSONResponse(_state(room))

    async def votes(_: Request) -> Response:
        text = room.votes.path.read_text(encoding="utf-8") if room.votes.path.exists() else ""
        headers = {"Content-Disposition": 'attachment; filename="votes.csv"', "X-Content-Type-Options": "nosniff"}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    def post(path: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                given = json.loads(await request.body())
                if not isinstance(given, dict):
                    raise ValueError("a request must be a JSON object")
                return await handler(room, given)
            except (ValueError, RecursionError, DpeerError) as error:
                return JSONResponse({"error": str(error)}, 400)
            except OSError as error:
                return JSONResponse({"error": f"{room.votes.path}: {error.strerror}; the vote was not kept"}, 507)

        return Route(path, endpoint, methods=["POST"])

    async def answer(room: Room, given: dict[str, Any]) -> Response:
        talk = room.talks[given.get("talk")]
        pieces = _reply(app.state.client, room, talk, _column(talk, given))
        return StreamingResponse(pieces, media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})

    routes = [
        Route("/", page),
        Route("/state", state),
        Route("/votes.csv", votes),
        post("/ask", _ask),
        post("/answer", answer),
        post("/vote", _vote),
        post("/reveal", _reveal),
        post("/scores", _scores),
        post("/export", _export),
    ]
    app = Starlette(routes=[Mount(f"/{room.token}", routes=routes)], middleware=[Middleware(OnlyHere)], lifespan=life)
    return app


def _guards(nonce: str) -> dict[str, str]:
    return {
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    }


def _state(room: Room) -> dict[str, Any]:
    return {
        "models": [model.name for model in room.models],
        "dimensions": list(room.dimensions),
        "judges": [judge.name for judge in room.judges.config.judges] if room.judges else [],
        "scale": list(room.judges.rubric.scale) if room.judges else [],
        "votes": room.votes.counts,
        "voter": room.voter,
        "file": str(room.votes.path),
    }


def _column(talk: Talk, given: dict[str, Any]) -> int:
    column = given.get("column")
    if not isinstance(column, int) or not 0 <= column < len(talk.models):
        raise ValueError("column must be the number of a reply, from 0")
    return column


async def _ask(room: Room, given: dict[str, Any]) -> Response:
    """A message of the person, at the end of a conversation or as the first of a new one."""
    text = text_of(given, "text")
    if given.get("talk"):
        talk = room.talks[given["talk"]]
        if not talk.complete:
            raise ValueError("not all models have answered the last message; wait, or begin a new conversation")
    else:
        models = given.get("models")
        names = [str(name) for name in models] if isinstance(models, list) else []
        talk = room.talks.begin(names, bool(given.get("blind")))
    talk.ask(text)
    return JSONResponse({"talk": talk.id, "columns": len(talk.models), "names": talk.names})


async def _reply(client: httpx.AsyncClient, room: Room, talk: Talk, column: int) -> AsyncIterator[bytes]:
    """Lines of JSON: {"text": piece} ..., then {"end": reason} or {"error": words}. What was answered is told again."""
    told: list[str] = []
    if len(talk.replies[column]) >= len(talk.said):
        yield _line(text=talk.replies[column][len(talk.said) - 1])
        yield _line(end="stop")
        return
    turn = len(talk.said)
    async for piece in reply(client, room.served(talk.models[column]), talk.messages(column), room.generation):
        if piece.kind == "text":
            told.append(piece.text)
        if piece.kind == "end":
            if len(talk.replies[column]) >= turn:  # in another tab, by other words
                yield _line(error="this message was answered meanwhile, by other words; retry shows them")
                return
            talk.replies[column].append("".join(told))
        yield _line(**{piece.kind: piece.text})


def _line(**event: str) -> bytes:
    return json.dumps(event).encode() + b"\n"


async def _vote(room: Room, given: dict[str, Any]) -> Response:
    """Which column is better in a dimension; the names are told afterwards."""
    async with room.voting:
        return await _kept(room, room.talks[given.get("talk")], given)


async def _kept(room: Room, talk: Talk, given: dict[str, Any]) -> Response:
    dimension, winner = text_of(given, "dimension"), given.get("winner")
    if not talk.blind or talk.revealed:
        raise ValueError("votes count only while names are hidden; begin a new conversation with hidden names")
    if not talk.complete:
        raise ValueError("a vote is between two models that have both answered")
    if dimension not in room.dimensions:
        raise ValueError(f"no dimension is called {dimension}")
    if dimension in talk.voted:
        raise ValueError(f"there is a vote on {dimension} already")
    if winner not in (0, 1, TIE):
        raise ValueError("winner must be 0, 1 or tie")
    vote = Vote(
        talk.item,
        dimension,
        room.voter,
        talk.models[0],
        talk.models[1],
        TIE if winner == TIE else talk.models[int(winner)],
        talk.sample,
        talk.said[0] if len(talk.said) == 1 else json.dumps(talk.said, ensure_ascii=False),
        talk.whole(0),
        talk.whole(1),
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    sample = await anyio.to_thread.run_sync(room.votes.add, vote)
    if talk.item == vote.item:  # else the conversation has gone on meanwhile
        talk.sample = sample
        talk.voted.add(dimension)
        talk.revealed |= len(talk.voted) == len(room.dimensions)
    return JSONResponse({"names": talk.names, "voted": sorted(talk.voted), "votes": room.votes.counts})


async def _reveal(room: Room, given: dict[str, Any]) -> Response:
    """The names, without a vote; there can be none about this conversation afterwards."""
    talk = room.talks[given.get("talk")]
    talk.revealed = True
    return JSONResponse({"names": talk.names})


async def _scores(room: Room, given: dict[str, Any]) -> Response:
    """What the judges say of one column."""
    talk = room.talks[given.get("talk")]
    column = _column(talk, given)
    if room.judges is None:
        raise ValueError("there are no judges here; --judges RECIPE names an evaluation that has some")
    if not talk.complete:
        raise ValueError("judges read finished replies")
    return JSONResponse({"scores": await anyio.to_thread.run_sync(partial(room.judges.rate, talk, column))})


async def _export(room: Room, given: dict[str, Any]) -> Response:
    """The conversation, as JSON; a blind one without names until it has been voted on."""
    return JSONResponse(room.talks[given.get("talk")].export())
