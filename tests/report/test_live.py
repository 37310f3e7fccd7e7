"""`dpeer watch`: who gets the page, and that it follows the run."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dpeer.launcher.cli import app
from dpeer.report import live as live_module
from dpeer.report.live import Live
from tests.report.test_report_page import Page

ROOT = Path(__file__).parents[2]


@pytest.fixture
def live(make_run, monkeypatch) -> Iterator[Live]:
    """A server before the first step of its run, that never rests."""
    monkeypatch.setattr(live_module, "REST", 0.0)
    folder = make_run(steps=6, certificate=False, watched=True)
    (folder / "ledger.jsonl").rename(folder / "later")
    served = Live(folder)
    thread = threading.Thread(target=served.serve)
    thread.start()
    yield served
    served.server.shutdown()
    thread.join(10)


def get(live: Live, path: str, host: str = "") -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection("127.0.0.1", live.server.server_port, timeout=60)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read().decode()
    connection.close()
    return found


def test_page_follows_the_run_from_before_its_first_step(live: Live) -> None:
    root, folder = f"/{live.token}/", live.run_dir
    status, headers, text = get(live, root)
    assert status == 200 and Page(text).all("h1") == ["Waiting for the first step"]
    policy = headers["Content-Security-Policy"]
    (nonce,) = re.findall(r'<script nonce="([^"]+)">', text)
    assert f"script-src 'nonce-{nonce}'" in policy and "default-src 'none'" in policy
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"

    version = get(live, root + "version")[2]
    assert f'version !== "{version}"' in text
    (folder / "later").rename(folder / "ledger.jsonl")
    assert get(live, root + "version")[2] != version
    page = Page(get(live, root)[2])
    assert page.all("h1") == ["Lagrangian DPO: unfinished, 6 of 80 steps and no certificate yet"]
    assert "What the policy says" in page.all("h2")
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_text("".join(lines[:5]))
    assert "5 of 80 steps" in Page(get(live, root)[2]).words
    assert not (folder / "report.html").exists()


def test_page_is_made_once_per_change_and_then_rests(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    first = live.page()
    assert live.page() is first
    monkeypatch.setattr(live_module, "REST", 1e6)
    (live.run_dir / "later").rename(live.run_dir / "ledger.jsonl")
    second = live.page()
    assert second[0] != first[0]
    with (live.run_dir / "ledger.jsonl").open("a") as ledger:
        ledger.write("\n")
    assert live.version == second[0] and live.page() is second


def test_nothing_is_told_without_the_secret_or_under_another_name(live: Live) -> None:
    root = f"/{live.token}/"
    assert live.server.server_address[0] == "127.0.0.1" and len(live.token) >= 20
    for path in ("/", "/version", "/wrong/", root[:-2] + "/", root + "manifest.json", root + "../ledger.jsonl"):
        status, _, text = get(live, path)
        assert status == 404 and "lagrangian" not in text
    assert get(live, root, "evil.example:80")[0] == 404
    assert get(live, root + "version", f"localhost:{live.server.server_port}")[0] == 200


def test_an_idle_connection_holds_nobody_up(live: Live) -> None:
    idle = http.client.HTTPConnection("127.0.0.1", live.server.server_port)
    idle.connect()
    assert get(live, f"/{live.token}/version")[0] == 200
    idle.close()


def test_a_run_that_cannot_be_shown_says_why(live: Live, amend) -> None:
    (live.run_dir / "later").rename(live.run_dir / "ledger.jsonl")
    form = {"objective": {"constraint": {"form": "<none>"}}}
    amend(live.run_dir / "manifest.json", lambda m: m | {"config": form})
    page = Page(get(live, f"/{live.token}/")[2])
    assert page.all("h1") == ["This run cannot be shown"] and "<none>" in page.words


def test_folders_that_are_no_run_and_taken_ports_are_refused(live: Live, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for folder in ("notes", "absent"):
        result = CliRunner().invoke(app, ["watch", str(tmp_path / folder)])
        assert result.exit_code == 1 and f"{folder}: is no run" in result.output.replace("\n", "")
    result = CliRunner().invoke(app, ["watch", str(live.run_dir), "--port", str(live.server.server_port)])
    assert result.exit_code == 1 and "cannot be used" in result.output


def test_ctrl_c_ends_it_with_code_0(make_run) -> None:
    command = [sys.executable, "-m", "dpeer.launcher.cli", "watch", str(make_run(steps=1))]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job may ignore it
    )
    assert process.stdout
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/\n", process.stdout.readline())
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and output.strip() == ""
