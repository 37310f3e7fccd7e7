"""Tiny models, one private Ray cluster and an endpoint for the tests of the judge farm."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.eval.toy_writers import Toy


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders a, b (qwen3), c (llama), d (qwen2): random tiny models whose tokens are bytes, so a digit is one."""
    from dpeer.toyworld.model import tiny_model

    folder = tmp_path_factory.mktemp("models")
    for seed, (name, family) in enumerate({"a": "qwen3", "b": "qwen3", "c": "llama", "d": "qwen2"}.items()):
        tiny_model(folder / name, family, seed)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from dpeer.launcher.cluster import connect

    with connect():
        yield


class Endpoint:
    """The chat completion protocol on 127.0.0.1. `decide` maps a request to (HTTP status, reply)."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.decide: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]] = self.rate
        self.lock = threading.Lock()

    def rate(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Score 4 with certainty 0.9, or the same as JSON."""
        if "response_format" in request:
            return self.reply('{"rationale": "It says so.", "score": 4}')
        top = [("4", math.log(0.9)), (" 4", math.log(0.05)), ("2", math.log(0.01)), ("The", math.log(0.03))]
        return self.reply("4", top)

    def reply(self, text: str, top: list[tuple[str, float]] | None = None) -> tuple[int, dict[str, Any]]:
        listed = [{"token": t, "logprob": p, "bytes": None} for t, p in top or []]
        logprobs = (
            {"content": [{"token": "4", "logprob": -0.1, "bytes": None, "top_logprobs": listed}]} if top else None
        )
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 50, "completion_tokens": 1, "total_tokens": 51}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": "served"}
        return 200, head | {"choices": [choice], "usage": usage}


@pytest.fixture
def endpoint() -> Iterator[tuple[Endpoint, str]]:
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.requests.append(request)
                state.keys.add(self.headers["Authorization"])
                status, reply = state.decide(request)
            body = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *connection: object) -> None:
            """Clients that hang up are no news."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def toy(endpoint: tuple[Any, str]) -> tuple[Toy, str, Any]:
    """Writers and verifiers behind an endpoint, its URL, and the endpoint."""
    from tests.eval.toy_writers import Toy

    state, url = endpoint
    world = Toy(state.reply)
    state.decide = world
    return world, url, state
