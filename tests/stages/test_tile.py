"""`tile`: every slide ends with tiles or a status; failures of the machine end the job."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from matplotlib.figure import Figure
from PIL import Image

from stainssl.config import Config, parse
from stainssl.errors import StainsslError
from stainssl.figures import slides as slide_figures
from stainssl.figures.slides import MAX_PICTURES, tissue_overview
from stainssl.slides import errors
from stainssl.slides.errors import translate_errors
from stainssl.slides.readers.tiff import TiffFile
from stainssl.slides.tiling import REASON_WORDS
from stainssl.stages import run_stage, slide, tile
from stainssl.stores.tiles import read_qc, read_tiles
from tests.slides.conftest import GLASS, stained, write_svs, write_tiff
from tests.slides.test_other_stains import EOSIN, section

PART = "all-0000"
TILING = {"mpp": 0.5, "size": 128, "mask": {"min_area_um2": 5000}}


def cohort(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> Config:
    sheet = pd.DataFrame(rows)
    if "patient_id" not in sheet:
        sheet["patient_id"] = sheet["slide_id"]
    sheet.to_csv(folder / "slides.csv", index=False)
    return parse(
        {
            "results": str(folder / "results"),
            "slides": {"part_size": 100} | keys.pop("slides", {}),
            "cohorts": {"c": {"sheet": folder / "slides.csv", **{"root": folder / "root", **keys}}},
            "tilings": {"default": TILING},
        }
    )


def outputs(config: Config) -> tuple[pd.DataFrame, pd.DataFrame, Path]:
    paths = config.paths
    qc = read_qc(paths.qc("c", PART)).set_index("slide_id")
    return (
        read_tiles(paths.tiles("c", PART)),
        qc,
        paths.previews("c", PART),
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def picture(rng: np.random.Generator) -> np.ndarray:
    return stained(rng, (512, 640))[0]


def test_each_bad_slide_has_its_status_and_affects_no_other(
    tmp_path: Path, root: Path, picture: np.ndarray
) -> None:
    write_svs(root / "good.svs", picture)
    write_svs(root / "cut.svs", picture)
    os.truncate(root / "cut.svs", int((root / "cut.svs").stat().st_size * 0.7))
    (root / "zero.svs").touch()
    (root / "text.svs").write_text("no slide")
    write_svs(root / "no-mpp.svs", picture, mpp=None)
    write_svs(root / "fine.svs", picture, mpp=0.005)
    write_svs(root / "coarse.svs", picture, mpp=500)
    write_svs(root / "glass.svs", np.full((512, 640, 3), GLASS, np.uint8))
    write_svs(root / "small.svs", picture[:100, :100], downsamples=())
    write_svs(root / "thin.svs", picture[:, :1], downsamples=())
    names = ["good", "cut", "zero", "text", "no-mpp", "fine", "coarse", "glass", "small", "thin"]
    rows = [{"slide_id": name, "path": f"{name}.svs"} for name in [*names, "gone"]]
    config = cohort(tmp_path, rows, slides={"on_missing": "quarantine"})
    run_stage("tile", config, "c", PART)
    tiles, qc, previews = outputs(config)
    assert qc["status"].to_dict() == {
        "good": "ok",
        "cut": "truncated",
        "zero": "unreadable",
        "text": "unsupported",
        "no-mpp": "no-mpp",
        "fine": "absurd-mpp",
        "coarse": "absurd-mpp",
        "glass": "empty",
        "small": "too-small",
        "thin": "too-small",
        "gone": "missing",
    }
    assert list(qc.index) == [*names, "gone"]
    bad = qc.drop(index="good")
    assert bad["detail"].str.endswith(".").all()
    assert (bad["tiles_kept"] == 0).all()
    assert set(tiles["slide_id"]) == {"good"}
    good = qc.loc["good"]
    counted = [c for c in qc if c.startswith("tiles_")]
    assert good[counted].sum() == 4 * 5
    assert good["tiles_kept"] == tiles["kept"].sum() > 4
    assert (good["mpp"], good["mpp_source"], good["vendor"]) == (0.5, "format", "aperio")
    assert json.loads(good["levels"]) == [[640, 512], [160, 128]]
    assert good["tissue_mm2"] == pytest.approx(0.5 * 512 * 640 * 0.25e-6, rel=0.1)
    assert {path.name for path in previews.iterdir()} == {"good.png", "glass.png"}
    with Image.open(previews / "good.png") as image:
        assert max(image.size) <= 1000


def test_unusual_images_are_tiled_or_have_a_status_with_details(
    tmp_path: Path, root: Path, picture: np.ndarray
) -> None:
    scale = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    alpha = np.full(picture.shape[:2], 255, np.uint8)
    alpha[:, :320] = 0  # the left half is transparent, over black
    color = np.where(alpha[..., None] > 0, picture, 0).astype(np.uint8)
    wide = np.tile(picture[200:340], (1, 157, 1))[:, :100_000]
    write_tiff(root / "deep.tif", picture.astype(np.uint16) * 257, **scale)
    write_tiff(root / "rgba.tif", np.dstack([color, alpha]), extrasamples=["unassalpha"], **scale)
    write_tiff(root / "wide.tif", wide, **scale)
    write_tiff(root / "line.tif", wide[:20], **scale)
    write_tiff(root / "grey.tif", picture[..., 1], photometric="minisblack", **scale)
    write_tiff(root / "float.tif", picture.astype(np.float32) / 255, **scale)
    write_tiff(root / "strips.tif", picture, tile=None, **scale)
    names = ["deep", "rgba", "wide", "line", "grey", "float", "strips"]
    config = cohort(tmp_path, [{"slide_id": n, "path": f"{n}.tif"} for n in names])
    run_stage("tile", config, "c", PART)
    tiles, qc, _ = outputs(config)
    assert qc["status"].to_dict() == {
        "deep": "ok",
        "rgba": "ok",
        "wide": "ok",
        "line": "too-small",
        "grey": "unsupported",
        "float": "unreadable",
        "strips": "ok",
    }
    assert (qc.loc[qc["status"] != "ok", "detail"] != "").all()
    assert "grayscale" in qc.loc["grey", "detail"]
    assert tiles.loc[tiles["slide_id"] == "rgba", "x"].min() >= 256  # transparent counts as glass
    assert (tiles["slide_id"] == "wide").sum() > 300


def _with_a_slide_that_disappears(
    root: Path, picture: np.ndarray, on_missing: str, monkeypatch: pytest.MonkeyPatch
) -> Config:
    """A cohort of slides `a` and `b`; the file of `a` is deleted when its pixels are read."""
    for name in ("a", "b"):
        write_svs(root / f"{name}.svs", picture)
    read = TiffFile.read_region

    def fail(slide: TiffFile, *words: Any) -> np.ndarray:
        if slide.path.name == "a.svs":
            slide.path.unlink(missing_ok=True)
            raise FileNotFoundError(errno.ENOENT, "gone", str(slide.path))
        return read(slide, *words)

    monkeypatch.setattr(TiffFile, "read_region", fail)
    rows = [{"slide_id": n, "path": f"{n}.svs"} for n in "ab"]
    return cohort(root.parent, rows, slides={"on_missing": on_missing})


def test_a_slide_that_disappears_while_being_read_is_missing(
    root: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _with_a_slide_that_disappears(root, picture, "quarantine", monkeypatch)
    run_stage("tile", config, "c", PART)
    _, qc, _ = outputs(config)
    assert qc["status"].tolist() == ["missing", "ok"]
    assert "while being read" in qc.loc["a", "detail"]


def test_a_slide_that_disappears_is_an_error_if_none_may_be_missing(
    root: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _with_a_slide_that_disappears(root, picture, "error", monkeypatch)
    with pytest.raises(StainsslError, match=r"a: It disappeared.*on_missing: quarantine"):
        run_stage("tile", config, "c", PART)


def test_the_pixel_size_of_the_sheet_takes_precedence(
    tmp_path: Path, root: Path, picture: np.ndarray
) -> None:
    write_svs(root / "bare.svs", picture, mpp=None)
    write_svs(root / "other.svs", picture, mpp=0.25)
    rows = [{"slide_id": n, "path": f"{n}.svs", "mpp": 0.5} for n in ("bare", "other")]
    config = cohort(tmp_path, rows)
    run_stage("tile", config, "c", PART)
    tiles, qc, _ = outputs(config)
    assert qc["mpp_source"].tolist() == ["sheet", "sheet"]
    assert qc["detail"].tolist() == ["", "Pixel size 0.5 µm/px taken from sheet; format says 0.25."]
    assert (tiles["side"] == 128).all()


def test_tiff_resolution_with_a_unit_gives_the_pixel_size(
    tmp_path: Path, root: Path, picture: np.ndarray
) -> None:
    write_tiff(root / "a.tif", picture, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    write_tiff(root / "b.tif", picture, resolution=(72, 72), resolutionunit="INCH")
    config = cohort(tmp_path, [{"slide_id": n, "path": f"{n}.tif"} for n in "ab"])
    run_stage("tile", config, "c", PART)
    _, qc, _ = outputs(config)
    assert qc["status"].tolist() == ["ok", "absurd-mpp"]
    assert qc.loc["a", "mpp_source"] == "tiff-resolution"


def test_a_part_of_only_bad_slides_has_empty_tables_with_all_columns(
    tmp_path: Path, root: Path
) -> None:
    (root / "text.svs").write_text("no slide")
    config = cohort(tmp_path, [{"slide_id": "text", "path": "text.svs"}])
    run_stage("tile", config, "c", PART)
    tiles, qc, previews = outputs(config)
    assert len(tiles) == 0
    assert tiles["kept"].dtype == bool
    assert qc["status"].tolist() == ["unsupported"]
    assert previews.is_dir()


def test_a_missing_file_is_an_error_by_default(tmp_path: Path, root: Path) -> None:
    (root / "other.svs").touch()
    config = cohort(tmp_path, [{"slide_id": "gone", "path": "gone.svs"}])
    with pytest.raises(StainsslError, match="on_missing: quarantine"):
        run_stage("tile", config, "c", PART)


@pytest.mark.parametrize("on_missing", ["error", "quarantine"])
def test_a_missing_root_ends_the_job_and_writes_nothing(
    tmp_path: Path, root: Path, picture: np.ndarray, on_missing: str
) -> None:
    write_svs(root / "good.svs", picture)
    rows = [{"slide_id": "good", "path": "good.svs"}]
    config = cohort(tmp_path, rows, slides={"on_missing": on_missing})
    shutil.rmtree(root)
    with pytest.raises(OSError, match="mounted"):
        run_stage("tile", config, "c", PART)
    root.mkdir()  # the mount point with nothing mounted
    with pytest.raises(OSError, match="mounted"):
        run_stage("tile", config, "c", PART)
    assert not [path for path in config.results.rglob("*") if path.is_file()]
    assert not config.paths.previews("c", PART).exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ENOMEM])
def test_an_error_of_the_machine_ends_the_job_and_keeps_earlier_results(
    tmp_path: Path, root: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_svs(root / "good.svs", picture)
    config = cohort(tmp_path, [{"slide_id": "good", "path": "good.svs"}])
    run_stage("tile", config, "c", PART)
    before = outputs(config)[0]

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(TiffFile, "read_region", fail)
    with pytest.raises((OSError, StainsslError), match=os.strerror(number)):
        run_stage("tile", config, "c", PART)
    pd.testing.assert_frame_equal(outputs(config)[0], before)


@pytest.fixture
def hanging_reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The reader of slides called `hangs.svs` does not return during the test."""
    read, release = TiffFile.read_region, threading.Event()

    def hang(slide: TiffFile, *words: Any) -> np.ndarray:
        if slide.path.name == "hangs.svs":
            with translate_errors(slide.path, "reading level 0"):
                release.wait()
        return read(slide, *words)

    monkeypatch.setattr(TiffFile, "read_region", hang)
    monkeypatch.setattr(errors, "CALL_SECONDS", 3.0)
    yield
    release.set()


