"""Results of benchmarks: how they are written, the page made from them, and what measuring again says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.common import RESULTS, ROOT, Figure, command_line, read_result
from benchmarks.rerun import run
from benchmarks.write_docs import PAGE, PICTURES, goal, page, picture, results, table

OWN_FORMAT = {"rerun", "write_docs", "gpu", "certificate_coverage", "multipliers"}
PROGRAMS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if "def main" in path.read_text("utf-8"))
COMMITTED = sorted(RESULTS.glob("*.json"))
SCRIPT = """
'''A toy: it counts.

More that no page shows.
'''
import argparse, pathlib, sys, time
sys.path.insert(0, {root!r})
from benchmarks.common import BenchmarkError, Figure, Recorder
parser = argparse.ArgumentParser()
parser.add_argument("--ratio", type=float, default=2.0)
parser.add_argument("--fail", action="store_true")
parser.add_argument("--sleep", type=float, default=0)
recorder = Recorder(parser)
given = parser.parse_args()
with open({log!r}, "a") as log:
    log.write(f"{{given.ratio}}\\n")
time.sleep(given.sleep)
if given.fail:
    raise BenchmarkError("the toy broke")
figures = [Figure.ratio("ours over theirs", [1.0, 2.0, 6.0], [1.0, 1.0, 2.0], "lower", 1.5)]
figures += [Figure("time", given.ratio, "CPU s", "lower")]
recorder.write(given, figures, peers={{"peer": "1.2"}})
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.py"
    path.write_text(SCRIPT.format(root=str(ROOT), log=str(tmp_path / "log")))
    return path


def committed(toy: Path, name: str, figures: list[dict[str, Any]], arguments: str = "") -> Path:
    """A committed result whose command is the toy; returns the folder."""
    folder = toy.parent / "committed"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(
        json.dumps({"format": 1, "name": name, "command": f"python {toy} {arguments}".strip(), "figures": figures})
    )
    return folder


