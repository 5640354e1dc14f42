"""A slide whose reader hangs affects only its own pictures, in an export and on the page."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stainssl.config import parse
from stainssl.errors import SlideError
from stainssl.runtime.limits import library_call
from stainssl.slides import errors
from stainssl.slides.slide import Slide
from stainssl.view import viewer_data as module
from stainssl.view.export import write_export
from stainssl.view.handles import Key
from stainssl.view.limits import SlideLimits
from stainssl.view.viewer_data import ViewerData
from tests.slides.conftest import stained, write_svs

KEY, FILE = ("c", "s1"), Path("s1.svs")


@pytest.fixture
def two_slides(tmp_path: Path) -> Iterator[ViewerData]:
    """Slides `hangs` and `reads`, read by OpenSlide."""
    image, _ = stained(np.random.default_rng(0), (600, 600))
    for name in ("hangs", "reads"):
        write_svs(tmp_path / f"{name}.svs", image)
    rows = [{"slide_id": n, "patient_id": n, "path": f"{n}.svs"} for n in ("hangs", "reads")]
    pd.DataFrame(rows).to_csv(tmp_path / "slides.csv", index=False)
    cohort = {"sheet": str(tmp_path / "slides.csv"), "root": str(tmp_path)}
    made = ViewerData(parse({"results": str(tmp_path / "none"), "cohorts": {"c": cohort}}))
    yield made
    made.close()


@pytest.fixture
def started_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Files of the pictures whose reading was started; reading `hangs` does not return."""
    release, started, read_picture = threading.Event(), list[Path](), module.read_pyramid_picture

    def read(slide: Slide, *at: Any) -> np.ndarray:
        started.append(slide.path)
        if slide.path.stem == "hangs":
            with library_call("reading level 0"):
                release.wait()
        return read_picture(slide, *at)

    monkeypatch.setattr(module, "read_pyramid_picture", read)
    monkeypatch.setattr(errors, "CALL_SECONDS", 3.0)
    yield started
    release.set()


@pytest.mark.usefixtures("page")
def test_an_export_continues_after_a_hanging_slide(
    two_slides: ViewerData, started_reads: list[Path], tmp_path: Path
) -> None:
    messages, out = list[str](), tmp_path / "out"
    write_export(two_slides, out, [], messages.append, threads=2)
    assert "hangs (1 of 2): Given up: reading level 0: no answer" in messages[0]
    assert messages[1] == "reads (2 of 2)"
    assert not list(out.glob("pictures/picture/c/hangs/**/*.jpg"))
    pyramid = two_slides.pyramid("c", "reads")
    counts = [np.prod(pyramid.pictures(level)) for level in range(pyramid.deepest + 1)]
    assert len(list(out.glob("pictures/picture/c/reads/**/*.jpg"))) == sum(counts)
    assert sum(path.stem == "hangs" for path in started_reads) <= 2  # one per thread, not all


@pytest.mark.usefixtures("page")
def test_an_export_continues_after_a_slide_that_cannot_be_opened_in_time(
    two_slides: ViewerData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    release, open_slide = threading.Event(), two_slides.handles._open

    def hang(key: Key) -> Slide:
        if key[1] == "hangs":
            with library_call("opening"):
                release.wait()
        return open_slide(key)

    monkeypatch.setattr(two_slides.handles, "_open", hang)
    monkeypatch.setattr(errors, "CALL_SECONDS", 3.0)
    messages = list[str]()
    write_export(two_slides, tmp_path / "out", [], messages.append)
    release.set()
    assert "Given up: opening: no answer" in messages[0]
    assert list((tmp_path / "out").glob("pictures/thumbnail/c/reads.jpg"))


def test_a_hanging_slide_is_reported_and_not_read_again(
    two_slides: ViewerData, started_reads: list[Path]
) -> None:
    for _ in range(2):
        with pytest.raises(SlideError, match="Given up: reading level 0: no answer"):
            two_slides.picture("picture", "c", "hangs", "0", "0", "0")
    assert len(started_reads) == 1
    assert "Given up" in two_slides.data("outlines", "c", "hangs")["problem"]
    assert two_slides.picture("picture", "c", "reads", "0", "0", "0")


def test_the_time_limit_of_a_slide_covers_all_calls_after_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(errors, "_touch", lambda path: None)
    limits, now = SlideLimits(minutes=1), [0.0]
    monkeypatch.setattr("stainssl.view.limits.time.monotonic", lambda: now[0])
    limits.start(KEY)
    assert limits.within(KEY, FILE, lambda: 1) == 1
    now[0] = 61
    with pytest.raises(SlideError, match="Given up: not done"):
        limits.within(KEY, FILE, threading.Event().wait)
    assert limits.given_up(KEY)
    with pytest.raises(SlideError, match="Given up"):
        limits.within(KEY, FILE, lambda: 1)


def test_a_call_is_tried_again_after_an_error() -> None:
    limits = SlideLimits(minutes=1)
    with pytest.raises(OSError, match="gone"):
        limits.within(KEY, FILE, _fail)
    assert limits.within(KEY, FILE, lambda: 1) == 1


def _fail() -> None:
    raise OSError("gone")
