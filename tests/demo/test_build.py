from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest

from stainssl.demo import make, sheet
from stainssl.demo.plan import plan

from .conftest import PATIENTS, SEED, SIDE_PX


def _hashes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(tmp_path: Path) -> None:
    patients = {"a": 1, "c": 1}
    make(tmp_path / "one", 3, patients, processes=1, side_px=512)
    make(tmp_path / "two", 3, patients, processes=2, side_px=512)
    assert _hashes(tmp_path / "one") == _hashes(tmp_path / "two")


def test_the_written_sheet_equals_the_planned_sheet(small_cohort: Path) -> None:
    frame = pd.read_csv(small_cohort / "slides.csv")
    pd.testing.assert_frame_equal(frame, sheet(SEED, PATIENTS), check_dtype=False)
    assert all((small_cohort / path).is_file() for path in frame.path)


def test_slides_open_as_aperio_with_levels_and_pixel_size(small_cohort: Path) -> None:
    for slide in plan(SEED, PATIENTS):
        if slide.fault:
            continue
        with openslide.OpenSlide(small_cohort / "slides" / f"{slide.slide_id}.svs") as opened:
            assert opened.properties["openslide.vendor"] == "aperio"
            assert opened.level_dimensions == ((SIDE_PX, SIDE_PX), (SIDE_PX // 4, SIDE_PX // 4))
            assert float(opened.properties["openslide.mpp-x"]) == 0.5
            assert opened.properties["openslide.objective-power"] == "20"
            assert "thumbnail" in opened.associated_images
            assert opened.properties["aperio.MPP"] == "0.5"


def test_levels_show_the_same_image(small_cohort: Path) -> None:
    with openslide.OpenSlide(small_cohort / "slides" / "a-001-1.svs") as slide:
        full = np.asarray(slide.read_region((0, 0), 0, (SIDE_PX, SIDE_PX)).convert("RGB"), float)
        small = np.asarray(
            slide.read_region((0, 0), 1, (SIDE_PX // 4, SIDE_PX // 4)).convert("RGB"), float
        )
    mean = full.reshape(SIDE_PX // 4, 4, SIDE_PX // 4, 4, 3).mean(axis=(1, 3))
    assert np.abs(mean - small).mean() < 6


def _faulty_slide(root: Path, fault: str) -> Path:
    slide_id = next(slide.slide_id for slide in plan(SEED, PATIENTS) if slide.fault == fault)
    return root / "slides" / f"{slide_id}.svs"


def test_the_truncated_slide_cannot_be_read(small_cohort: Path) -> None:
    path = _faulty_slide(small_cohort, "truncated")
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(path).read_region((0, 0), 0, (SIDE_PX, SIDE_PX))


def test_the_empty_slide_is_glass(small_cohort: Path) -> None:
    with openslide.OpenSlide(_faulty_slide(small_cohort, "empty")) as slide:
        image = np.asarray(slide.read_region((0, 0), 1, slide.level_dimensions[1]).convert("RGB"))
    assert (image.min(axis=-1) > 200).mean() > 0.99


def test_the_slide_without_mpp_has_no_metadata_on_its_pixel_size(small_cohort: Path) -> None:
    with openslide.OpenSlide(_faulty_slide(small_cohort, "no-mpp")) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert "openslide.mpp-x" not in slide.properties
        assert "openslide.objective-power" not in slide.properties
        assert slide.properties.get("tiff.ResolutionUnit") in (None, "none")


def test_demo_json_records_how_the_cohort_was_made(small_cohort: Path) -> None:
    record = json.loads((small_cohort / "demo.json").read_text())
    assert (record["schema"], record["seed"], record["patients"]) == (1, SEED, PATIENTS)
    assert set(record["slides"]) == set(sheet(SEED, PATIENTS).slide_id)


def test_an_error_leaves_existing_files(tmp_path: Path) -> None:
    root = tmp_path / "cohort"
    root.mkdir()
    (root / "kept").write_text("")
    with pytest.raises(ValueError, match="multiple of 256"):
        make(root, 0, {"a": 1}, side_px=100)
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]
    assert (root / "kept").exists()


def test_workers_of_a_killed_demo_do_not_keep_its_output_open(tmp_path: Path) -> None:
    # A process that reads the output (`tee`, Snakemake) would wait for the workers forever.
    code = (
        "import logging, sys; from stainssl.demo import make\n"
        "if __name__ == '__main__':\n"
        "    logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        f"    make({str(tmp_path / 'demo')!r}, 1, {{'a': 4, 'b': 4}}, 2, 512)\n"
    )
    script = tmp_path / "job.py"
    script.write_text(code)
    job = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert "1 of " in job.stdout.readline()
    job.kill()
    job.stdout.read()  # ends when no process has it open
    assert job.wait() == -9
