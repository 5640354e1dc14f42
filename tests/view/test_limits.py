"""A slide whose reader hangs costs its own pictures: in an export, and on the page."""

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
def two(tmp_path: Path) -> Iterator[ViewerData]:
    """Slides `hangs` and `reads`, whose pictures are read by OpenSlide."""
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
def tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Pictures of `hangs` do not come back; gives the file of every picture that was begun."""
    never, begun, real = threading.Event(), list[Path](), module.read_pyramid_picture

    def read(slide: Slide, *at: Any) -> np.ndarray:
        begun.append(slide.path)
        if slide.path.stem == "hangs":
            with library_call("reading level 0"):
                never.wait()
        return real(slide, *at)

    monkeypatch.setattr(module, "read_pyramid_picture", read)
    monkeypatch.setattr(errors, "CALL_SECONDS", 3.0)
    yield begun
    never.set()


@pytest.mark.usefixtures("page")
def test_an_export_goes_on_past_a_slide_that_hangs(
    two: ViewerData, tried: list[Path], tmp_path: Path
) -> None:
    said, out = list[str](), tmp_path / "out"
    write_export(two, out, [], said.append, threads=2)
    assert "hangs (1 of 2): Given up: reading level 0: no answer" in said[0]
    assert said[1] == "reads (2 of 2)"
    assert not list(out.glob("pictures/picture/c/hangs/**/*.jpg"))
    pyramid = two.pyramid("c", "reads")
    every = [np.prod(pyramid.pictures(level)) for level in range(pyramid.deepest + 1)]
    assert len(list(out.glob("pictures/picture/c/reads/**/*.jpg"))) == sum(every)
    assert sum(path.stem == "hangs" for path in tried) <= 2  # one a thread, not each of them


@pytest.mark.usefixtures("page")
def test_an_export_goes_on_past_a_slide_that_cannot_be_opened_in_time(
    two: ViewerData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    never, opened = threading.Event(), two.handles._open

    def hang(key: Key) -> Slide:
        if key[1] == "hangs":
            with library_call("opening"):
                never.wait()
        return opened(key)

    monkeypatch.setattr(two.handles, "_open", hang)
    monkeypatch.setattr(errors, "CALL_SECONDS", 3.0)
    said = list[str]()
    write_export(two, tmp_path / "out", [], said.append)
    never.set()
    assert "Given up: opening: no answer" in said[0]
    assert list((tmp_path / "out").glob("pictures/thumbnail/c/reads.jpg"))


def test_the_page_says_why_and_asks_no_more(two: ViewerData, tried: list[Path]) -> None:
    for _ in range(2):
        with pytest.raises(SlideError, match="Given up: reading level 0: no answer"):
            two.picture("picture", "c", "hangs", "0", "0", "0")
    assert len(tried) == 1
    assert "Given up" in two.data("outlines", "c", "hangs")["problem"]
    assert two.picture("picture", "c", "reads", "0", "0", "0")


def test_after_start_all_work_on_a_slide_has_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_fails_by_itself_is_tried_again() -> None:
    limits = SlideLimits(minutes=1)
    with pytest.raises(OSError, match="gone"):
        limits.within(KEY, FILE, _raises)
    assert limits.within(KEY, FILE, lambda: 1) == 1


def _raises() -> None:
    raise OSError("gone")
