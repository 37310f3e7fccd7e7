"""What checksums cost a checkpoint.

Writes one shard as DeepSpeed does (torch.save of an optimizer's three fp32 tensors), forces it to disk, and hashes it
with the code of a save and of a load. CPU seconds are of this process, all threads. The file goes into a temporary
folder and is deleted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import Figure, Recorder
from dpeer.files import sync
from dpeer.integrity import faults, listed


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU and of wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, nargs="+", default=[0.001, 4.0])
    parser.add_argument("--folder", type=Path, default=None, help="On the disk to be measured.")
    recorder = Recorder(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures = []
    for gib in given.gib:
        count = int(gib * 2**30 / 12)
        state = {name: torch.rand(count) for name in ("fp32", "exp_avg", "exp_avg_sq")}
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            folder = Path(name)
            path = folder / "shard.pt"
            write = measured(lambda state=state, path=path: torch.save(state, path))
            disk = measured(lambda path=path: sync(path))
            entries = listed(folder, [path])
            hashing = measured(lambda folder=folder, path=path: listed(folder, [path], fresh=True))
            checking = measured(lambda folder=folder, entries=entries: faults(folder, entries))
            load = measured(lambda path=path: torch.load(path, weights_only=True))
        del state
        save = [write[i] + disk[i] for i in range(2)]
        print(f"{gib:g} GiB on {os.cpu_count()} cores (CPU s, wall s):")
        for label, (cpu, wall) in (("save", save), ("  hash", hashing), ("load", load), ("  verify", checking)):
            print(f"  {label:9}{cpu:8.3f}{wall:9.3f}")
        shares = [f"{100 * hashing[i] / save[i]:.1f} %" for i in range(2)]
        print(
            f"  hash / save: {shares[0]} of CPU, {shares[1]} of wall time; a save hashes while the disk is waited for"
        )
        figures += [
            Figure(f"{gib:g} GiB: hashing over saving, CPU", hashing[0] / save[0], "x", "lower"),
            Figure(f"{gib:g} GiB: verifying over loading, CPU", checking[0] / load[0], "x", "lower"),
            Figure(f"{gib:g} GiB: hashing, per core", gib / hashing[0], "GiB/s", "higher"),
        ]
        print(f"  verify / load: {100 * checking[0] / load[0]:.1f} % of CPU; {gib / hashing[0]:.1f} GiB/s per core")
    recorder.write(given, figures)


if __name__ == "__main__":
    main()
