"""Staged slides are temporary copies within the size limit of the folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stainssl.slides.staging import staged


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "a.svs").write_bytes(bytes(range(250)) * 4)
    return tmp_path / "slow" / "a.svs"


def test_a_slide_is_copied_and_the_copy_removed(slide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fast" / "deep"
    with staged(slide, folder, 10_000) as path_read:
        assert path_read.name == "a.svs"
        assert folder in path_read.parents
        assert path_read.read_bytes() == slide.read_bytes()
    assert not list(folder.iterdir())


def test_the_copy_is_removed_if_reading_fails(slide: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged(slide, tmp_path / "fast", 10_000):
        raise RuntimeError
    assert not list((tmp_path / "fast").iterdir())


def test_the_size_limit_is_for_all_copies_in_the_folder(slide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fast"
    with staged(slide, folder, 1_500) as first, staged(slide, folder, 1_500) as second:
        assert first != slide
        assert second == slide
    with staged(slide, folder, 999) as path_read:
        assert path_read == slide


@pytest.mark.parametrize("name", ["a.mrxs", "a.dcm", "folder.zarr"])
def test_slides_of_several_files_are_read_in_place(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir() if name.endswith("zarr") else path.write_bytes(b"x")
    with staged(path, tmp_path / "fast", 10_000) as path_read:
        assert path_read == path
    with staged(path, None) as path_read:
        assert path_read == path


def test_copies_of_a_killed_job_are_removed_and_do_not_count(slide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fast"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from stainssl.slides.staging import staged\n"
        "with staged(Path(sys.argv[1]), Path(sys.argv[2]), 1_500):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, slide, folder], check=False)
    assert list(folder.glob("*/a.svs"))
    with staged(slide, folder, 1_500) as path_read:
        assert path_read != slide
    assert not list(folder.iterdir())
