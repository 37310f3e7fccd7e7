"""The wheel beside a project whose own files have the names of our folders: nothing of the project is executed."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.packaging.conftest import ROOT, Installed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PACKAGES = ("eval", "launcher", "tests", "slurm", "ds_configs")
"""What a project may well have, and what our folders are called."""

RAY_WORKER = """
import importlib.util
from dpeer.launcher.cluster import connect
from dpeer.launcher.worker import Worker
import ray

@ray.remote(num_cpus=1)
def look():
    import dpeer
    import dpeer.eval.backends.vllm.farm
    import dpeer.training.rank
    return dpeer.__file__, importlib.util.find_spec("eval").origin

with connect():
    place = ray.get(Worker.options(num_cpus=1).remote().place.remote())
    ours, theirs = ray.get(look.remote())
print(place["host"], ours, theirs, sep="\\n")
"""


@pytest.fixture
def markers(tmp_path: Path) -> Path:
    folder = tmp_path / "markers"
    folder.mkdir()
    return folder


@pytest.fixture
def project(tmp_path: Path, markers: Path) -> Path:
    """Somebody's project. Each of its programs leaves a file in `markers` when it is imported or executed."""
    folder = tmp_path / "project"

    def program(name: str) -> str:
        return f"import pathlib, sys\npathlib.Path({str(markers)!r}, {name!r}).write_text(' '.join(sys.argv))\n"

    for package in PACKAGES:
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(program(package))
        for module in ("cli", "config", "cluster", "worker", "judge"):
            (folder / package / f"{module}.py").write_text(program(f"{package}.{module}"))
    (folder / "eval.py").write_text(program("eval.py"))
    (folder / "slurm" / "lib.sh").write_text(f"touch {markers / 'lib.sh'}\n")
    (folder / "ds_configs" / "cpu.json").write_text("not JSON")
    shutil.copytree(ROOT / "dpeer" / "data" / "sample", folder / "persona")
    rows = [{"model": m, "prompt": f"Question {q}?", "response": f"{m} says {q}."} for m in "ab" for q in range(4)]
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judges = [{"name": n, "path": n, "backend": "openai", "base_url": "http://127.0.0.1:9"} for n in ("x", "y")]
    recipe = {"name": "n", "output_dir": "runs", "responses": "responses.jsonl", "judges": judges}
    (folder / "judges.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(params=["plain", "PYTHONPATH=."])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    return {} if request.param == "plain" else {"PYTHONPATH": "."}


def test_the_wheel_adds_one_import_name_and_one_program(installed: Installed) -> None:
    assert {n for n in installed.modules if not n.endswith(".dist-info")} == {"dpeer"}
    assert installed.programs == {"dpeer"}


def test_the_wheel_holds_every_file_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.namelist()
        (top_level,) = (archive.read(n).decode() for n in packed if n.endswith("/top_level.txt"))
    assert top_level.split() == ["dpeer"]
    assert len(packed) == len(set(packed))
    # dpeer/eval and the like are links, which rglob does not enter: their folders are listed by themselves
    wanted = {
        "dpeer/" * (folder != "dpeer") + str(path.relative_to(ROOT))
        for folder in ("dpeer", "eval", "launcher", "ds_configs", "slurm")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {n for n in packed if ".dist-info/" not in n} == wanted


def test_the_page_of_errors_travels_with_the_wheel(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("dpeer", "help", "budget", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("The budget is spent"), done.stderr


def test_a_dry_run_of_the_demo_checks_the_installed_files(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("dpeer", "demo", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert " of the installed wheel are as it brought them" in done.stdout
    assert "3,600 ratings" in done.stdout and list(tmp_path.iterdir()) == []
    package = next(installed.python.parents[1].glob("lib/*/site-packages/dpeer"))
    model = package / "eval" / "irt" / "model.stan"
    whole = model.read_bytes()
    try:
        model.write_bytes(whole.replace(b"data", b"date"))
        done = installed.run("dpeer", "demo", "--dry-run", cwd=tmp_path)
        assert done.returncode == 1 and "dpeer/eval/irt/model.stan is changed" in done.stderr
        model.unlink()
        done = installed.run("dpeer", "demo", "--dry-run", cwd=tmp_path)
        assert done.returncode == 1 and "dpeer/eval/irt/model.stan is absent" in done.stderr
    finally:
        model.write_bytes(whole)


def test_the_markers_work(installed: Installed, project: Path, markers: Path) -> None:
    """Else the tests below could not fail."""
    done = installed.run("python", "-c", f"import {', '.join(PACKAGES)}", cwd=project, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in markers.iterdir()} == set(PACKAGES)


def test_commands_beside_a_project_with_our_folder_names(
    installed: Installed, project: Path, markers: Path, environment: dict[str, str]
) -> None:
    fit = ("--approx", "--chains", "1", "--warmup", "60", "--draws", "40", "--model", "rasch", "--output", "runs/irt")
    sizes = ("models=2", "items=4", "judges=2", "dimensions=1")
    for command in (
        ("doctor",),
        ("data", "check", "persona"),
        ("train", "demo", "--dry-run"),
        ("slurm", "--recipe", "demo", "--nodes", "1", "--gpus", "0", "--dry-run"),
        ("judge", "judges.yaml", "--plan-only"),
        ("irt", "simulate", "--output", "ratings.parquet", *(part for size in sizes for part in ("--set", size))),
        ("irt", "fit", "ratings.parquet", *fit),
    ):
        done = installed.run("dpeer", *command, cwd=project, **environment)
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    assert (project / "runs" / "irt" / "report.html").is_file()
    assert list(markers.iterdir()) == []


def test_a_ray_worker_under_working_dir(
    installed: Installed, project: Path, markers: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """What `ray job submit --working-dir .` hands to its driver: workers find the project's folder first."""
    driver = tmp_path / "driver.py"
    driver.write_text(RAY_WORKER)
    job = json.dumps({"runtime_env": {"working_dir": "."}})
    done = installed.run("python", str(driver), cwd=project, RAY_JOB_CONFIG_JSON_ENV_VAR=job, **environment)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    _, ours, theirs = done.stdout.split()
    assert Path(ours).is_relative_to(installed.python.parents[1])
    assert "working_dir_files" in theirs, "the worker did not see the project's folder, so this test shows nothing"
    assert list(markers.iterdir()) == []
