"""Keys of files that depend on their content only."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from stainssl.runtime.content import content_key


def test_a_copy_with_another_name_and_time_has_the_same_key(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3_000_000)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(data)
    os.utime(tmp_path / "b", (1, 1))
    assert content_key(tmp_path / "a") == content_key(tmp_path / "b")


def test_changed_content_changes_the_key_even_if_the_time_is_set_back(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(100_000))
    before, stat = content_key(path), path.stat()
    with path.open("r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_key(path) != before


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(1000))
    key = content_key(path)
    monkeypatch.setattr(Path, "open", None)
    assert content_key(path) == key


def test_the_key_depends_on_the_size_and_a_missing_file_is_an_error(tmp_path: Path) -> None:
    for name, count in (("a", 1000), ("b", 1001)):
        (tmp_path / name).write_bytes(bytes(count))
    assert content_key(tmp_path / "a") != content_key(tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        content_key(tmp_path / "c")


@pytest.mark.parametrize("samples", [-1, 0, 1])
def test_fewer_than_two_blocks_are_refused(tmp_path: Path, samples: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="first and the last block"):
        content_key(path, samples)


def test_two_blocks_are_the_first_and_the_last(tmp_path: Path) -> None:
    path, keys = tmp_path / "a", set()
    for position in (None, 0, 299_999, 150_000):
        data = bytearray(300_000)
        if position is not None:
            data[position] = 1
        path.write_bytes(data)
        keys.add(content_key(path, 2))
    assert len(keys) == 3  # the middle is not read
