"""A bundle as a folder or a file: written with equal bytes for equal contents, read as if an enemy had made it.

The file is a zip whose members are stored, not compressed: compressors differ between machines, and nothing in it can
unfold to more than its own size.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from pydantic import Field, ValidationError

from dpeer.errors import DpeerError
from dpeer.files import sync_folder, write_bytes
from dpeer.scratch import scratch
from dpeer.section import Section

INDEX = "bundle.json"
FORMAT = 1
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
PART = re.compile(r"[A-Za-z0-9_=][A-Za-z0-9._=+-]{0,199}")
"""Of a path in a bundle: no hidden names, blanks or words that mean another folder."""
MOST_FILES, DEEPEST = 20_000, 8
MOST_INDEX = 16 << 20
BLOCK = 1 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)


Split = Literal["train", "dual", "heldout"]


class Entry(Section):
    bytes: int = Field(ge=0)
    """Size of the file."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of its content."""


class Source(Section):
    split: Split
    """What its records were used for."""
    source: str
    """As the recipe names it."""
    files: tuple[str, ...] = ()
    """Its files in the bundle; empty where it is not included."""


class Index(Section):
    """bundle.json."""

    format: Literal[1]
    """Version of this form."""
    versions: dict[str, str | None]
    """Of Python and packages with which pages and tables were written."""
    runs: tuple[str, ...] = ()
    """Names of run folders below runs/."""
    evaluations: tuple[str, ...] = ()
    """The same below evaluations/."""
    fits: dict[str, str | None] = Field(default_factory=dict)
    """Fits below fits/, each with the evaluation whose ratings it is of."""
    data: dict[str, tuple[Source, ...]] = Field(default_factory=dict)
    """Data of each run."""
    files: dict[str, Entry]
    """All files but this one, by path."""


def index_bytes(index: Index) -> bytes:
    return (json.dumps(index.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()


def digest(content: bytes) -> str:
    """Of bundle.json, and by it of all files: what one may publish. The same for folder and file."""
    return hashlib.sha256(content).hexdigest()


def entry(path: Path) -> Entry:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return Entry(bytes=path.stat().st_size, sha256=found)


def files_below(folder: Path) -> list[str]:
    """Paths of all files below, sorted. DpeerError: links, devices, or names that no bundle has."""
    found: list[str] = []
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise Refused(f"{relative} is {_kind(mode)}; a bundle holds plain files and folders only")
            _refuse_path(relative)
            if stat.S_ISREG(mode):
                found.append(relative)
        if len(found) > MOST_FILES:
            raise Refused(f"it holds more than {MOST_FILES:,} files")
    return sorted(found)


def write_zip(folder: Path, output: Path) -> None:
    """Store a folder as one file: equal contents give equal bytes, on every machine."""
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(8)}.tmp")
    try:
        with zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as archive:
            for name in files_below(folder):
                about = zipfile.ZipInfo(name, EPOCH)
                about.create_system, about.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                about.file_size = (folder / name).stat().st_size
                with (folder / name).open("rb") as source, archive.open(about, "w") as target:
                    shutil.copyfileobj(source, target, BLOCK)
        os.replace(temporary, output)
        sync_folder(output.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_index(folder: Path, index: Index) -> str:
    """Write bundle.json; returns the digest."""
    content = index_bytes(index)
    write_bytes(folder / INDEX, content)
    return digest(content)


class Refused(DpeerError):
    """What no bundle of dpeer's holds, as the end of a sentence that begins with its name."""


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The bundle as a folder of plain files with harmless names; of a file, a copy that is gone after the block.

    DpeerError: it is none, or holds what a bundle never holds.
    """
    try:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Refused("is neither a folder nor a file" if path.exists() else "does not exist")
        if path.is_dir():
            files_below(path)
            yield path
            return
        with scratch("dpeer-bundle-") as folder:
            _unpack(path, folder)
            yield folder
    except Refused as refused:
        raise DpeerError(
            f"{path}: {refused}. Give what `dpeer bundle` wrote, or get it anew from whoever published it."
        ) from None


def read_index(folder: Path) -> tuple[Index, str]:
    """bundle.json and the digest. Refused: there is none, or it is not as dpeer writes it."""
    path = folder / INDEX
    if not path.is_file():
        raise Refused(f"holds no {INDEX}, so it is no bundle")
    if path.stat().st_size > MOST_INDEX:
        raise Refused(f"its {INDEX} is larger than {MOST_INDEX >> 20} MiB")
    content = path.read_bytes()
    try:
        index = Index.model_validate_json(content, strict=False)
    except (ValidationError, RecursionError) as error:
        first = str(error).partition("\n")[2].split("\n")[:2] or [str(error)]
        raise Refused(f"its {INDEX} is not as dpeer writes it ({' '.join(line.strip() for line in first)})") from None
    for name in index.files:
        _refuse_path(name)
    for name in (*index.runs, *index.evaluations, *index.fits, *(n for n in index.fits.values() if n), *index.data):
        if not re.fullmatch(NAME, name):
            raise Refused(f"its {INDEX} names a part {name[:80]!r}")
    return index, digest(content)


def _unpack(path: Path, folder: Path) -> None:
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _refuse_members(members, size)
            if sum(m.file_size for m in members) > (free := shutil.disk_usage(folder).free):
                raise DpeerError(f"{path}: needs {size:,} bytes in {folder.parent}, which has {free:,}. Set TMPDIR.")
            for member in members:
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("xb") as stream:
                    _copy(source, stream, member.file_size)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, FileExistsError, NotADirectoryError, OSError) as error:
        raise Refused(f"is no zip file as dpeer writes it ({error})") from None


def _refuse_members(members: list[zipfile.ZipInfo], size: int) -> None:
    if len(members) > MOST_FILES:
        raise Refused(f"it holds {len(members):,} files, more than {MOST_FILES:,}")
    if sum(m.file_size for m in members) > size:
        raise Refused("its files are larger than itself, though none is compressed")
    seen: set[str] = set()
    for member in members:
        name, mode = member.filename, member.external_attr >> 16
        _refuse_path(name)
        if name in seen:
            raise Refused(f"it holds {name} twice")
        seen.add(name)
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise Refused(f"{name} is {_kind(mode)}; a bundle holds plain files only")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise Refused(f"{name} is compressed, and a bundle is not: it could unfold to any size")
        if member.flag_bits & 0x1:
            raise Refused(f"{name} is encrypted")


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    left = size
    while block := source.read(BLOCK):
        left -= len(block)
        if left < 0:
            raise Refused("a file in it is larger than it says")
        target.write(block)
    if left:
        raise Refused("a file in it is shorter than it says")


def _refuse_path(name: str) -> None:
    """Refused: a path that leads out of its folder, or that some system would read as another one."""
    parts = PurePosixPath(name).parts
    plain = "/".join(parts) == name and 0 < len(parts) <= DEEPEST
    if not plain or not all(PART.fullmatch(part) for part in parts):
        raise Refused(f"it holds a file called {name[:120]!r}, a name that dpeer never gives")


def _kind(mode: int) -> str:
    return "a symbolic link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no plain file"
