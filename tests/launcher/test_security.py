"""Who connects is asked for a token, whatever was imported first; a cluster that is open already is refused; other
users of the machine can neither read nor replace the token."""

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
STRANGER = """
    import stat, subprocess
    from pathlib import Path
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    secret = token.read_text()
    logs = next(token.parent.glob("*/session_*/logs"))
    tries = ["cat " + str(token), "echo mine > " + str(token), "rm -f " + str(token), "cp /etc/passwd " + str(token),
             "mv " + str(token.parent) + " /tmp/dpeer-moved", "ls " + str(token.parent), "ls " + str(logs),
             "touch " + str(logs / "raylet.out")]
    if os.getuid() == 0:
        stranger = dict(user=65534, group=65534, extra_groups=[], capture_output=True, cwd="/tmp")
        print([t for t in tries if subprocess.run(["sh", "-c", t], **stranger).returncode == 0])
    print(stat.S_IMODE(token.parent.stat().st_mode) == 0o700, token.read_text() == secret)
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
def test_connect_asks_for_a_token_that_no_other_user_can_read_or_replace(before: str) -> None:
    """As root a second user tries it; as anybody else the mode must do."""
    said = run(FIRST.format(before=before) + STRANGER).splitlines()
    assert said == ["token 0", *(["[]"] if os.getuid() == 0 else []), "True True"]


def test_an_open_cluster_is_refused_by_name_unless_it_is_wanted() -> None:
    assert "connected to a Ray cluster without authentication" in run(
        OPEN.format(after='del os.environ["RAY_AUTH_MODE"]')
    )
    assert run(OPEN.format(after="")) == "let in"
