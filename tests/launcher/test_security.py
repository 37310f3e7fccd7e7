"""Who connects is asked for a token, whatever was imported first; a cluster that is open already is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FIRST = """
from dpeer.launcher.cluster import connect
{before}
with connect():
    import os
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    print("token" if is_token_auth_enabled() else "open", os.environ["RAY_USAGE_STATS_ENABLED"])
"""
OPEN = """
import os
import tempfile
import ray
os.environ["RAY_AUTH_MODE"] = "disabled"
from ray._raylet import Config
Config.initialize("")
with tempfile.TemporaryDirectory(dir="/tmp") as folder:
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100_000_000,
             _temp_dir=folder, _node_ip_address="127.0.0.1", log_to_driver=False)
    {after}
    from dpeer.errors import ClusterError
    from dpeer.launcher.cluster import connect
    try:
        with connect():
            print("let in")
    except ClusterError as error:
        print(error)
    ray.shutdown()
"""


def run(program: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_no_import_sets_anything() -> None:
    program = "import os, dpeer.launcher, dpeer.launcher.cli\nprint([k for k in os.environ if k.startswith('RAY_')])"
    assert run(program) == "[]"


@pytest.mark.parametrize("before", ["", "import ray._private.worker"])
def test_connect_asks_for_a_token(before: str) -> None:
    assert run(FIRST.format(before=before)) == "token 0"


def test_an_open_cluster_is_refused_by_name_unless_it_is_wanted() -> None:
    assert "connected to a Ray cluster without authentication" in run(
        OPEN.format(after='del os.environ["RAY_AUTH_MODE"]')
    )
    assert run(OPEN.format(after="")) == "let in"
