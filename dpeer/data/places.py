"""Where a source lies: a file, a folder of any usual kind, or the hub; and its rows, still uninterpreted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from dpeer.data.faults import Fault, excerpt
from dpeer.data.read import COMPRESSED, Row, rows, suffix
from dpeer.errors import DataError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
READ = "a .csv, .json, .jsonl or .parquet file (also .gz or .zst)"
SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?")
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""Files that mark what `datasets.save_to_disk` wrote: a data set, and several splits of one."""


@dataclass(frozen=True, slots=True)
class Place:
    """PATH[:SUBSET][@SPLIT]. path: a file, a folder or a hub id; split: the only one that is meant."""

    source: str
    path: str
    subset: str | None = None
    split: str | None = None

    @property
    def local(self) -> bool:
        return Path(self.path).exists() or not HUB_ID.fullmatch(self.path) or bool(suffix(Path(self.path)))

    @property
    def folder(self) -> Path:
        """Of a local source: the file or folder, the subset's if there is one. DataError: there is none."""
        path = Path(self.path)
        if self.subset is None:
            return path
        for inside in (path / self.subset, path / "data" / self.subset):
            if inside.exists():
                return inside
        raise DataError(
            f"{path}: has no subset {self.subset!r}, that is, no folder of this name; it holds {_inside(path)}"
        )


def place(source: str) -> Place:
    """What a source's text means. An existing path is that path, whatever it is called."""
    if Path(source).exists():
        return Place(source, source)
    if "://" in source:
        raise DataError(f"{source}: addresses are not read; download the file, or give a hub data set as owner/name")
    rest, at, split = source.rpartition("@")
    rest, split = (rest, split) if at else (source, "")
    path, colon, subset = rest.rpartition(":")
    path, subset = (path, subset) if colon else (rest, "")
    if not path or (at and not split) or (colon and not subset):
        raise DataError(f"{source!r} is no source: write it as PATH, PATH:SUBSET, PATH@SPLIT or PATH:SUBSET@SPLIT")
    return Place(source, path, subset or None, split or None)


def rows_of(source: str, split: str) -> tuple[list[Row], list[Fault]]:
    """All rows of a split, and the faults of what cannot be read; the source's own split if it names one.

    DataError: there is nothing to read.
    """
    here = place(source)
    if not here.local:
        return _hub_rows(here, here.split or split), []
    files = files_of(here, split)
    if isinstance(files, Path):
        return _saved_rows(here, files), []
    every: list[Row] = []
    faults: list[Fault] = []
    for file in files:
        found, wrong = rows(file)
        every += found
        faults += wrong
    return every, faults


def splits(source: str) -> tuple[str, ...]:
    """The splits among train and test that a source has; what is one split has "train" only. DataError as `rows_of`."""
    here = place(source)
    if here.split:
        return ("train",)
    if not here.local:
        with _hub(here) as datasets:
            names = datasets.get_dataset_split_names(*_id(here))
    elif here.folder.is_dir() and not (here.folder / SAVED).is_file():
        names = _split_names(here.folder)
    else:
        return ("train",)
    return tuple(s for s in ("train", "test") if s in names)


def files_of(here: Place, split: str) -> list[Path] | Path:
    """The files of a split in order; or the folder of one that `datasets` saved."""
    path, split = here.folder, here.split or split
    if path.is_file():
        if here.split:
            raise DataError(f"{path} is a file, which is one split: give it without @{here.split}")
        return [path]
    if not path.exists():
        raise DataError(_missing(here))
    if not path.is_dir():
        raise DataError(f"{path}: neither a regular file nor a folder; give {READ}")
    if (path / SAVED).is_file():
        if here.split:
            raise DataError(f"{path} is one split, saved by `datasets`: give it without @{here.split}")
        return path
    if (path / SAVED_SPLITS).is_file() and (path / split / SAVED).is_file():
        return path / split
    found = _split_files(path).get(split, [])
    shards = [f for f in found if SHARD.fullmatch(_stem(f))]
    if len(found) == 1 or (found and len(shards) == len(found)):
        _refuse_lost_shards(path, split, shards)
        return sorted(found)
    raise DataError(_unclear(path, split, found))


def _split_names(folder: Path) -> list[str]:
    """A folder with training records of its own has its own splits only: `data` may hold what they were made from."""
    if (folder / SAVED_SPLITS).is_file():
        return [p.parent.name for p in sorted(folder.glob(f"*/{SAVED}"))]
    own = _files_here(folder)
    return list(own if "train" in own else _split_files(folder))


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Split -> its files, here or else in the folder `data`."""
    return _files_here(folder / "data") | _files_here(folder)


def _files_here(folder: Path) -> dict[str, list[Path]]:
    """Split -> its files: train.jsonl, or shards such as train-00000-of-00003.parquet."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and suffix(path):
            shard = SHARD.fullmatch(_stem(path))
            found.setdefault(shard["split"] if shard else _stem(path), []).append(path)
    return found


