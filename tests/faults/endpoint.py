"""An OpenAI-compatible endpoint that goes away after some answers."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread


class Endpoint:
    """Rates whatever it is asked, always the same way; on the same port whenever it serves."""

    def __init__(self) -> None:
        self.port, self.server, self.left, self.lock = 0, None, 0, Lock()
        self.serve()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def serve(self, most: int = 10**9) -> None:
        """Until it has given so many answers; then its port is closed."""
        self.close()
        self.left = most
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self.port = self.server.server_port
        Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
        self.server = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = self.rfile.read(int(self.headers["Content-Length"]))
                with endpoint.lock:
                    endpoint.left -= 1
                    left = endpoint.left
                if left < 0:
                    self.close_connection = True
                    if left == -1:
                        Thread(target=endpoint.close).start()
                    return
                score = 1 + hashlib.sha256(asked).digest()[0] % 5
                message = {"role": "assistant", "content": json.dumps({"rationale": "", "score": score})}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
                reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                body = json.dumps(reply | {"usage": usage}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
