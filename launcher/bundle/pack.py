"""`dpeer bundle`: the records of runs, evaluations and fits, gathered so that others can check them."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dpeer.config import Config
from dpeer.config_io import resolved_yaml
from dpeer.config_sources import paths
from dpeer.errors import ConfigError, DpeerError
from dpeer.files import follow_umask, write_text
from dpeer.integrity import LIST
from dpeer.launcher import fsck
from dpeer.launcher.bundle.container import FORMAT, Index, Source, Split, entry, files_below, write_index, write_zip
from dpeer.scratch import scratch
from dpeer.training.run_dir import RunDir
from dpeer.versions import package_version

RECORDS = ("manifest.json", "ledger.jsonl", "timing.jsonl", "samples.jsonl", "stop.json", "certificate.json",
           "heldout.safetensors")  # fmt: skip
"""Of a run: all that dpeer has written down, without checkpoints and weights."""
SHOWN_BY = ("dpeer", "numpy", "pandas", "scipy", "matplotlib", "jinja2", "torch")
"""Packages on which the digits and bytes of pages and tables depend."""
WORDED_BY = ("dpeer", "jinja2")
"""Those on which words depend; digits agree to rounding between all."""
LIFE = re.compile(r"[^A-Za-z0-9._-]+")


def versions() -> dict[str, str | None]:
    return {"python": platform.python_version()} | {name: package_version(name) for name in SHOWN_BY}


def bundle(
    runs: Sequence[Path],
    output: Path,
    evaluations: Sequence[Path] = (),
    fits: Sequence[Path] = (),
    data: bool = False,
) -> str:
    """Write a bundle, a folder or (by the ending .zip) one file; returns the digest. Equal input gives equal bytes.

    Pages and tables are written anew from what lies beside them. `data`: include the files that the runs read.
    DpeerError: an output that exists, a folder of another kind, a run that is not finished, damaged files.
    """
    if not (runs or evaluations or fits):
        raise ConfigError("nothing to bundle: give folders of runs, --evaluation or --fit")
    if output.exists():
        raise ConfigError(f"-o {output}: it exists; give a new name")
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch(f".{output.name}-", output.parent) as place:
        folder = place / "bundle"
        folder.mkdir()
        sources = {name: _run(run, folder / "runs" / name, folder, data) for name, run in _named(runs).items()}
        tables: dict[str, Path] = {}
        for name, evaluation in _named(evaluations).items():
            tables[name] = _evaluation(evaluation, folder / "evaluations" / name)
        of: dict[str, str | None] = {}
        for name, fit in _named(fits).items():
            of[name] = _fit(fit, folder / "fits" / name, tables)
        index = Index(
            format=FORMAT,
            versions=versions(),
            runs=tuple(sources),
            evaluations=tuple(tables),
            fits=of,
            data=sources,
            files={name: entry(folder / name) for name in files_below(folder)},
        )
        found = write_index(folder, index)
        if output.suffix == ".zip":
            write_zip(folder, output)
        else:
            follow_umask(folder)
            folder.rename(output)
    return found


def _named(folders: Iterable[Path]) -> dict[str, Path]:
    """Folders by a name of their own, as a bundle may have it; of two equal names the second gets a number."""
    named: dict[str, Path] = {}
    for folder in folders:
        parts = folder.resolve().parts
        name = parts[-1] if parts[-1] != "irt" else "-".join(parts[-2:])
        name = LIFE.sub("-", name).strip("-._") or "part"
        again = 2
        while (unique := name if again == 2 and name not in named else f"{name}-{again}") in named:
            again += 1
        named[unique] = folder
    return named


def _sound(findings: Iterable[fsck.Finding]) -> None:
    if wrong := next((f for f in findings if f.state == "damaged"), None):
        raise DpeerError(f"{wrong.path} {wrong.says}. A bundle of it would prove nothing.")


def _run(source: Path, target: Path, root: Path, with_data: bool) -> tuple[Source, ...]:
    from dpeer.report.page import write_report

    files = RunDir(source)
    if not files.manifest.exists():
        raise ConfigError(f"{source}: no folder of a run (no manifest.json in it)")
    manifest = files.read_manifest()
    if not manifest.get("finished"):
        raise ConfigError(f"{source}: this run is not finished, so nothing is certified. Go on with --resume first.")
    _sound(fsck.check_records(source))
    _copy(source, target, [name for name in RECORDS if (source / name).exists()])
    if (files.export / LIST).exists():
        _copy(files.export, target / "export", [LIST])
    config = Config.model_validate(manifest["config"])
    write_text(target / "recipe.yaml", resolved_yaml(config))
    write_report(target)
    name = target.name
    splits: tuple[Split, ...] = ("train", "dual", "heldout")
    return tuple(
        Source(split=split, source=path, files=_data(path, root / "data" / name / split, root) if with_data else ())
        for split in splits
        for path in paths(getattr(config.data, split))
    )


def _data(source: str, target: Path, root: Path) -> tuple[str, ...]:
    """Copies of a source's files; none where it is a share of another one, or lies on the hub."""
    path = Path(source)
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    copied = []
    for number, file in enumerate(found):
        place = target / f"{number:04d}-{LIFE.sub('-', file.name).strip('-.') or 'data'}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
        copied.append(place.relative_to(root).as_posix())
    return tuple(copied)


def _evaluation(source: Path, target: Path) -> Path:
    table = source / "ratings.parquet"
    if not table.exists():
        raise ConfigError(f"{source}: no ratings.parquet in it; give the folder of an evaluation, after `dpeer judge`")
    _sound(f for f in fsck.check(source) if f.path.suffix == ".parquet")
    responses = [p.relative_to(source).as_posix() for p in sorted((source / "responses").rglob("part-*.parquet"))]
    _copy(source, target, [table.name, *responses])
    return target / table.name


def _fit(source: Path, target: Path, tables: Mapping[str, Path]) -> str | None:
    """Copy a fit and write its tables and page; returns the evaluation whose ratings it is of, if one is bundled."""
    from dpeer.eval.irt.fit_folder import load
    from dpeer.launcher.bundle.fits import of_table, pages, wanted

    posterior = load(source)
    _copy(source, target, ["manifest.json", "draws.npz"])
    pages(posterior, target, wanted(source))
    return next((name for name, table in tables.items() if not of_table(posterior.ratings, table)), None)


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
