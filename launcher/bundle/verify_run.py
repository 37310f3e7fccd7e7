"""Runs in a bundle: ledger, certificate, recipe and page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpeer import chain
from dpeer.config import Config
from dpeer.config_io import resolved_yaml
from dpeer.heldout_file import Heldout, read_heldout
from dpeer.integrity import parse_state
from dpeer.json_safe import json_safe
from dpeer.launcher import fsck
from dpeer.launcher.bundle.check import SHOWN, Check, Place
from dpeer.launcher.bundle.compare import pictures_differ, unequal, words_differ
from dpeer.launcher.bundle.container import Source
from dpeer.training.run_dir import RunDir, identity

FACTS = ("method", "data", "model", "reference", "chat_template")
"""Of a manifest: what decides a result beside the config (`prepare.prepare`)."""
NEEDED = ("manifest.json", "ledger.jsonl", "report.html", "recipe.yaml")
TRAINING = (
    "training itself: weights, checkpoints and optimizer states are not in a bundle, so the ledger's losses are taken "
    "at their word; `dpeer train` with recipe.yaml and the data makes them again"
)


def check_run(place: Place) -> Iterator[Check]:
    name, files = place.name, RunDir(place.folder)
    if lost := [needed for needed in NEEDED if not (place.folder / needed).is_file()]:
        yield Check(name, "differs", f"{', '.join(lost)}: not there, and every run in a bundle has it")
        return
    found = list(fsck.check_records(place.folder))
    for finding in found:
        if finding.state == "damaged":
            yield Check(name, "differs", f"{finding.path.name} {finding.says.partition('. ')[0]}")
    if plain := [f.path.name for f in found if f.state == "no checksum"]:
        yield Check(name, "not verified", f"{', '.join(plain)}: an earlier dpeer wrote it without checksums")
    manifest = parse_state(files.manifest.read_bytes())
    config = Config.model_validate(manifest["config"])
    if not manifest.get("finished"):
        yield Check(name, "differs", "the manifest does not say that the run was finished, and no other is bundled")
    yield from _ledger(name, files, manifest, config)
    if (place.folder / "recipe.yaml").read_text(encoding="utf-8") == resolved_yaml(config):
        yield Check(name, "verified", "recipe.yaml is the config of the manifest")
    else:
        yield Check(name, "differs", "recipe.yaml is not the config of the manifest")
    yield from _certificate(name, files, manifest, config)
    yield _page(place)
    yield Check(name, "not verified", TRAINING)
    yield Check(name, "not verified", "dates, versions and source revision of the manifest; timing, samples and why "
                "training ended early; the hashes of the exported weights")  # fmt: skip


def _ledger(name: str, files: RunDir, manifest: Mapping[str, Any], config: Config) -> Iterator[Check]:
    begins = manifest.get("chain")
    if begins is None:
        yield Check(name, "not verified", "ledger: an earlier dpeer wrote it without a chain")
    elif begins != identity(config, {key: manifest[key] for key in FACTS if key in manifest}):
        yield Check(name, "differs", "the ledger's chain begins with other settings or data than the manifest names")
    else:
        yield Check(name, "verified", "the ledger's chain begins with the manifest's settings, data and model hashes")
    lines = chain.whole_lines(files.ledger)
    if begins is not None and not next(chain.broken(lines, begins), None):
        says = f"ledger: {len(lines)} lines in an unbroken chain"
        if manifest.get("ledger") is None:
            yield Check(
                name, "not verified", f"{says}, whose end the manifest does not say: later lines may be missing"
            )
        elif chain.complete(lines, manifest):
            yield Check(name, "verified", f"{says} that ends as the manifest says")
    rows = [json.loads(line) for line in lines]
    if [row["step"] for row in rows] != list(range(1, len(rows) + 1)):
        yield Check(name, "differs", "ledger: its steps are not 1, 2, 3 ...")
    if not (isinstance(last := manifest.get("exported_step", len(rows)), int) and 0 <= last <= len(rows)):
        yield Check(name, "differs", f"the manifest says that step {last} was exported, and the ledger has {len(rows)}")
    records = manifest.get("data", {}).get("train", {}).get("records")  # part of what the chain begins with
    if records and (says := _early(files, len(rows), config.training.total_steps(records))):
        yield Check(name, "differs", f"ledger: {says}")
    given = config.objective.constraint.tolerance
    wrong = {
        key for row in rows for key, c in row.get("constraints", {}).items()
        if (isinstance(given, dict) and key in given and _tolerance(c["tolerance"]) != given[key])
        or (not isinstance(given, dict) and _tolerance(c["tolerance"]) != given)
    }  # fmt: skip
    if wrong:
        yield Check(name, "differs", f"ledger: the tolerance of {', '.join(sorted(wrong))} is not the recipe's")


def _early(files: RunDir, steps: int, total: int) -> str:
    """How the length of a ledger is not that of a finished run; empty where it is."""
    if not files.stop.is_file():
        return "" if steps == total else f"it has {steps} of the recipe's {total} steps, and no stop.json says why"
    stopped = parse_state(files.stop.read_bytes()).get("step")
    return "" if stopped == steps else f"it has {steps} steps, and stop.json says that training ended at {stopped}"


def _tolerance(value: Any) -> float:
    return math.inf if value is None or value == "inf" else float(value)


def _certificate(name: str, files: RunDir, manifest: Mapping[str, Any], config: Config) -> Iterator[Check]:
    if not files.certificate.exists():
        if "heldout" not in manifest.get("data", {}):
            yield Check(name, "not verified", "there is no certificate: the run held nothing out")
        else:
            yield Check(name, "differs", "certificate.json is not there, and the run held records out")
        return
    stored = parse_state(files.certificate.read_bytes())
    heldout = read_heldout(files.heldout)
    if heldout is None:
        yield Check(name, "not verified", "certificate: the held-out margins are not there")
        return
    from dpeer.training.heldout import from_margins

    computed = json_safe(from_margins(config.objective, heldout))
    wrong = [p for key in computed for p in unequal(stored.get(key), json.loads(json.dumps(computed[key])), key)]
    wrong += list(_counted(stored, heldout, manifest))
    if wrong:
        named = ", ".join(wrong[:SHOWN]) + (f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
        yield Check(name, "differs", f"certificate: {named}: not as the held-out margins give it")
        return
    verdicts = len(computed["constraints"]) + sum(map(len, computed["masks"].values()))
    yield Check(name, "verified", f"certificate: {verdicts} verdicts, means and win rates follow from the "
                f"{len(heldout.edges.margins):,} held-out margins")  # fmt: skip
    yield Check(name, "not verified", "the margins themselves, and which golden responses ranked first: both take the "
                "model and the held-out data")  # fmt: skip


def _counted(stored: Mapping[str, Any], heldout: Heldout, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Counts and intervals of the certificate beside the margins."""
    from dpeer.objective.heldout import wilson

    edges = heldout.edges
    told = manifest.get("data", {}).get("heldout", {})
    counted = [int((edges.dims == d).sum()) for d in range(len(heldout.dimensions))]
    theirs = told.get("edges", counted)
    listed = [theirs.get(d, 0) for d in heldout.dimensions] if isinstance(theirs, dict) else list(theirs)
    if listed != counted:
        yield "the number of edges of the manifest"
    if stored.get("heldout_records", told.get("records")) != told.get("records"):
        yield "heldout_records"
    clusters = len(set(edges.records.tolist()))
    prompts = stored.get("prompts", clusters)
    if not (isinstance(prompts, int) and clusters <= prompts <= told.get("records", prompts)):
        yield "prompts"
    elif "rarest" in stored and list(unequal(stored["rarest"], min(1.0, 3 / prompts) if prompts else None)):
        yield "rarest"
    selection = stored.get("selection") or {}
    hits = 0
    rates = {"selection.overall": selection.get("overall"), **{
        f"selection.masks.{m}": r for m, r in selection.get("masks", {}).items()}}  # fmt: skip
    for where, rate in rates.items():
        if not rate or not rate["n"]:
            continue
        k = round(rate["rate"] * rate["n"])
        hits += k if where != "selection.overall" else -k
        again = json_safe(wilson([True] * k + [False] * (rate["n"] - k)).to_dict())
        yield from unequal({key: rate[key] for key in again}, dict(again), where)
    if selection.get("masks") and hits:
        yield "selection.overall.rate"
    if selection.get("overall") and selection["overall"]["n"] != stored.get("heldout_records"):
        yield "selection.overall.n"


