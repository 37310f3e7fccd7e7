"""The image, the SkyPilot task and the citation: linted, and in step with the rest of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

import dpeer

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IMAGE = f"registry.example/dpeer:{dpeer.__version__}"


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage -> its instructions, with those of the stage that it starts from before them."""
    lines = "\n".join(line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#"))
    result: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in re.sub(r"\\\n", " ", lines).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.split()
            result[name] = list(result.get(base, [("FROM", base)]))
        elif word:
            result[name].append((word, rest))
    return result


def test_hadolint_finds_nothing() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed (its wheel is for Linux on x86-64)")
    done = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_images_run_as_an_ordinary_user_and_offline(name: str) -> None:
    instructions = stages()[name]
    assert [rest for word, rest in instructions if word == "USER"] == ["1000"]
    assert not any(word == "ADD" for word, _ in instructions)
    assert not any(re.search(r"\bcurl\b|://", rest) for _, rest in instructions)
    assert any("HF_HUB_OFFLINE=1" in rest for word, rest in instructions if word == "ENV")
    assert ("ENTRYPOINT", '["dpeer"]') in instructions
    assert "/wheels/*.whl)[train,judge" in " ".join(rest for _, rest in instructions)


def test_base_images_are_pinned() -> None:
    bases = {rest for instructions in stages().values() for word, rest in instructions if word == "FROM"}
    assert bases and all(re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+[a-z-]*", base) for base in bases), bases


def test_what_is_copied_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [rest.split()[:-1] for _, rest in stages()["wheel"] if _ == "COPY"]
    assert kept == {name for names in copied for name in names}
    assert all((ROOT / name).exists() for name in kept)


def test_the_kubernetes_manifest_names_the_image() -> None:
    assert f"image: {IMAGE}\n" in (ROOT / "docs" / "cluster.md").read_text()
    assert f"-t {IMAGE} ." in DOCKERFILE and f"-t {IMAGE} ." in (ROOT / "docs" / "install.md").read_text()


def test_the_sky_task_has_fields_that_exist() -> None:
    schemas = pytest.importorskip("sky.utils.schemas", reason="SkyPilot is not installed")
    task = yaml.safe_load((ROOT / "deploy" / "sky.yaml").read_text())
    jsonschema.validate(task, schemas.get_task_schema())
    jsonschema.validate(task["resources"], schemas.get_resources_schema())
    jsonschema.validate(task["file_mounts"]["/runs"], schemas.get_storage_schema())


def test_the_sky_task_installs_what_the_project_has() -> None:
    task = yaml.safe_load((ROOT / "deploy" / "sky.yaml").read_text())
    assert '".[train,judge,gpu]"' in task["setup"]
    assert set(re.findall(r"\$(\w+)", task["run"])) == set(task["envs"])


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dpeer.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()


def test_the_changelog_begins_with_this_version() -> None:
    heads = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heads[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(dpeer.__version__)} - \d{{4}}-\d\d-\d\d", heads[1]), heads[1]
    released = yaml.safe_load((ROOT / "CITATION.cff").read_text())["date-released"]
    assert heads[1].endswith(str(released))
