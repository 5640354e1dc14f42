"""A crash or hang of a reader in a separate process affects one slide only."""

from __future__ import annotations

import errno
import os
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from stainssl.errors import SlideError, StainsslError, Status
from stainssl.slides.readers import isolated
from stainssl.slides.readers.isolated import IsolatedFile
from stainssl.slides.readers.patches import PatchFile
from stainssl.slides.slide import Slide

PICTURE = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)


class Fragile(PatchFile):
    """An image file whose reading fails in the way that its name says."""

    def read_region(self, x: int, y: int, level: int, size_px: tuple[int, int]) -> np.ndarray:
        match self.path.stem:
            case "exits":
                os._exit(1)
            case "aborts":
                os.abort()
            case "hangs":
                time.sleep(600)
            case "spoiled":
                raise SlideError(Status.UNREADABLE, "Bogus.")
            case "unplugged":
                raise OSError(errno.EIO, "Input/output error")
        return super().read_region(x, y, level, size_px)


def open_fragile(path: Path) -> Slide:
    if path.stem == "dies-at-once":
        os._exit(0)
    if path.stem == "without-library":
        raise StainsslError("libfast.so is missing.")
    return Fragile(path, "PNG", PICTURE)


def test_a_slide_in_a_separate_process_is_read_the_same() -> None:
    with closing(IsolatedFile(Path("fine.png"), "fragile", open_fragile)) as slide:
        assert slide.level_sizes_px == [(60, 40)]
        assert (slide.mpp, slide.reader) == (None, "fragile")
        assert np.array_equal(slide.read_region(0, 0, 0, (60, 40)), PICTURE)
        assert np.array_equal(slide.read_region(5, 7, 0, (3, 2)), PICTURE[7:9, 5:8])


def test_a_missing_library_is_not_a_fault_of_the_slide() -> None:
    with pytest.raises(StainsslError, match=r"libfast\.so is missing"):
        IsolatedFile(Path("without-library.png"), "fragile", open_fragile)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("exits", "ended"), ("aborts", "ended"), ("hangs", "did not answer"), ("spoiled", "Bogus")],
)
def test_failures_in_the_process_give_a_status(
    monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    monkeypatch.setattr(isolated, "PATIENCE_S", 0.5 if name == "hangs" else 60)
    slide = IsolatedFile(Path(f"{name}.png"), "fragile", open_fragile)
    with pytest.raises(SlideError, match=sentence) as caught:
        slide.read_region(0, 0, 0, (60, 40))
    assert caught.value.status is Status.UNREADABLE
    assert slide._process.exitcode is not None
    with pytest.raises(SlideError, match="closed"):
        slide.read_region(0, 0, 0, (60, 40))


def test_a_process_that_exits_at_once_gives_a_slide_error() -> None:
    with pytest.raises(SlideError, match="ended its process"):
        IsolatedFile(Path("dies-at-once.png"), "fragile", open_fragile)


def test_an_error_of_the_machine_stays_an_oserror() -> None:
    slide = IsolatedFile(Path("unplugged.png"), "fragile", open_fragile)
    with pytest.raises(OSError, match="Input/output") as caught:
        slide.read_region(0, 0, 0, (60, 40))
    assert caught.value.errno == errno.EIO


def test_a_damaged_jpeg_that_crashes_fastslide_gives_a_status(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stainssl.slides.readers import open_slide

    monkeypatch.setattr(isolated, "PATIENCE_S", 3.0)
    slide = open_slide(real_data / "slides" / "unreadable.svs", "fastslide")
    with pytest.raises(SlideError, match="fastslide") as caught:
        slide.read_region(0, 0, 0, (16, 16))
    assert caught.value.status is Status.UNREADABLE


def test_a_failed_import_of_fastslide_is_not_a_fault_of_the_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stainssl.slides.readers import fastslide

    (tmp_path / "fastslide.py").write_text("raise ImportError('libfast.so.1: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StainsslError, match=r"libfast\.so\.1.*stainssl doctor"):
        fastslide.open_file(tmp_path / "slide.czi")
