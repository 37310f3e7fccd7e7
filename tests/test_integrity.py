"""Checksums: whatever changes in a file is seen, and what carries none is told from what is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dpeer import chain
from dpeer.errors import ConfigError
from dpeer.integrity import (
    BLANK,
    BLOCK,
    WINDOW,
    Damaged,
    entry,
    faults,
    folder_faults,
    listed,
    parse_state,
    read_state,
    seal,
    verify,
    write_list,
    write_state,
)

VALUE = {"b": [1, None], "a": "\u00e9", "c": float("inf")}


@given(before=st.binary(), after=st.binary(max_size=99), at=st.integers(0, 10**6), new=st.integers(1, 255))
def test_every_changed_byte_of_a_sealed_file_is_seen(before: bytes, after: bytes, at: int, new: int) -> None:
    whole = seal(before + BLANK.encode() + after)
    assert verify(whole) and len(whole) == len(before) + len(BLANK) + len(after)
    changed = bytearray(whole)
    changed[at % len(whole)] ^= new
    with pytest.raises(Damaged, match="does not match its checksum"):
        verify(bytes(changed))


@given(st.binary())
def test_what_carries_no_checksum_is_not_called_damaged(content: bytes) -> None:
    assert verify(content) is False


def test_the_checksum_is_that_of_the_library_over_the_blank_file() -> None:
    whole = seal(b"abc" + BLANK.encode())
    assert xxhash.xxh3_128_hexdigest(b"abc" + BLANK.encode()).encode() in whole


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty; it was cut"),
        (b"\0\0\0", "is no JSON"),
        (b'{"a": 1', "is no JSON"),
        (b"[1]", "holds list where an object"),
        (b"[" * 10**5, "is no JSON"),
        (b'{"a": 1, "state_format": 2}', "has format 2, and this dpeer knows 1: a later version"),
    ],
)
def test_state_files_that_are_none(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ConfigError, match=f"x.json {says}.*Do this.$"):
        read_state(tmp_path / "x.json", "Do this.", ConfigError)


def test_state_comes_back_and_says_when_it_does_not(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_state(path, VALUE)
    assert read_state(path, "") == {**VALUE, "c": "inf"}
    assert parse_state(b'{"a": 1}') == {"a": 1}  # of an earlier version
    path.unlink()
    with pytest.raises(ConfigError, match=r"x\.json is missing\. Do this\."):
        read_state(path, "Do this.", ConfigError)
    path.mkdir()
    with pytest.raises(ConfigError, match=r"x\.json cannot be read \(Is a directory\)\. Do this\."):
        read_state(path, "Do this.", ConfigError)


@pytest.mark.parametrize("size", [0, 1, BLOCK + 1, WINDOW, WINDOW + 1])
def test_what_was_just_written_is_hashed_in_place_with_the_same_result(tmp_path: Path, size: int) -> None:
    (path := tmp_path / "shard").write_bytes(content := bytes(range(251)) * (size // 251) + b"x" * (size % 251))
    expected = {"bytes": size, "xxh3": xxhash.xxh3_128_hexdigest(content)}
    assert entry(path, fresh=True) == entry(path) == expected


def test_large_files_are_listed_and_faults_named(tmp_path: Path) -> None:
    contents = {"a": b"", "sub/b": os.urandom(300_000), "c": b"c"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    entries = listed(tmp_path, [tmp_path / name for name in contents])
    assert entries["sub/b"] == {"bytes": 300_000, "xxh3": xxhash.xxh3_128_hexdigest(contents["sub/b"])}
    assert faults(tmp_path, entries) == {} and entry(tmp_path / "a")["bytes"] == 0
    (tmp_path / "a").unlink()
    (tmp_path / "sub" / "b").write_bytes(contents["sub/b"][:-1] + bytes([contents["sub/b"][-1] ^ 1]))
    (tmp_path / "c").write_bytes(b"cc")
    found = faults(tmp_path, entries)
    assert found["a"] == "is missing" and found["c"] == "has 2 bytes where 1 were written"
    assert "does not match" in found["sub/b"]


def test_a_folder_with_a_damaged_list_is_not_sound(tmp_path: Path) -> None:
    assert folder_faults(tmp_path) is None
    (tmp_path / "a").write_bytes(b"a")
    write_list(tmp_path)
    assert folder_faults(tmp_path) == {}
    (tmp_path / "checksums.json").write_text("{}")
    assert list(folder_faults(tmp_path) or {}) == ["checksums.json"]


# Lines


def written(path: Path, count: int = 6) -> list[str]:
    end: str | None = "start"
    for step in range(1, count + 1):
        end = chain.append(path, [{"step": step, "loss": step / 7}], end)
    return chain.whole_lines(path)


def test_lines_are_json_and_carry_what_follows_from_all_before(tmp_path: Path) -> None:
    lines = written(tmp_path / "x")
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert list(chain.broken(lines, "start")) == [] and list(chain.broken(lines, "other")) == [1]
    assert list(chain.broken(lines)) == []
    expected = "start"
    for line in lines:
        bare = {key: value for key, value in json.loads(line).items() if key != "chain"}
        expected = xxhash.xxh3_128_hexdigest((expected + json.dumps(bare)).encode())
        assert json.loads(line)["chain"] == expected


@given(number=st.integers(0, 5), kind=st.sampled_from(["changed", "lost", "twice", "swapped", "bare"]))
def test_no_line_changes_goes_comes_or_moves_unseen(number: int, kind: str) -> None:
    lines, end = [], "start"
    for step in range(7):
        text, end = chain.linked({"step": step}, end)
        lines.append(text)
    whole = list(lines)
    match kind:
        case "changed":
            lines[number] = lines[number].replace(f'"step": {number}', '"step": 8')
        case "lost":
            del lines[number]
        case "twice":
            lines.insert(number, lines[number])
        case "swapped":
            lines[number : number + 2] = reversed(lines[number : number + 2])
        case "bare":
            lines[number] = json.dumps({"step": number})
    assert lines != whole and number + 1 <= next(chain.broken(lines, "start")) <= number + 2


def test_lines_of_earlier_versions_stay_as_they_are(tmp_path: Path) -> None:
    assert chain.append(tmp_path / "x", [{"a": 1}], None) is None
    assert (tmp_path / "x").read_text() == '{"a": 1}\n'
    assert list(chain.broken(chain.whole_lines(tmp_path / "x"))) == []
