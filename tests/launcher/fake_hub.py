"""A model hub on loopback: the few endpoints of a push, over real HTTP, with the content that was sent."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """`repos`: name -> (private, files). `failing`: paths that answer 500. `requests`: "METHOD path" in order."""

    token: str = "hf_secretsecret"
    repos: dict[str, tuple[bool, dict[str, bytes]]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    forbidden: bool = False
    requests: list[str] = field(default_factory=list)
    address: str = ""


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, value: Any = None, code: int = 200, **headers: str) -> None:
            content = b"" if value is None else json.dumps(value).encode()
            self.send_response(code)
            for name, said in {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
                **headers,
            }.items():
                self.send_header(name.replace("_", "-"), said)
            self.end_headers()
            self.wfile.write(content)

        def serve(self) -> None:
            path = self.path.partition("?")[0]
            body = self._body()
            hub.requests.append(f"{self.command} {path}")
            if path in hub.failing:
                return self.answer({"error": "the disk of the hub is full"}, 400)
            if path.startswith("/lfs/"):  # signed addresses need no token
                hub.blobs[path.removeprefix("/lfs/")] = body
                return self.answer({})
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer({"error": "Invalid credentials"}, 401)
            if path == "/api/whoami-v2":
                return self.answer({"name": "someone", "type": "user"})
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if found := re.fullmatch(r"/(\w+/[\w.-]+?)(?:\.git)/info/lfs/objects/batch", path):
                return self._batch(json.loads(body))
            if found := re.fullmatch(r"/api/models/(\w+/[\w.-]+)(?:/(tree|preupload|commit)/main)?", path):
                return self._model(*found.groups(), body)
            return self.answer({"error": f"no such endpoint: {path}"}, 404)

        do_GET = do_POST = do_PUT = serve

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _create(self, asked: dict[str, Any]) -> None:
            if hub.forbidden:
                return self.answer({"error": "You don't have the rights to create a model there"}, 403)
            name = f"{asked['organization']}/{asked['name']}"
            hub.repos[name] = (asked.get("visibility") == "private" or bool(asked.get("private")), {})
            return self.answer({"url": f"{hub.address}/{name}", "id": name})

        def _batch(self, asked: dict[str, Any]) -> None:
            objects = []
            for item in asked["objects"]:
                place = {"upload": {"href": f"{hub.address}/lfs/{item['oid']}"}}
                objects.append(item | ({} if item["oid"] in hub.blobs else {"actions": place}))
            self.answer({"transfer": "basic", "objects": objects})

        def _model(self, name: str, what: str | None, body: bytes) -> None:
            if name not in hub.repos:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            private, files = hub.repos[name]
            if what is None:
                return self.answer({"id": name, "private": private, "sha": "0" * 40, "siblings": []})
            if what == "tree":
                entries = [{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files.items()]
                return self.answer(entries)
            if what == "preupload":
                modes = [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for f in json.loads(body)["files"]
                ]
                return self.answer({"files": modes})
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            return self.answer({"commitUrl": f"{hub.address}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40})

    return Handler


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
