"""Tiny models and one private Ray cluster for the tests of the judge farm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.cluster import connect  # first of all: it sets how Ray behaves, which ray reads when it is imported


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders a, b (qwen3), c (llama), d (qwen2): random tiny models whose tokens are bytes, so a digit is one."""
    from dpeer.model.toy import tiny_model

    folder = tmp_path_factory.mktemp("models")
    for seed, (name, family) in enumerate({"a": "qwen3", "b": "qwen3", "c": "llama", "d": "qwen2"}.items()):
        tiny_model(folder / name, family, seed)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect():
        yield
