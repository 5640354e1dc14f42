"""A file has its right name only when it is whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stainssl.runtime.leftovers import owner_mark
from stainssl.stores.atomic import remove_leftovers, replacing, write_text


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as made:
        made.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for word in ("one", "two"):
        with replacing(tmp_path / "folder") as made:
            made.mkdir()
            (made / word).touch()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_writing_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "b"):
        pass


KILLED = """
import os, signal, sys
from pathlib import Path
from stainssl.stores import atomic
path = Path(sys.argv[1])
if sys.argv[2] == "between":  # the old folder stepped aside, the new one has not its name yet
    renamed = os.rename
    def rename(old, new):
        if Path(new) == path:
            os.kill(os.getpid(), signal.SIGKILL)
        renamed(old, new)
    atomic.os.rename = rename
with atomic.replacing(path) as made:
    made.mkdir()
    (made / "half").touch()
    if sys.argv[2] == "within":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["within", "between"])
def test_what_a_killed_process_left_is_cleared_and_what_was_whole_stays(
    tmp_path: Path, when: str
) -> None:
    with replacing(tmp_path / "part.zarr") as made:
        made.mkdir()
        (made / "whole").touch()
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "part.zarr", when])
    assert killed.returncode == -signal.SIGKILL
    assert any(path.name.startswith(".tmp-") for path in tmp_path.iterdir())
    remove_leftovers.cache_clear()
    write_text(tmp_path / "another.txt", "")
    assert {path.name for path in tmp_path.iterdir()} == {"part.zarr", "another.txt"}
    assert [path.name for path in (tmp_path / "part.zarr").iterdir()] == ["whole"]


def test_what_others_are_writing_stays(tmp_path: Path) -> None:
    machine = owner_mark().partition("-")[0]
    living = tmp_path / f".tmp-{machine}-{os.getppid()}-a.txt"
    elsewhere = tmp_path / ".tmp-00000000-1-a.txt"
    for path in (living, elsewhere):
        path.touch()
    remove_leftovers.cache_clear()
    write_text(tmp_path / "a.txt", "")
    assert {living, elsewhere} <= set(tmp_path.iterdir())


def test_the_longest_name_that_a_file_may_have(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 251 + ".png")
    with replacing(path) as made:
        assert made.suffix == ".png"
        made.touch()
    assert list(tmp_path.iterdir()) == [path]
