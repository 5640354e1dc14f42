"""Slides that were replaced since they were tiled are detected, regardless of time stamps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stainssl.errors import SlideError, Status
from stainssl.slides.readers import open_slide
from stainssl.slides.unchanged import NOT_OPENED, SlideFingerprint, recorded


@pytest.mark.parametrize(
    ("options", "message"), [({"shape": (512, 1024)}, "levels"), ({"quality": 60}, "bytes")]
)
def test_another_slide_under_the_same_name_is_changed(
    svs: Callable[..., Path], options: dict[str, object], message: str
) -> None:
    path = svs()
    with open_slide(path) as slide:
        before = SlideFingerprint.of(path, slide)
        before.require(path, slide)
    time = path.stat().st_mtime - 1000
    svs(**options)
    os.utime(path, (time, time))
    with (
        open_slide(path) as slide,
        pytest.raises(SlideError, match=rf"tiled \({message}") as caught,
    ):
        before.require(path, slide)
    assert caught.value.status is Status.CHANGED


def test_other_content_of_the_same_size_is_changed(svs: Callable[..., Path]) -> None:
    path = svs()
    with open_slide(path) as slide:
        before = SlideFingerprint.of(path, slide)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with open_slide(path) as slide, pytest.raises(SlideError, match=r"tiled \(content"):
        before.require(path, slide)


def test_a_touched_or_copied_slide_is_unchanged(svs: Callable[..., Path], tmp_path: Path) -> None:
    path = svs()
    with open_slide(path) as slide:
        before = SlideFingerprint.of(path, slide)
    copy = tmp_path / "copy.svs"
    copy.write_bytes(path.read_bytes())
    with open_slide(copy) as slide:
        before.require(copy, slide)


def test_fingerprints_are_read_from_the_qc_table(svs: Callable[..., Path]) -> None:
    path = svs()
    with open_slide(path) as slide:
        one = SlideFingerprint.of(path, slide)
    rows = {"good": one, "never-opened": NOT_OPENED, "folder": SlideFingerprint(0, "", "[[4, 4]]")}
    qc = pd.DataFrame([vars(fingerprint) for fingerprint in rows.values()]).assign(
        slide_id=list(rows)
    )
    assert recorded(qc) == {"good": one, "folder": rows["folder"]}
    assert recorded(pd.DataFrame({"slide_id": ["a"]})) == {}
    assert np.isin(qc["size_bytes"], [0, path.stat().st_size]).all()
