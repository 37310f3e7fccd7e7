"""A real Slurm on this machine: munge, slurmctld and a few slurmd.

As root every node is a host of its own: network, host name, processes, /tmp/ray and /dev/shm. The bridge that joins
them lives in a network namespace of the lab, so that the machine's own network is not touched; all of it ends with one
process. Without root, several slurmd share the machine: enough for scripts, not for Ray on several hosts.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
NODES = 3
MARK = "DPEER_LAB"  # in the environment of everything that a lab starts

COMMON = """
ClusterName=lab
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
MpiDefault=none
GresTypes=gpu
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=5
MinJobAge=300
SlurmdTimeout=15
SlurmctldTimeout=15
MailProg=/bin/true
NodeName=DEFAULT CPUs=16 RealMemory=16000 Gres=gpu:8 State=UNKNOWN
PartitionName=main Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP
"""
HOSTS = f"""
SlurmctldHost=labctl(10.77.0.254)
SlurmctldPort=16827
SlurmdPort=16818
{"".join(f"NodeName=n{i} NodeAddr=10.77.0.{i}{chr(10)}" for i in range(1, NODES + 1))}"""
SHARED = """
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}]
"""

SITE = """
ip link set lo up
hostname labctl
mount --bind "$LAB/hosts" /etc/hosts
ip link add labbr type bridge
ip addr add 10.77.0.254/24 dev labbr
ip link set labbr up
munged --force --key-file="$LAB/munge.key" --socket="$LAB/run/munge.sock" --pid-file="$LAB/run/munged.pid" \
  --log-file="$LAB/log/munged.log" --seed-file="$LAB/munge.seed" --foreground &
until [ -S "$LAB/run/munge.sock" ]; do sleep 0.05; done
slurmctld -D -f "$LAB/slurm.conf" &
: > "$LAB/run/site"
wait
"""
# bash stays process 1 of the node: slurmd would reap no orphans.
NODE = """
hostname "n$NODE"
ip link set lo up
mount --bind "$LAB/hosts" /etc/hosts
mkdir -p "$LAB/ray-n$NODE" /tmp/ray
mount --bind "$LAB/ray-n$NODE" /tmp/ray
mount -t tmpfs -o size=4g tmpfs /dev/shm
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip addr add "10.77.0.$NODE/24" dev eth0
ip link set eth0 up
ip route add default via 10.77.0.254
slurmd -D -f "$LAB/slurm.conf" -N "n$NODE" &
wait
"""
NAMESPACES = ("--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")


def missing() -> str | None:
    """Why no lab can run here, and the one line that changes it; None when it can."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if absent := [p for p in PROGRAMS if not shutil.which(p, path=path)]:
        return f"no {', '.join(absent)} here; enable with: apt-get install -y --no-install-recommends slurm-wlm munge"
    return None