@pytest.mark.usefixtures("hanging_reader")
def test_a_hanging_reader_affects_only_its_slide(
    tmp_path: Path, root: Path, picture: np.ndarray
) -> None:
    for name in ("hangs", "b"):
        write_svs(root / f"{name}.svs", picture)
    config = cohort(tmp_path, [{"slide_id": n, "path": f"{n}.svs"} for n in ("hangs", "b")])
    run_stage("tile", config, "c", PART)
    tiles, qc, _ = outputs(config)
    assert qc["status"].tolist() == ["unreadable", "ok"]
    assert "reading level 0: no answer" in qc.loc["hangs", "detail"]
    assert set(tiles["slide_id"]) == {"b"}


@pytest.mark.usefixtures("hanging_reader")
def test_the_command_slide_reports_a_hanging_reader(root: Path, picture: np.ndarray) -> None:
    path = write_svs(root / "hangs.svs", picture)
    with pytest.raises(StainsslError, match="unreadable: Given up: reading level 0: no answer"):
        list(slide.run(path))


def test_a_slide_over_max_minutes_is_given_up(
    tmp_path: Path, root: Path, picture: np.ndarray
) -> None:
    write_svs(root / "a.svs", picture)
    limit = {"max_minutes": 1e-6}
    config = cohort(tmp_path, [{"slide_id": "a", "path": "a.svs"}], slides=limit)
    run_stage("tile", config, "c", PART)
    assert outputs(config)[1].loc["a", "detail"].startswith("Given up: not done after")


