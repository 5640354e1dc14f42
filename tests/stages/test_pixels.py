"""The pixels of a part hold every readable kept tile, with its stain profiles."""

import dataclasses
import os
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stainssl.config import Config, parse
from stainssl.errors import SlideError, StainsslError, Status
from stainssl.plan.workflow import BUILDERS
from stainssl.slides import errors
from stainssl.slides.errors import translate_errors
from stainssl.slides.readers.patches import PatchFile
from stainssl.slides.shared import SharedSlide
from stainssl.stages import pixels, run_stage
from stainssl.stores.pixels import SlidePixels, open_pixels
from tests.pretrain.world import images

SIZE = 64


@pytest.fixture
def patches(tmp_path: Path, rng: np.random.Generator) -> Config:
    """Five patches as a cohort, tiled."""
    rows = []
    for number in range(5):
        image = rng.integers(60, 220, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"t{number}.png")
        rows.append({"slide_id": f"t{number}", "patient_id": "p", "path": f"t{number}.png"})
    pd.DataFrame(rows).to_csv(tmp_path / "sheet.csv", index=False)
    cohort = {"sheet": str(tmp_path / "sheet.csv"), "root": str(tmp_path), "kind": "patches"}
    config = parse(
        {
            "results": str(tmp_path / "results"),
            "slides": {"part_size": 100},
            "cohorts": {"c": cohort},
            "tilings": {"default": {"mpp": 1.0, "size": SIZE}},
        }
    )
    run_stage("tile", config, "c", "all-0000")
    return config


def _store(config: Config) -> Path:
    return config.paths.pixels("c", "all-0000")


def test_every_tile_is_stored_with_its_profiles(patches: Config, tmp_path: Path) -> None:
    run_stage("pixels", patches, "c", "all-0000")
    store = open_pixels(_store(patches))
    assert store.slide_id == [f"t{number}" for number in range(5)]
    assert store.profile("macenko")["matrix"].shape == (5, 2, 3)
    assert store.pooled("reinhard")["mean"].shape == (5, 3)
    assert store.profile_methods() == ["macenko", "reinhard", "ruifrok", "vahadane"]
    original = np.asarray(Image.open(tmp_path / "t3.png")).astype(int)
    assert np.abs(store.images(np.array([3]))[0] - original).mean() < 12  # JPEG of noise


def test_a_slide_that_broke_since_costs_that_slide(
    patches: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t2.png").write_bytes(b"no longer a picture")
    run_stage("pixels", patches, "c", "all-0000")
    assert open_pixels(_store(patches)).slide_id == ["t0", "t1", "t3", "t4"]
    assert "t2: left out" in caplog.text


def test_a_slide_whose_reader_hangs_is_left_out(
    patches: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    over = threading.Event()
    read = PatchFile.read_region

    def hang(slide: PatchFile, *words: Any) -> np.ndarray:
        if slide.path.name == "t2.png":
            with translate_errors(slide.path, "reading"):
                over.wait()
        return read(slide, *words)

    monkeypatch.setattr(PatchFile, "read_region", hang)
    monkeypatch.setattr(errors, "CALL_SECONDS", 3.0)
    run_stage("pixels", patches, "c", "all-0000")
    over.set()
    assert open_pixels(_store(patches)).slide_id == ["t0", "t1", "t3", "t4"]
    assert "t2: left out: unreadable: Given up: reading: no answer" in caplog.text


@pytest.mark.parametrize("bad", [{7}, {0, 1}, {90, 99}])
def test_a_tile_that_cannot_be_read_costs_that_tile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bad: set[int]
) -> None:
    found = _read_with_faults(monkeypatch, bad)
    assert {i for i, jpeg in enumerate(found.jpeg) if not jpeg} == bad
    for fields in found.profiles.values():
        assert set(np.flatnonzero(~fields["valid"])) == bad
    assert f"s: {len(bad)} of 100 tiles cannot be read" in caplog.text


def test_a_slide_of_which_much_cannot_be_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SlideError, match="tile 20 is broken"):
        _read_with_faults(monkeypatch, set(range(10, 100)))


def _read_with_faults(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> SlidePixels:
    """The pixels of a slide of 100 tiles, of which some cannot be read."""
    image = images(1, "a", 0)[0]

    def read(slide: object, x: int, *_: object) -> np.ndarray:
        if x in bad:
            raise SlideError(Status.UNREADABLE, f"tile {x} is broken")
        return image

    monkeypatch.setattr(pixels, "read_square", read)
    tiles = pd.DataFrame({"tile": range(100), "x": range(100), "y": 0, "side": SIZE})
    return pixels.slide_pixels(SharedSlide([Mock()]), "s", tiles, len(image), workers=2)


def test_a_deleted_file_is_an_error_and_leaves_no_store(patches: Config, tmp_path: Path) -> None:
    (tmp_path / "t2.png").unlink()
    with pytest.raises(StainsslError, match=r"t2: .*t2\.png does not exist.*quarantine"):
        run_stage("pixels", patches, "c", "all-0000")
    assert not _store(patches).exists()


def test_a_deleted_file_that_may_be_missing_is_left_out(
    patches: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t2.png").unlink()
    slides = patches.slides.model_copy(update={"on_missing": "quarantine"})
    run_stage("pixels", patches.model_copy(update={"slides": slides}), "c", "all-0000")
    assert open_pixels(_store(patches)).slide_id == ["t0", "t1", "t3", "t4"]
    assert "t2: left out: missing" in caplog.text


@pytest.mark.parametrize("on_missing", ["error", "quarantine"])
def test_a_mount_that_is_gone_is_no_missing_slide(
    patches: Config, tmp_path: Path, on_missing: str
) -> None:
    job = BUILDERS["pixels"](patches, "c", "all-0000")
    may_miss = on_missing == "quarantine"
    moved = dataclasses.replace(job, root=tmp_path / "mount", may_miss=may_miss)
    (tmp_path / "t2.png").unlink()
    with pytest.raises(OSError, match="is its disk mounted"):
        pixels.run(moved)
    assert not _store(patches).exists()


def test_a_missing_temporary_folder_is_no_missing_slide(
    patches: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stainssl.stores.pixels.SPOOL_BYTES", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="gone"):
        run_stage("pixels", patches, "c", "all-0000")


def test_a_slide_that_was_replaced_by_an_older_one_is_left_out(
    patches: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t2.png"
    Image.fromarray(np.full((SIZE, SIZE, 3), 200, np.uint8)).save(path)
    os.utime(path, (1e9, 1e9))
    run_stage("pixels", patches, "c", "all-0000")
    assert open_pixels(_store(patches)).slide_id == ["t0", "t1", "t3", "t4"]
    assert "t2: left out: changed" in caplog.text
