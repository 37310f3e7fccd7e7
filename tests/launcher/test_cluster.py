"""The private Ray cluster of a run is nobody else's."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dpeer.errors import ClusterError
from launcher.cluster import connect

LISTENERS = """
from launcher.cluster import connect
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
print(json.dumps(found))
"""


@pytest.mark.slow
def test_private_cluster_listens_on_loopback_only() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS], capture_output=True, text=True, env=environment, timeout=250
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) >= 5
    assert [f for f in found if f[0].removeprefix("::ffff:") != "127.0.0.1"] == []


def test_address_at_which_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ClusterError, match=r"no Ray cluster answers there.*refused"), connect(address):
            pass