@pytest.mark.usefixtures("hanging_reader")
def test_a_disk_that_does_not_respond_ends_the_job(
    tmp_path: Path, root: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_svs(root / "hangs.svs", picture)
    monkeypatch.setattr(errors, "_touch", lambda path: time.sleep(5))
    monkeypatch.setattr(errors, "DISK_SECONDS", 0.05)
    config = cohort(tmp_path, [{"slide_id": "hangs", "path": "hangs.svs"}])
    with pytest.raises(TimeoutError, match="disk does not respond"):
        run_stage("tile", config, "c", PART)


def test_a_slide_with_a_corrupt_level_is_unreadable(
    tmp_path: Path, root: Path, picture: np.ndarray
) -> None:
    path = write_svs(root / "bad.svs", picture, downsamples=(4,))
    with tifffile.TiffFile(path) as tiff:
        place, length = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    with path.open("r+b") as file:  # the whole first tile of level 0
        file.seek(place)
        file.write(b"\x5a" * length)
    config = cohort(tmp_path, [{"slide_id": "bad", "path": "bad.svs"}])
    run_stage("tile", config, "c", PART)
    _, qc, _ = outputs(config)
    assert qc.loc["bad", "status"] == "unreadable"
    assert "level 0" in qc.loc["bad", "detail"]


def test_a_slide_without_kept_tiles_is_empty_with_the_reasons(
    tmp_path: Path, root: Path, picture: np.ndarray
) -> None:
    write_svs(root / "a.svs", picture)
    config = cohort(tmp_path, [{"slide_id": "a", "path": "a.svs"}])
    strict = config.tilings["default"].model_copy(update={"min_tissue": 1.0})
    config = config.model_copy(update={"tilings": {"default": strict}})
    pale = strict.filters.model_copy(update={"min_saturation": 0.99})
    strict = strict.model_copy(update={"filters": pale})
    config = config.model_copy(update={"tilings": {"default": strict}})
    run_stage("tile", config, "c", PART)
    tiles, qc, _ = outputs(config)
    assert qc.loc["a", "status"] == "empty"
    counts = tiles["reason"].value_counts()
    words = {f"{count} {REASON_WORDS[reason]}" for reason, count in counts.items()}
    assert set(qc.loc["a", "detail"].rstrip(".").split(": ")[1].split(", ")) == words
    assert len(tiles) > 0
    assert not tiles["kept"].any()


def test_each_patch_file_is_one_tile(tmp_path: Path, root: Path, rng: np.random.Generator) -> None:
    for name, shape in (("a", (96, 96)), ("b", (60, 90))):
        image = rng.integers(150, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / f"{name}.png")
    (root / "c.png").write_text("no image")
    Image.new("RGB", (50, 50), (255, 255, 255)).save(root / "d.png")
    rows = [{"slide_id": n, "path": f"{n}.png", "mpp": 0.3 if n == "b" else None} for n in "abcd"]
    config = cohort(tmp_path, rows, kind="patches")
    run_stage("tile", config, "c", PART)
    tiles, qc, previews = outputs(config)
    assert tiles[["slide_id", "tile", "x", "y", "side"]].to_numpy().tolist() == [
        ["a", 0, 0, 0, 96],
        ["b", 0, 0, 0, 60],
        ["d", 0, 0, 0, 50],
    ]
    assert tiles["kept"].all()
    assert (tiles["tissue"] == 1).all()
    assert qc["status"].tolist() == ["ok", "ok", "unsupported", "ok"]
    assert qc["mpp_source"].tolist() == ["tiling", "sheet", "", "tiling"]
    assert qc.loc["b", "mpp"] == pytest.approx(0.3)
    assert {path.stem for path in previews.iterdir()} == {"a", "b", "d"}


def test_patches_larger_than_a_tile_report_how_they_are_scaled(
    tmp_path: Path, root: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    for name, shape in (("wide", (512, 1024)), ("tile", (128, 128))):
        image = rng.integers(150, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / f"{name}.png")
    rows = [{"slide_id": n, "path": f"{n}.png", "mpp": 0.5} for n in ("wide", "tile")]
    config = cohort(tmp_path, rows, kind="patches")
    run_stage("tile", config, "c", PART)
    qc = outputs(config)[1]
    assert "50% of the image" in qc.loc["wide", "detail"]
    assert "2 µm/px" in qc.loc["wide", "detail"]  # 512 px of 0.5 µm in a tile of 128 px
    assert qc.loc["tile", "detail"] == ""
    assert "1 of 2: as wide" in caplog.text


def test_a_patch_that_is_not_square_reports_only_the_part_used(
    tmp_path: Path, root: Path, rng: np.random.Generator
) -> None:
    image = rng.integers(150, 256, (128, 512, 3), dtype=np.uint8)
    Image.fromarray(image).save(root / "strip.png")
    rows = [{"slide_id": "strip", "path": "strip.png", "mpp": 0.5}]
    config = cohort(tmp_path, rows, kind="patches")
    run_stage("tile", config, "c", PART)
    detail = outputs(config)[1].loc["strip", "detail"]
    assert detail.startswith("One tile of 25% of the image (512×128 px). Set `patches: cut`")


def test_patches_are_cut_into_tiles_at_the_scale_of_the_tiling(
    tmp_path: Path, root: Path, rng: np.random.Generator
) -> None:
    for name, shape in (("wide", (300, 600)), ("small", (60, 60)), ("coarse", (300, 300))):
        image = rng.integers(150, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / f"{name}.png")
    rows = [
        {"slide_id": "wide", "path": "wide.png", "mpp": 0.25},
        {"slide_id": "small", "path": "small.png", "mpp": 0.25},
        {"slide_id": "coarse", "path": "coarse.png", "mpp": 2.0},
    ]
    config = cohort(tmp_path, rows, kind="patches", patches="cut")
    run_stage("tile", config, "c", PART)
    tiles, qc, _ = outputs(config)
    assert tiles[["slide_id", "tile", "x", "y", "side"]].to_numpy().tolist() == [
        ["wide", 0, 0, 0, 256],
        ["wide", 1, 256, 0, 256],
    ]
    assert tiles["kept"].all()
    assert qc["status"].to_dict() == {"wide": "ok", "small": "too-small", "coarse": "too-coarse"}


def test_the_number_of_previews_of_patches_is_bounded(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile, "MAX_PATCH_PREVIEWS", 2)
    for number in range(4):
        Image.new("RGB", (16, 16), (200, 100, 150)).save(root / f"{number}.png")
    rows = [{"slide_id": str(n), "path": f"{n}.png"} for n in range(4)]
    config = cohort(tmp_path, rows, kind="patches")
    run_stage("tile", config, "c", PART)
    assert len(list(outputs(config)[2].iterdir())) == 2


def test_the_size_of_the_overview_is_bounded(tmp_path: Path) -> None:
    Image.new("RGB", (90, 50), (200, 100, 150)).save(tmp_path / "s0.png")
    statuses = {f"s{n}": "ok" if n else "empty" for n in range(3 * MAX_PICTURES)}
    previews = {name: tmp_path / f"{name}.png" for name in statuses}
    tissue_overview(previews, statuses, tmp_path / "overview.png")
    with Image.open(tmp_path / "overview.png") as image:
        assert image.width <= 1600
        assert image.height <= 2600


def test_the_overview_leaves_out_usable_patches_without_a_preview(tmp_path: Path) -> None:
    drawn = ("p7", "p300")
    for name in drawn:
        Image.new("RGB", (90, 50), (200, 100, 150)).save(tmp_path / f"{name}.png")
    statuses = {f"p{n}": "unreadable" if n == 400 else "ok" for n in range(500)}
    previews = {name: tmp_path / f"{name}.png" for name in statuses}
    shown: list[str] = []

    def seen(pictures: dict[str, np.ndarray | None], _: object) -> Figure:
        shown.extend(pictures)
        return Figure()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slide_figures, "overview", seen)
        tissue_overview(previews, statuses, tmp_path / "overview.png")
    assert shown == ["p7", "p300", "p400"]


def test_statuses_of_real_slides(tmp_path: Path, real_data: Path) -> None:
    files = {
        "cmu": ("CMU-1-Small-Region.svs", None, "ok"),
        "tcga": ("tcga-cr-7395-01a-01-ts1.svs", 0.25, "ok"),
        "tcga-no-mpp": ("tcga-cr-7395-01a-01-ts1.svs", None, "no-mpp"),
        "dicom": ("boxes-dicom/boxes_0.dcm", None, "too-small"),
        "boxes": ("boxes.tiff", None, "absurd-mpp"),
        "unreadable": ("unreadable.svs", None, "unreadable"),
        "unopenable": ("unopenable.tiff", None, "unsupported"),
        "broken": ("broken.svs", None, "unsupported"),
        "fluorescence": ("fluorescence-tritc.ndpi", None, "not-brightfield"),
    }
    rows = [{"slide_id": n, "path": path, "mpp": mpp} for n, (path, mpp, _) in files.items()]
    config = cohort(tmp_path, rows, root=real_data / "slides")
    run_stage("tile", config, "c", PART)
    tiles, qc, _ = outputs(config)
    assert qc["status"].to_dict() == {name: status for name, (_, _, status) in files.items()}
    assert tiles.groupby("slide_id")["kept"].sum().min() > 30


def test_no_torch_is_imported() -> None:
    code = (
        "import sys, stainssl.stages.tile, stainssl.stages.label\n"
        "assert not {'torch', 'tiatoolbox', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_patches_with_red_and_blue_swapped_are_reported_together(
    tmp_path: Path,
    root: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(TILING, "mpp", 4)
    for order, name in ((1, "rgb"), (-1, "bgr")):
        for number in range(6):
            picture = section(EOSIN, 0.6, seed=number)[60:440, 60:440, ::order]
            Image.fromarray(np.ascontiguousarray(picture)).save(root / f"{name}{number}.png")
    for name in ("rgb", "bgr"):
        rows = [{"slide_id": f"{name}{n}", "path": f"{name}{n}.png", "mpp": 4} for n in range(6)]
        config = cohort(tmp_path, rows, kind="patches")
        run_stage("tile", config, "c", PART)
        details = outputs(config)[1]["detail"]
        assert ("(BGR)" in caplog.text) == (name == "bgr")
        assert details.str.contains("BGR").all() == (name == "bgr")


def test_a_slide_with_red_and_blue_swapped_is_ok_with_a_warning(
    tmp_path: Path,
    root: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(TILING, "mpp", 8)
    picture = section(EOSIN, 0.6)
    write_svs(root / "rgb.svs", picture, mpp=8)
    write_svs(root / "bgr.svs", np.ascontiguousarray(picture[..., ::-1]), mpp=8)
    rows = [{"slide_id": n, "path": f"{n}.svs"} for n in ("rgb", "bgr")]
    config = cohort(tmp_path, rows)
    run_stage("tile", config, "c", PART)
    qc = outputs(config)[1]
    assert list(qc["status"]) == ["ok", "ok"]
    assert list(qc["detail"].str.contains("BGR")) == [False, True]
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert ["bgr: " in record.getMessage() for record in warned] == [True]
