"""The private Ray cluster of a run is nobody else's."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from dpeer.errors import ClusterError
from dpeer.launcher import cluster
from dpeer.launcher.cluster import connect

LISTENERS = """
from dpeer.launcher import cluster
from dpeer.launcher.cluster import connect
import json, psutil, ray

with connect():
    @ray.remote(num_cpus=0)
    class Someone:
        def here(self): return True
    someone = Someone.remote()
    ray.get(someone.here.remote())
    me = psutil.Process()
    found = [(c.laddr.ip, c.laddr.port, p.name()) for p in (me, *me.children(recursive=True))
             for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    services = [word for p in me.children() for word in p.cmdline() if word.endswith(("monitor.py", "dashboard.py"))]
print(json.dumps([found, services]))
"""


@pytest.mark.slow
def test_private_cluster_listens_on_loopback_only() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS], capture_output=True, text=True, env=environment, timeout=250
    )
    assert done.returncode == 0, done.stderr
    found, services = json.loads(done.stdout.splitlines()[-1])
    assert len(found) >= 5 and services == []
    assert [f for f in found if f[0].removeprefix("::ffff:") != "127.0.0.1"] == []


def test_address_at_which_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ClusterError, match=r"no Ray cluster answers there.*refused"), connect(address):
            pass


@pytest.mark.parametrize("slow_starts", [2, cluster.STARTS])
def test_slow_start_of_ray_is_tried_again_on_a_clean_slate(slow_starts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    daemons: list[subprocess.Popen[bytes]] = []

    def init(**options: Any) -> None:
        daemons.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", options["_temp_dir"]]))
        while options["_temp_dir"] not in psutil.Process(daemons[-1].pid).cmdline():  # empty for a moment after exec
            pass
        if len(daemons) <= slow_starts:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if slow_starts < cluster.STARTS:
        with connect():
            assert [d.wait(5) for d in daemons[:-1]] == [-9] * slow_starts
            assert daemons[-1].poll() is None
            daemons[-1].kill()
    else:
        with pytest.raises(ClusterError, match=r"did not start, .* timed out during startup"), connect():
            pass
    assert all(d.wait(5) == -9 for d in daemons)
