"""Preflight on two nodes: Ray for real, in namespaces of their own, so that the second one can be at fault."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = """
set -eu
ip link set lo up
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={folder}/token RAY_DISABLE_IMPORT_WARNING=1
options="--temp-dir={sockets} --num-cpus=4 --object-store-memory=100000000 --disable-usage-stats --block"
ports="--node-manager-port=20001 --object-manager-port=20002 --min-worker-port=20100 --max-worker-port=20199"
hostname n1
ray start --head --port=20000 --node-ip-address=127.0.0.1 --include-dashboard=false --num-gpus=1 \
    --min-worker-port=20200 --max-worker-port=20299 $options >{folder}/head.log 2>&1 &
python - <<'EOF'
import socket, time
for _ in range(300):
    if socket.socket().connect_ex(("127.0.0.1", 20000)) == 0:
        break
    time.sleep(0.2)
EOF
unshare --mount --uts bash -c "set -eu; hostname n2; {node2}
    exec ray start --address=127.0.0.1:20000 --node-ip-address=127.0.0.2 --num-gpus=1 $ports $options" \
    >{folder}/node2.log 2>&1 &
python - <<'EOF'
import ray, time
for _ in range(3):
    try:
        ray.init(address="127.0.0.1:20000", log_to_driver=False)
        break
    except ConnectionError:
        time.sleep(2)
for _ in range(300):
    if sum(n["Alive"] for n in ray.nodes()) == 2:
        break
    time.sleep(0.2)
EOF
{network}
cd {folder}
export RAY_ADDRESS=127.0.0.1:20000
code=0
{command} >{folder}/answer.json 2>{folder}/driver.log || code=$?
exit $code
"""
LATER = """
import time
clock = time.time
time.time = lambda: clock() + 120
"""


def on_two_nodes(lab: Any, tmp_path: Path, command: str, node2: str = "", network: str = "") -> tuple[int, str]:
    """Run a command beside a cluster of two nodes that ends with it; `node2` and `network` plant faults."""
    if os.getuid() or subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("needs root and namespaces")
    (tmp_path / "token").write_text("s" * 64)
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "runs").mkdir()
    sockets = tempfile.mkdtemp(prefix="pf-", dir="/tmp")
    script = CLUSTER.format(
        folder=tmp_path, sockets=sockets, node2=node2.replace("\n", "; "), network=network, command=command
    )
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    namespaces = "--net --mount --uts --pid --fork --kill-child --mount-proc"
    try:
        done = subprocess.run(
            ["unshare", *namespaces.split(), "bash", "-c", script], env=environment, capture_output=True, text=True,
            timeout=270,
        )  # fmt: skip
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
    logs = "".join(
        (tmp_path / f"{n}.log").read_text() for n in ("head", "node2", "driver") if (tmp_path / f"{n}.log").exists()
    )
    assert (tmp_path / "answer.json").exists(), done.stderr + logs
    return done.returncode, (tmp_path / "answer.json").read_text() or done.stderr + logs


@pytest.mark.slow
def test_sound_cluster_and_models_are_green(lab: Any, tmp_path: Path) -> None:
    """The whole list, models and checkpoint included, with workers on both nodes."""
    command = f"python -m dpeer.launcher.cli preflight {lab.folder}/recipe.yaml --json --set output_dir={tmp_path}/runs"
    code, answer = on_two_nodes(
        lab,
        tmp_path,
        f"{command} --set cluster.nodes=2 --set cluster.cpus_per_worker=3 --set cluster.reference=cache"
        " --set cluster.gpus_per_worker=0"  # Ray is told of one on each node
        " --set objective.certificate.tolerance=3",  # what a few held-out records can prove
    )
    found = {c["name"]: c for c in json.loads(answer)["checks"]}
    told = found.pop("records")  # prompts of a toy world resemble each other
    assert told["status"] == "warning" and "nearly repeat" in told["found"], told
    assert {c["status"] for c in found.values()} == {"ok"} and code == 0, answer
    assert "2 nodes: n1, n2" in found["nodes"]["found"] and "2 ranks joined" in found["process groups"]["found"]
    assert "0.693147 (ln 2 = 0.693147)" in found["step-0 identity"]["found"]
    for name in ("network", "clocks", "shared folder", "tree attention", "save and load", "token"):
        assert name in found
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["tokens"]  # the run opens them


@pytest.mark.slow
def test_faults_of_a_second_node_are_all_named(lab: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(ROOT / "dpeer", other / "dpeer", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "dpeer" / "objective" / "dual.py").open("a") as stream:
        stream.write("# another revision\n")
    (other / "sitecustomize.py").write_text(LATER)
    (other / "transformers-4.1.0.dist-info").mkdir()
    (other / "transformers-4.1.0.dist-info" / "METADATA").write_text("Name: transformers\nVersion: 4.1.0\n")
    sets = f"output_dir={tmp_path}/runs cluster.nodes=3 cluster.gpus_per_worker=1 cluster.reference=cache".split()
    code, answer = on_two_nodes(
        lab,
        tmp_path,
        f"python -m dpeer.launcher.cli preflight {lab.folder}/recipe.yaml --quick --json "
        + " ".join(f"--set {s}" for s in sets),
        node2=f"export PYTHONPATH={other}\nmount -t tmpfs dpeer-test {tmp_path}/runs",
        # What a firewall does that opens Ray's ports and no others.
        network="ip rule add pref 100 lookup local; ip rule del pref 0\n"
        "ip rule add pref 1 to 127.0.0.2 ipproto tcp sport 30000-60999 dport 30000-60999 prohibit",
    )
    assert code == 1, answer
    found = {c["name"]: c for c in json.loads(answer)["checks"]}
    expected = {
        "nodes": "2 nodes: n1, n2; cluster.nodes wants 3",
        "GPUs": "n1: Ray has 1, the driver shows 0, n2: Ray has 1, the driver shows 0",
        "packages": "transformers 4.1.0 on n2 (driver: ",
        "code": "dpeer's code on n2 is not the driver's",
        "clocks": "n2 is +120.",
        "network": "no connection from n1 to n2 (",
        "shared folder": "n2 does not see what n1",
    }
    for name, text in expected.items():
        assert found[name]["status"] == "failed" and text in found[name]["found"] and found[name]["fix"], found[name]
    assert {name for name, c in found.items() if c["status"] == "failed"} == set(expected)