def can_make_hosts() -> bool:
    """Whether this process may make namespaces and network links."""
    probe = "ip link set lo up && ip link add labprobe type bridge && mount -t tmpfs tmpfs /mnt"
    command = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", probe]
    try:
        return os.geteuid() == 0 and subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class SlurmLab:
    """A booted cluster with the nodes n1, n2, ...; `close` ends every process of it."""

    def __init__(self, folder: Path, *, hosts: bool) -> None:
        self.folder, self.hosts, self.mark = folder, hosts, secrets.token_hex(8)
        self.environment = os.environ | {
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "LAB": str(folder),
            "SLURM_CONF": str(folder / "slurm.conf"),
            MARK: self.mark,
        }
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._write()
            self._boot()
        except BaseException:
            self.close()
            raise

    def _write(self) -> None:
        for name in ("run", "log", "state", *(f"spool-n{i}" for i in range(1, NODES + 1))):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.touch(mode=0o400)
        key.chmod(0o600)
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        (self.folder / "hosts").write_text(
            "127.0.0.1 localhost\n10.77.0.254 labctl\n" + "".join(f"10.77.0.{i} n{i}\n" for i in range(1, NODES + 1))
        )
        ports = _free_ports(NODES + 1)
        conf = (COMMON + (HOSTS if self.hosts else SHARED)).format(
            folder=self.folder,
            user="root" if self.hosts else psutil.Process().username(),
            nodes=NODES,
            host=socket.gethostname().partition(".")[0],
            control=ports[0],
            first=ports[1],
            last=ports[-1],
        )
        (self.folder / "slurm.conf").write_text(conf)
        devices = "/dev/tty[0-7]"
        if self.hosts:
            devices = f"{self.folder}/run/nvidia[0-7]"
            for i in range(8):
                os.mknod(self.folder / f"run/nvidia{i}", 0o20666, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={devices}\n")

    def _boot(self) -> None:
        if self.hosts:
            self._spawn("unshare", *NAMESPACES, "bash", "-c", SITE)
            self._until(lambda: (self.folder / "run/site").exists(), "the control host to start")
        else:
            at = self.folder
            self._spawn(
                "munged", "--force", "--foreground", f"--key-file={at}/munge.key", f"--socket={at}/run/munge.sock",
                f"--pid-file={at}/run/munged.pid", f"--log-file={at}/log/munged.log", f"--seed-file={at}/munge.seed",
            )  # fmt: skip
            self._until((at / "run/munge.sock").exists, "munged to start")
            self._spawn("slurmctld", "-D", "-f", f"{at}/slurm.conf")
        for i in range(1, NODES + 1):
            self.start_node(f"n{i}")
        self.until_up("idle")

    def _spawn(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log/daemons.log").open("ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],  # ends with this process, however that ends
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.daemons.append(process)
        return process

    # Nodes

    def start_node(self, name: str) -> None:
        """Boot a node (again)."""
        index = name.removeprefix("n")
        if not self.hosts:
            self.nodes[name] = self._spawn("slurmd", "-D", "-f", f"{self.folder}/slurm.conf", "-N", name)
            return
        node = self.nodes[name] = self._spawn(*self._inside(), "unshare", *NAMESPACES, "bash", "-c", NODE, NODE=index)
        init = self._until(lambda: self._init(node), f"{name} to start")
        here = os.readlink(f"/proc/{self.site}/ns/net")
        self._until(lambda: os.readlink(f"/proc/{init}/ns/net") != here, f"the network of {name}")
        self._in_site(
            "ip", "link", "add", f"lab{name}", "type", "veth", "peer", "name", "eth0", "netns", self._inner(init)
        )
        self._in_site("ip", "link", "set", f"lab{name}", "master", "labbr", "up")

    def kill_node(self, name: str) -> None:
        """A crash: everything on the node is gone at once, nothing is said to anybody."""
        for process in self.processes_of(name):
            process.send_signal(signal.SIGSTOP)  # no process may see another one end first
        node = self.nodes.pop(name)
        os.kill(self._init(node), signal.SIGKILL)
        node.wait(20)

    def cut(self, name: str) -> None:
        """Pull the network cable of a node."""
        self._in_site("ip", "link", "set", f"lab{name}", "down")

    def mend(self, name: str) -> None:
        self._in_site("ip", "link", "set", f"lab{name}", "up")

    def heal(self) -> None:
        """Boot what was killed, mend what was cut, and wait until the cluster is whole."""
        for i in range(1, NODES + 1):
            if self.hosts and f"n{i}" in self.nodes:
                self.mend(f"n{i}")
            elif f"n{i}" not in self.nodes:
                self.start_node(f"n{i}")
        self.until_up()

    def until_up(self, *states: str, limit_s: float = 180) -> None:
        """Until all nodes are in one of these states; by default such as can be given a job."""
        allowed = states or ("idle", "mixed", "allocated")
        self._until(lambda: set(self.slurm("sinfo", "-h", "-N", "-o", "%T").split()) <= set(allowed), "nodes", limit_s)

    @property
    def site(self) -> int:
        return self._init(self.daemons[0])

    @staticmethod
    def _init(unshare: subprocess.Popen[bytes]) -> int:
        """Process 1 of the namespace, 0 while it has none."""
        found = [unshare.pid, *(c.pid for c in psutil.Process(unshare.pid).children(recursive=True))]
        for pid in found:
            status = Path(f"/proc/{pid}/status").read_text()
            levels = re.search(r"NSpid:\s*(.*)", status)
            if levels and levels[1].split()[-1] == "1":
                return pid
        return 0

    @staticmethod
    def _inner(pid: int) -> str:
        """The number of a process as the site sees it."""
        levels = re.search(r"NSpid:\s*(.*)", Path(f"/proc/{pid}/status").read_text())
        assert levels
        return levels[1].split()[1]

    def _inside(self) -> list[str]:
        """Prefix of a command that runs on the control host."""
        if not self.hosts:
            return []
        return ["nsenter", "--target", str(self.site), "--net", "--uts", "--mount", "--ipc", "--pid", "--wd=.", "--"]

    def _in_site(self, *command: str) -> None:
        subprocess.run([*self._inside(), *command], check=True, capture_output=True, timeout=30)

    # Jobs

    def slurm(self, *command: str, environment: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(
            [*self._inside(), *command],
            env=self.environment | (environment or {}),
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str, environment: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        """sbatch; the number of the job."""
        return self.slurm("sbatch", "--parsable", *arguments, environment=environment, cwd=cwd).strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.slurm("scontrol", "show", "job", number)))

    def ended(self, number: str, limit_s: float = 120) -> dict[str, str]:
        """The job once it is over for good."""

        def over() -> dict[str, str] | None:
            job = self.job(number)
            final = job["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL")
            return job if final else None

        return self._until(over, f"job {number} to end", limit_s)

    def output(self, number: str) -> str:
        path = Path(self.job(number)["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def cancel_all(self) -> None:
        self.slurm("scancel", "--user", psutil.Process().username())
        self._until(lambda: not self.slurm("squeue", "-h"), "an empty queue")

    def until(self, condition: Callable[[], object], what: str, limit_s: float = 60) -> None:
        self._until(condition, what, limit_s)

    # Processes

    def processes_of(self, name: str) -> list[psutil.Process]:
        """Everything on a node but its process 1 and slurmd."""
        node = self.nodes.get(name)
        if node is None or not (init := self._init(node)):
            return []
        inside = psutil.Process(init).children(recursive=True)
        return [p for p in inside if _command(p) and not _command(p).startswith("slurmd -D")]

    def strays(self) -> list[str]:
        """Commands of the processes that jobs have left: on the nodes, or anywhere with the mark of the lab."""
        return [_command(p) for p in self._strays()]

    def _strays(self) -> list[psutil.Process]:
        found = {p for name in self.nodes for p in self.processes_of(name)} if self.hosts else set()
        for process in psutil.process_iter():
            try:
                if "SLURM_JOB_ID" in (environment := process.environ()) and environment.get(MARK) == self.mark:
                    found.add(process)
            except psutil.Error:
                continue
        return [p for p in found if _command(p)]

    def end_strays(self) -> None:
        for process in self._strays():
            process.kill()

    def close(self) -> None:
        for process in reversed(self.daemons):
            if process.poll() is None:
                process.kill()
        for process in self.daemons:
            process.wait(30)

    def _until(self, condition: Callable[[], object], what: str, limit_s: float = 60) -> object:
        deadline = time.monotonic() + limit_s
        while not (found := condition()):
            assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
            time.sleep(0.05)
        return found


def _command(process: psutil.Process) -> str:
    """Command line; empty for a process that has ended."""
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _free_ports(count: int) -> range:
    """Consecutive ports that are free now, below the range of outgoing connections."""
    start = 21000
    while True:
        ports = range(start, start + count)
        try:
            for port in ports:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            return ports
        except OSError:
            start += count
