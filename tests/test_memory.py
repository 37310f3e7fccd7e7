"""Memory that is free, by made trees of /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpeer.memory import free_memory

V2, V1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
NONE_1 = "9223372036854771712"


def tree(root: Path, own: str, groups: dict[str, tuple[str, int, int]]) -> Path:
    """A machine with 100 GB free. `groups`: limit, bytes in use and bytes of cached files, by folder."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 200000000 kB\nMemAvailable: 100000000 kB\n")
    (root / "proc/self/cgroup").write_text(own)
    for folder, (most, used, cached) in groups.items():
        first = folder.startswith("memory")
        (group := root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, value in zip(V1 if first else V2, (most, used), strict=True):
            (group / name).write_text(f"{value}\n")
        entry = "inactive_file 3\ntotal_inactive_file" if first else "active_file 5\ninactive_file"
        (group / "memory.stat").write_text(f"anon 1000\n{entry} {cached}\n")
    return root


JOB = "system.slice/slurmstepd.scope/job_7"
G = 10**9


@pytest.mark.parametrize(
    ("own", "groups", "free"),
    [
        ("0::/\n", {"": ("10000000000", 8 * G, 7 * G)}, 9 * G),  # a container
        ("0::/\n", {"": ("max", 8 * G, 7 * G)}, 1.024e11),
        (f"0::/{JOB}/step_0\n", {JOB: ("4000000000", G, 0), f"{JOB}/step_0": ("max", G, 0)}, 3 * G),
        (f"0::/{JOB}\n", {JOB: ("4000000000", G, 0), "system.slice": ("3000000000", 2 * G, 0)}, G),
        (f"0::/{JOB}\n", {"system.slice/other": ("4000000000", G, 0)}, 1.024e11),
        ("0::/../other\n", {"": ("4000000000", G, 0), "other": ("2000000000", G, 0)}, 3 * G),
        (
            "5:cpu,cpuacct:/\n4:memory:/slurm/job_7\n1:name=systemd:/a:b\n0::/\n",
            {"memory/slurm/job_7": ("6000000000", 5 * G, 2 * G), "memory/slurm": (NONE_1, 5 * G, 0)},
            3 * G,
        ),
        ("4:memory:/docker/7\n", {"memory": ("6000000000", 5 * G, 0)}, G),
    ],
)
def test_the_tightest_group_above_the_process_counts(
    tmp_path: Path, own: str, groups: dict[str, tuple[str, int, int]], free: float
) -> None:
    assert free_memory(tree(tmp_path, own, groups)) == free


def test_this_machine_has_memory() -> None:
    assert 0 < free_memory() < 1e15
