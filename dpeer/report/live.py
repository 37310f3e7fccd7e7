"""A run's report that follows the run: for browsers of this machine alone, behind a secret in its address."""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST = "127.0.0.1"
WATCHED = ("ledger.jsonl", "samples.jsonl", "manifest.json", "stop.json", "certificate.json")
IDLE_S = 30.0
"""Browsers open connections that they may never use; their threads end after so long."""
REST = 5.0
"""Between two pages, times what the first took."""
FOLLOW = """<script nonce="{nonce}">
const place = "dpeer" + location.pathname, details = () => [...document.querySelectorAll("details")];
addEventListener("load", () => {{
  const [top, open] = JSON.parse(sessionStorage.getItem(place) || "[0, []]");
  details().forEach((d, i) => d.open = Boolean(open[i]));
  scrollTo(0, top);
}});
let misses = 0;
async function follow() {{
  try {{
    const version = await (await fetch("version")).text();
    misses = 0;
    if (version !== "{version}") {{
      sessionStorage.setItem(place, JSON.stringify([scrollY, details().map(d => d.open)]));
      location.reload();
      return;
    }}
  }} catch {{
    if (++misses === 3) {{
      document.querySelector(".kicker").append(" · no longer followed: dpeer watch has ended");
      return;
    }}
  }}
  setTimeout(follow, 2000);
}}
follow();
</script>
"""


class Live:
    """Serves the report of a run folder on a port of this machine (0: any free one). OSError: the port is taken."""

    def __init__(self, run_dir: Path, port: int = 0) -> None:
        self.run_dir, self.token = run_dir, secrets.token_urlsafe(16)
        self.server = ThreadingHTTPServer((HOST, port), partial(_Handler, self))
        self._rendering = threading.Lock()  # matplotlib's settings are those of the process
        self._page, self._rest_until = ("", ""), 0.0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server.server_port}/{self.token}/"

    @property
    def version(self) -> str:
        """Changes when there is something new to be shown; not at once after a page was made: training needs the
        processor more."""
        if time.monotonic() < self._rest_until:
            return self._page[0]
        stats = [path.stat() for name in WATCHED if (path := self.run_dir / name).exists()]
        return "-".join(f"{s.st_size:x}.{s.st_mtime_ns:x}" for s in stats) or "nothing"

    def page(self) -> tuple[str, str]:
        """(version, report as of then)."""
        from dpeer.report.page import live_html

        with self._rendering:
            version, began = self.version, time.monotonic()
            if self._page[0] != version:
                self._page = (version, live_html(self.run_dir))
                self._rest_until = time.monotonic() + REST * (time.monotonic() - began)
            return self._page

    def serve(self) -> None:
        """Until an exception, such as Ctrl-C, or `server.shutdown` from another thread."""
        try:
            self.server.serve_forever()
        finally:
            self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    timeout = IDLE_S

    def __init__(self, live: Live, *connection: object) -> None:
        self.live = live
        super().__init__(*connection)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        name = self.path.removeprefix(f"/{self.live.token}/")
        local = self.headers.get("Host", "").rpartition(":")[0] in (HOST, "localhost")  # not a name that leads here
        if not local or name not in ("", "version"):
            self.answer(404, "text/plain", "Nothing here. Use the whole address that dpeer watch has printed.")
        elif name:
            self.answer(200, "text/plain", self.live.version)
        else:
            nonce, (version, page) = secrets.token_urlsafe(16), self.live.page()
            before, end, after = page.rpartition("</body>")
            script = FOLLOW.format(nonce=nonce, version=version)
            self.answer(200, "text/html", f"{before}{script}{end}{after}", nonce)

    def answer(self, status: int, kind: str, text: str, nonce: str = "") -> None:
        body = text.encode()
        scripts = f"script-src 'nonce-{nonce}'; connect-src 'self'; " if nonce else ""
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; {scripts}base-uri 'none'; "
            "frame-ancestors 'none'",
        )
        with suppress(ConnectionError):  # a browser that has gone
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the page asks every other second."""
