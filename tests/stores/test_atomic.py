"""A file or folder appears under its name only when it is complete."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stainssl.runtime.leftovers import owner_mark
from stainssl.stores.atomic import remove_leftovers, replacing, write_text


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as made:
        made.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with replacing(tmp_path / "folder") as made:
            made.mkdir()
            (made / name).touch()
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
if sys.argv[2] == "between":  # after the old folder is moved away, before the new one is renamed
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
def test_leftovers_of_a_killed_process_are_removed_and_complete_folders_kept(
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


def test_temporary_files_of_other_processes_are_kept(tmp_path: Path) -> None:
    machine = owner_mark().partition("-")[0]
    of_running_process = tmp_path / f".tmp-{machine}-{os.getppid()}-a.txt"
    of_another_machine = tmp_path / ".tmp-00000000-1-a.txt"
    for path in (of_running_process, of_another_machine):
        path.touch()
    remove_leftovers.cache_clear()
    write_text(tmp_path / "a.txt", "")
    assert {of_running_process, of_another_machine} <= set(tmp_path.iterdir())


def test_the_longest_allowed_file_name(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 251 + ".png")
    with replacing(path) as made:
        assert made.suffix == ".png"
        made.touch()
    assert list(tmp_path.iterdir()) == [path]