def _stem(path: Path) -> str:
    """A file's name without what it holds and how it is compressed."""
    return Path(path.stem).stem if path.suffix in COMPRESSED else path.stem


def _refuse_lost_shards(folder: Path, split: str, shards: list[Path]) -> None:
    if not shards:
        return
    marks = [m for f in shards if (m := SHARD.fullmatch(_stem(f)))]
    counts, numbers = {int(m["count"]) for m in marks}, sorted(int(m["number"]) for m in marks)
    count = max(counts)
    if len(counts) > 1 or len(set(numbers)) < len(numbers):
        raise DataError(
            f"{folder}: shards of {split} belong to several writings: {_listed(shards, folder)}; keep those of one"
        )
    if lost := sorted(set(range(count)) - set(numbers)):
        raise DataError(
            f"{folder}: {len(lost)} of {count} shards of {split} are missing, the first being number {lost[0]}: "
            f"{_listed(shards, folder)}; download them again"
        )


def _missing(here: Place) -> str:
    path = here.path
    if re.fullmatch(rf"{HUB_ID.pattern}/.+", path):
        owner, name, rest = path.split("/", 2)
        return (
            f"{path}: no such file or folder. If a subset of a hub data set is meant, write {owner}/{name}:{rest}, and "
            f"a split as {owner}/{name}@SPLIT"
        )
    return f"{path}: no such file or folder; give {READ}, a folder with train.* or a hub id"


def _unclear(folder: Path, split: str, found: list[Path]) -> str:
    if found:
        files = _listed(found, folder)
        return f"{folder}: more than one file of the split {split}, {files}; keep one or give the file itself"
    if other := [name for name in _split_names(folder) if name]:
        return (
            f"{folder}: has no split {split}, no file {split}.* and no shards; it has "
            f"{excerpt(', '.join(other), 100)}. Write a split as {folder}@{other[0]}, or give the file itself"
        )
    subsets = sorted(p.name for base in (folder, folder / "data") if base.is_dir() for p in base.iterdir() if _holds(p))
    if subsets:
        return f"{folder}: has subsets: {excerpt(', '.join(subsets), 100)}. Write one as {folder}:{subsets[0]}"
    if any(folder.glob("*.arrow")):
        return f"{folder}: holds .arrow files without {SAVED}; write the data set anew by its to_parquet() or to_json()"
    return f"{folder}: the folder has no file {split}.csv, {split}.jsonl or the like; it holds {_inside(folder)}"


def _holds(path: Path) -> bool:
    return path.is_dir() and path.name != "data" and bool(_split_names(path) or (path / SAVED).is_file())


def _listed(files: list[Path], folder: Path) -> str:
    return excerpt(", ".join(str(f.relative_to(folder)) for f in files), 120)


def _inside(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    return excerpt(", ".join(names), 80) if names else "nothing"


def _saved_rows(here: Place, folder: Path) -> list[Row]:
    import datasets  # takes seconds, which other files need not pay

    name = folder.name
    try:
        table = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: looks like a data set saved by `datasets`, but cannot be read ({type(error).__name__}: "
            f"{excerpt(str(error), 120)}); save it anew, or write it by its to_parquet()"
        ) from error
    found = [Row(f"{name}:{k}", f"{name}, row {k}", dict(fields)) for k, fields in enumerate(table, 1)]
    if not found:
        raise DataError(f"{here.source}: holds no records")
    return found


def _id(here: Place) -> tuple[str, ...]:
    return (here.path, here.subset) if here.subset else (here.path,)


def _hub_rows(here: Place, split: str) -> list[Row]:
    with _hub(here) as datasets:
        table = datasets.load_dataset(*_id(here), split=split)
    name = ":".join(_id(here))
    found = [
        Row(f"{name}/{split}:{k}", f"{name}, split {split}, row {k}", dict(fields)) for k, fields in enumerate(table, 1)
    ]
    if not found:
        raise DataError(f"{here.source}: the {split} split holds no rows")
    return found


def fingerprint(here: Place, split: str) -> str:
    """What `datasets` calls the content of a split on the hub."""
    with _hub(here) as datasets:
        return str(datasets.load_dataset(*_id(here), split=here.split or split)._fingerprint)


@contextmanager
def _hub(here: Place) -> Iterator[ModuleType]:
    import datasets

    try:
        yield datasets
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{here.source}: there is no such file or folder here, and the hub data set could not be loaded "
            f"({type(error).__name__}: {excerpt(str(error), 160)}). Check the name (a subset is written "
            "owner/name:subset, a split owner/name@split) and the network; without network, run `hf download "
            f"{here.path} --repo-type dataset --local-dir DIR` elsewhere and give DIR or a file of it"
        ) from error
