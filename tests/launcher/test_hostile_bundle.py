"""Hostile bundles are refused, or differ: nothing is written outside, executed, unpickled or unfolded."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpeer.errors import DpeerError
from dpeer.heldout_file import read_heldout, write_heldout
from dpeer.integrity import Damaged
from dpeer.launcher.bundle import verify_fit
from dpeer.launcher.bundle.container import INDEX
from dpeer.launcher.bundle.fits import refuse_unfolding
from dpeer.launcher.bundle.pack import bundle
from dpeer.launcher.bundle.verify import verify
from tests.launcher.published import EVALUATION, FIT, RUN, change_state, made_evaluation, made_fit, made_run, renew


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    made_run(root / "run")
    made_fit(made_evaluation(root / "eval"), root / "eval" / "irt")
    bundle([root / "run"], root / "bundle", [root / "eval"], [root / "eval" / "irt"])
    return root / "bundle"


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def zipped(path: Path, members: list[tuple[str, bytes]], **about: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            for key, value in about.items():
                setattr(info, key, value)
            archive.writestr(info, content)
    return path


def link(folder: Path) -> None:
    (folder / "runs" / "link").symlink_to("/etc/passwd")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "runs" / "pipe")


@pytest.mark.parametrize("plant", [link, pipe])
def test_links_and_devices_are_refused(copy: Path, plant: Callable[[Path], None]) -> None:
    plant(copy)
    with pytest.raises(DpeerError, match="plain files"):
        list(verify(copy))
    (copy.parent / "way").symlink_to(copy)
    with pytest.raises(DpeerError, match="neither"):
        list(verify(copy.parent / "way"))


OUTSIDE = b'{"format": 1, "versions": {}, "files": {"../x": {"bytes": 1, "sha256": "%s"}}}' % (b"0" * 64)


@pytest.mark.parametrize(
    ("members", "about", "says"),
    [
        ([("../../evil", b"x")], {}, "a name that dpeer never gives"),
        ([("/etc/evil", b"x")], {}, "a name that dpeer never gives"),
        ([("a\\..\\b", b"x")], {}, "a name that dpeer never gives"),
        ([("a/./b", b"x")], {}, "a name that dpeer never gives"),
        ([("a" * 300, b"x")], {}, "a name that dpeer never gives"),
        ([("runs/l", b"/etc/passwd")], {"external_attr": (stat.S_IFLNK | 0o777) << 16}, "symbolic link"),
        ([("bomb", b"\0" * 1_000_000)], {"compress_type": zipfile.ZIP_DEFLATED}, "compressed"),
        ([("a", b"x"), ("a", b"y")], {}, "twice"),
        ([("a", b"x")], {}, "no bundle"),
        ([(INDEX, b"[" * 100_000)], {}, "not as dpeer writes it"),
        ([(INDEX, b'{"format": 2, "versions": {}, "files": {}}')], {}, "not as dpeer writes it"),
        ([(INDEX, OUTSIDE)], {}, "never gives"),
        ([(INDEX, b'{"format": 1, "versions": {}, "files": {}, "runs": ["../x"]}')], {}, "names a part"),
        ([(INDEX, b'{"format": 1, "versions": {}, "files": {}, "data": {"../x": []}}')], {}, "names a part"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_files_are_refused(tmp_path: Path, members: Any, about: dict[str, Any], says: str) -> None:
    with pytest.raises(DpeerError, match=says):
        list(verify(zipped(tmp_path / "x.zip", members, **about)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.zip"] and not Path("/etc/evil").exists()


def test_members_that_overlap_or_lie_about_their_size_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", [("a", b"x" * 100), ("b", b"y" * 100)])
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    struct.pack_into("<I", content, at + 20, 1 << 30)
    struct.pack_into("<I", content, at + 24, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(DpeerError, match="larger than itself"):
        list(verify(path))
    for broken in (b"", b"PK", b"no zip at all", path.read_bytes()[:150]):
        path.write_bytes(broken)
        with pytest.raises(DpeerError, match=r"no zip|no bundle"):
            list(verify(path))


def pickled(folder: Path) -> None:
    import hashlib

    path = folder / FIT / "draws.npz"
    np.savez(path, **{"draws.theta": np.array([{"a": 1}], dtype=object)})
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    change_state(folder / FIT / "manifest.json", lambda m: m.update(sha256=own))


def unfolding(folder: Path) -> None:
    np.savez_compressed(folder / FIT / "draws.npz", **{"draws.theta": np.zeros(10_000_000)})


def absurd_header(folder: Path) -> None:
    """An array that says that it has 10^15 elements."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    zipped(folder / FIT / "draws.npz", [("draws.theta.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header)])


def wrong_types(folder: Path) -> None:
    for name in ("config", "data", "chain"):
        change_state(folder / RUN / "manifest.json", lambda m, n=name: m.update({n: [1]}))  # type: ignore[misc]


def far_dimensions(folder: Path) -> None:
    path = folder / RUN / "heldout.safetensors"
    held = read_heldout(path)
    assert held
    held.edges.dims[0] = 1 << 40
    write_heldout(path, held)


def nested(folder: Path) -> None:
    (folder / FIT / "tables" / "facts.json").write_text("[" * 100_000)


HOSTILE = [
    (pickled, FIT),
    (unfolding, FIT),
    (absurd_header, FIT),
    (nested, FIT),
    (wrong_types, RUN),
    (far_dimensions, RUN),
]


@pytest.mark.parametrize(("plant", "part"), HOSTILE)
def test_wrong_types_and_absurd_sizes_differ_and_end_nothing(
    copy: Path, plant: Callable[[Path], None], part: str
) -> None:
    plant(copy)
    renew(copy)
    found = list(verify(copy, parts=[part, EVALUATION]))
    assert any(c.state == "differs" for c in found)
    assert EVALUATION in {c.part for c in found if c.state == "verified"}, "the other parts are looked at"


def test_what_a_forger_wrote_commands_no_terminal(copy: Path) -> None:
    change_state(copy / RUN / "manifest.json", lambda m: m.update(exported_step="\x1b[2J\nverified  all"))
    renew(copy)
    said = [c.says for c in verify(copy, parts=[RUN]) if "was exported" in c.says]
    assert len(said) == 1 and said[0].isprintable()


def test_arrays_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Each fits into the file, all together do not."""
    path = tmp_path / "draws.npz"
    np.savez(path, a=np.zeros(1000))
    with zipfile.ZipFile(path, "a") as archive:
        archive.infolist().extend(archive.infolist() * 50)
        archive.filelist = archive.infolist()
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(Damaged, match="larger than itself"):
        refuse_unfolding(path)


def test_a_table_that_repeats_a_long_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is in the file once, and its footer names the size before decoding."""
    monkeypatch.setattr(verify_fit, "FREE", 1 << 20)
    path, text = tmp_path / "ratings.parquet", pa.array(["x" * 100_000])
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(400, np.int32)), text)
    pq.write_table(pa.table({"prompt": texts}), path, compression="zstd", store_schema=False)
    assert pq.ParquetFile(path).metadata.row_group(0).total_byte_size < 1 << 20
    with pytest.raises(Damaged, match="unfold"):
        verify_fit._refuse_unfolding(path)
