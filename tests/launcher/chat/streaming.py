"""An OpenAI-compatible endpoint that answers word by word, and judges; what each model says is known."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "key-that-nobody-may-see"


@dataclass
class Endpoint:
    """asked: the bodies of all requests. broken: models whose replies break off; slow: whose wait for `go`."""

    port: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    slow: set[str] = field(default_factory=set)
    go: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def says(self, body: dict[str, Any]) -> list[str]:
        turn = sum(m["role"] == "user" for m in body["messages"])
        return [f"{body['model']}", " answers", f" turn {turn}: ", "<b>not bold</b>"]


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(body)
            if body["model"] == "refused":
                self.reply(401, {"error": {"message": f"bad key {self.headers['Authorization']}"}})
            elif not body.get("stream"):
                said = json.dumps({"rationale": "it commits", "score": 4})
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
                self.reply(200, {"id": "x", "object": "chat.completion", "model": "judge", "choices": [choice]})
            else:
                self.stream(body)

        def reply(self, status: int, content: dict[str, Any]) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def stream(self, body: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            pieces = state.says(body)
            try:
                if body["model"] == "thinker":
                    self.event({"choices": [{"delta": {"reasoning_content": "Hm."}, "finish_reason": None}]})
                    self.event({"choices": [{"delta": {}, "finish_reason": "length"}]})
                    return
                for k, piece in enumerate(pieces):
                    if k == 1 and body["model"] in state.slow:
                        state.go.wait(30)
                    if k == 2 and body["model"] in state.broken:
                        return
                    self.event({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
                self.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
                self.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                pass

        def event(self, content: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        state.go.set()
        server.shutdown()
        server.server_close()