def _page(place: Place) -> Check:
    from dpeer.report.page import report_html
    from dpeer.report.run import read_run

    written = (place.folder / "report.html").read_text(encoding="utf-8")
    return page_check(place, "report.html", written, report_html(read_run(place.folder)), exact=place.same)


def page_check(place: Place, file: str, written: str, made: str, exact: bool) -> Check:
    """exact: the same versions on a machine that computes alike, where pictures must be the same. Words hang on dpeer
    and its templates alone."""
    if written == made or (exact and not words_differ(written, made) and not pictures_differ(written, made)):
        return Check(place.name, "verified", f"{file}: words, numbers and pictures as they follow from the data")
    if found := words_differ(written, made):
        if place.same_words:
            return Check(place.name, "differs", f"{file} does not say what follows from the data: {found}")
        return Check(place.name, "not verified", f"{file} says something else than this dpeer does of these data, "
                     f"by its version or by a forger: compare both. First: {found}")  # fmt: skip
    if exact and pictures_differ(written, made):
        return Check(place.name, "differs", f"{file}: a picture is not as it follows from the data")
    return Check(place.name, "verified", f"{file}: words and numbers follow from the data, to rounding; pictures were "
                 "drawn by other versions or on another machine, and were not compared")  # fmt: skip


def check_data(part: str, folder: Path, sources: Sequence[Source]) -> Iterator[Check]:
    """What is known of the data of a run, whose folder is given."""
    manifest = parse_state((folder / "manifest.json").read_bytes())
    for split, about in manifest.get("data", {}).items():
        says = f"sha256 {str(about.get('sha256'))[:16]}... of {about.get('records')} tokenised records"
        yield Check(part, "not verified", f"{split}: {says}; computing it takes the tokenizer and the data")
    included = [file for source in sources for file in source.files]
    if included:
        yield Check(part, "not verified", f"{len(included)} files are included and match their hashes; that training "
                    "read just these is not")  # fmt: skip
    elif sources:
        named = ", ".join(dict.fromkeys(source.source for source in sources if "%" not in source.source))
        yield Check(part, "not verified", f"not included: {named}")
