"""Slides that several threads read at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from stainssl.errors import SlideError, Status
from stainssl.slides import shared
from stainssl.slides.readers import open_slide
from stainssl.slides.shared import SharedSlide, open_shared


@pytest.fixture
def picture(tmp_path: Path, rng: np.random.Generator) -> Path:
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_shared_slide_is_read_the_same(picture: Path) -> None:
    with open_slide(picture) as one, open_shared(picture, "auto", 3) as several:
        for name in ("path", "reader", "level_sizes_px", "downsamples", "bounds_level0_px", "mpp"):
            assert getattr(several, name) == getattr(one, name), name
        positions = [(x, y) for x in range(0, 60, 7) for y in range(0, 40, 7)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda p: several.read_region(*p, 0, (9, 9)), positions))
        for position, region in zip(positions, found, strict=True):
            np.testing.assert_array_equal(region, one.read_region(*position, 0, (9, 9)))


def test_as_many_threads_read_at_the_same_time_as_there_are_handles() -> None:
    barrier, used = threading.Barrier(2, timeout=30), set()

    def reads(name: str) -> Mock:
        handle = Mock()
        handle.read_region.side_effect = lambda *_: (used.add(name), barrier.wait())
        return handle

    slide = SharedSlide([reads("a"), reads("b")])
    assert slide.readers == 2
    with ThreadPoolExecutor(4) as pool:  # the barrier breaks unless two threads read
        list(pool.map(lambda _: slide.read_region(0, 0, 0, (1, 1)), range(8)))
    assert used == {"a", "b"}


def test_a_handle_is_released_after_an_error() -> None:
    handle = Mock()
    handle.read_region.side_effect = SlideError(Status.UNREADABLE, "broken")
    slide = SharedSlide([handle])
    for _ in range(3):
        with pytest.raises(SlideError, match="broken"):
            slide.read_region(0, 0, 0, (1, 1))


def test_handles_are_closed_if_one_cannot_be_opened(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Mock()
    opened = iter([first])

    def opens(*_: object) -> Mock:
        try:
            return next(opened)
        except StopIteration:
            raise SlideError(Status.UNREADABLE, "no more handles") from None

    monkeypatch.setattr(shared, "open_slide", opens)
    with pytest.raises(SlideError, match="no more handles"):
        open_shared(picture, "auto", 2)
    first.close.assert_called_once()