def rerun(toy: Path, *arguments: str) -> tuple[int, str]:
    folders = ("--committed", str(toy.parent / "committed"), "--output", str(toy.parent / "now"))
    command = [sys.executable, "benchmarks/rerun.py", *arguments, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def runs(toy: Path) -> int:
    log = toy.parent / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


RATIO = {"name": "ours over theirs", "value": 2.0, "unit": "x", "better": "lower"}
TIME = {"name": "time", "value": 0.001, "unit": "CPU s", "better": "lower"}


def test_the_page_and_its_pictures_are_those_of_the_committed_results() -> None:
    found = results()
    assert [r["name"] for r in found] == [path.stem for path in COMMITTED] and found
    assert PAGE.read_text(encoding="utf-8") == page(found), "run python benchmarks/write_docs.py"
    assert {path.stem for path in PICTURES.glob("*.svg")} == {r["name"] for r in found}
    for result in found:
        made = (PICTURES / f"{result['name']}.svg").read_bytes()
        assert made == picture(result), f"{result['name']}: run python benchmarks/write_docs.py"
        assert len(made) < 40_000


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_result_says_what_was_measured_how_and_where(path: Path) -> None:
    result = read_result(path)
    interpreter, script, *_ = result["command"].split()
    assert interpreter == "python" and (ROOT / script).is_file()
    assert result["name"] == path.stem and result["what"].endswith((".", "?"))
    assert {"cpu", "cores", "memory_gb", "load_at_start"} <= result["machine"].keys()
    assert {"dpeer", "python"} <= result["versions"].keys() and result["date"] > "2026"
    names = [f.name for f in result["figures"]]
    assert names and len(set(names)) == len(names)
    for figure in result["figures"]:
        assert figure.goal is None or figure.better
        assert figure.low is None or figure.low <= figure.value * 1.001 + 1e-9
        assert figure.high is None or figure.high >= figure.value * 0.999 - 1e-9


def test_a_benchmark_writes_its_figures_machine_versions_and_command(toy: Path, tmp_path: Path) -> None:
    target = tmp_path / "kept.json"
    subprocess.run([sys.executable, str(toy), "--ratio", "3", "--result", str(target)], check=True)
    result = read_result(target)
    assert (result["name"], result["what"]) == ("kept", "A toy: it counts.")
    assert result["settings"] == {"ratio": 3.0, "sleep": 0.0} and result["versions"]["peer"] == "1.2"
    assert result["command"] == f"python {toy} --ratio 3"
    first = result["figures"][0]
    assert (first.value, first.low, first.high, first.goal, first.met) == (2.0, 1.0, 3.0, 1.5, False)
    subprocess.run([sys.executable, str(toy)], check=True, cwd=tmp_path)
    assert not (RESULTS / "toy.json").exists()  # nothing is written unasked


def test_goals_have_a_side() -> None:
    low, high = Figure("a", 1.02, "x", "lower", 1.02), Figure("b", 0.9, "share", "higher", 0.95)
    assert (low.met, high.met, Figure("c", 1, "x").met) == (True, False, None)
    assert (goal(low), goal(high)) == ("at most 1.02x", "at least 0.95")
    assert "| b | 0.9 |  | at least 0.95 | **missed** |" in table([high])
    assert Figure("d", 3, "tokens", "lower").worse_than(Figure("d", 0, "tokens", "lower", 0)) == 3
    assert high.worse_than(Figure("b", 0.96, "share", "higher")) == pytest.approx(0.06)


def test_the_command_is_kept_without_where_its_result_goes() -> None:
    given = [str(ROOT / "benchmarks" / "x.py"), "a b", "--result", "f.json", "--quick", "--result=g", "--json", "h"]
    assert command_line(given) == "python benchmarks/x.py 'a b' --quick"
    assert command_line(["/other/x.py", "--result", "--quick"]) == "python /other/x.py --quick"


def test_rerun_compares_ratios_alone_and_goes_on_where_it_stopped(toy: Path) -> None:
    committed(toy, "same", [RATIO, TIME])
    code, said = rerun(toy)
    assert code == 0 and "same: ours over theirs" in said and "time" not in said.split("Committed results")[1], said
    committed(toy, "slow", [RATIO | {"value": 1.0}])
    committed(toy, "broken", [RATIO], "--fail")
    code, said = rerun(toy)
    assert code == 1 and "WORSE" in said and "failed" in said and "error: the toy broke" in said, said
    assert "Traceback" not in said
    assert runs(toy) == 3  # what was measured is not measured again
    assert rerun(toy, "slow", "--tolerance", "x=1.5")[0] == 0 and runs(toy) == 3
    assert rerun(toy, "same", "--fresh")[0] == 0 and runs(toy) == 4
    code, said = rerun(toy, "sam")
    assert code == 2 and "no result is called sam; there are broken, same, slow" in said


def test_a_benchmark_that_takes_too_long_is_ended_and_an_interrupt_stops(toy: Path) -> None:
    folder = committed(toy, "endless", [RATIO], "--sleep 100")
    began = time.monotonic()
    code, said = rerun(toy, "--limit", "3")
    assert code == 1 and "took more than 3 s (--limit)" in said and time.monotonic() - began < 60
    before = runs(toy)
    command = [sys.executable, "benchmarks/rerun.py", "--committed", str(folder), "--output", str(toy.parent / "now")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while runs(toy) == before and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in said


def test_one_that_ends_leaves_no_process_behind(tmp_path: Path) -> None:
    child = "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid)"
    run([sys.executable, "-c", child], tmp_path / "log", 60)
    left = int((tmp_path / "log").read_text())
    until = time.monotonic() + 20
    while psutil.pid_exists(left) and psutil.Process(left).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the child still runs"
        time.sleep(0.1)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_every_benchmark_writes_the_format(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert (" Recorder(" in source) is (path.stem not in OWN_FORMAT)
    if " Recorder(" in source:
        assert source.index(" Recorder(") < source.index("parse_args()")  # it adds an option, and notes the load
        assert source.count("recorder.write(") == 1
