"""The software bill of materials of an environment, as CycloneDX 1.6: cyclonedx-py's, with what it leaves out.

Usage, with a Python that has cyclonedx-bom: sbom.py PYTHON-OF-THE-ENVIRONMENT FILE. The version of dpeer comes from its
source, as pyproject.toml does not hold it, and licences from metadata that name them in other words than SPDX's.
Exit code 1 if a component is left without a licence.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
READ = {"oss-harmony": "Apache-2.0", "setuptools": "MIT"}
"""By the file LICENSE in their wheels; their metadata name none."""


def completed(bom: Mapping[str, Any], version: str, installed: Iterable[Distribution]) -> dict[str, Any]:
    """The bill with the project's version, and with a licence for each component whose metadata name one."""
    said = {d.name: (d.metadata.get("License") or "").strip().partition("\n")[0] for d in installed}
    root = {**bom["metadata"]["component"], "version": version, "purl": f"pkg:pypi/dpeer@{version}"}
    components = [
        part if part.get("licenses") else {**part, **_licence(said.get(part["name"], ""), READ.get(part["name"], ""))}
        for part in bom["components"]
    ]
    return {**bom, "metadata": {**bom["metadata"], "component": root}, "components": components}


def _licence(declared: str, read: str) -> dict[str, Any]:
    if read:
        return {"licenses": [{"license": {"id": read, "acknowledgement": "concluded"}}]}
    return {"licenses": [{"license": {"name": declared, "acknowledgement": "declared"}}]} if declared else {}


def main(python: str, target: str) -> int:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    tool = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--of", "JSON", "--sv", "1.6"]
    date = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    made = subprocess.run(
        [*tool, "--pyproject", str(ROOT / "pyproject.toml"), "-o", "-", python],
        env={**os.environ, **({"SOURCE_DATE_EPOCH": date} if date else {})},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    asked = [python, "-c", "import sys; print(*sys.path, sep='\\n')"]
    folders = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    (version,) = re.findall(r'^__version__ = "(.*)"', (ROOT / "dpeer" / "__init__.py").read_text(), re.M)
    bom = completed(json.loads(made), version, distributions(path=folders))
    text = json.dumps(bom, indent=2) + "\n"
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        print(f"not CycloneDX 1.6: {fault}", file=sys.stderr)
        return 1
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(text)
    bare = [part["name"] for part in bom["components"] if not part.get("licenses")]
    print(
        f"{target}: dpeer {version}, {len(bom['components'])} components; without a licence: {', '.join(bare) or '-'}"
    )
    return int(bool(bare))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
