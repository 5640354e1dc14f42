"""`label`: annotations become tile labels, and what nobody annotated stays unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stainssl.cohort import check, read_outlines
from stainssl.config import Config, parse
from stainssl.errors import StainsslError
from stainssl.stages import label, run_stage
from stainssl.stores.tiles import read_labels, write_qc, write_tiles

PART = "all-0000"


def config_of(folder: Path, sheet: pd.DataFrame, labels: list[str], **words: Any) -> Config:
    sheet.to_csv(folder / "slides.csv", index=False)
    tasks = {name: {"level": "tile", "label": name, "cohorts": ["c"]} for name in labels}
    tasks["other"] = {"level": "patient", "label": "her2", "cohorts": ["c"]}
    return parse(
        {
            "results": str(folder / "results"),
            "slides": {"part_size": 100},
            "cohorts": {"c": {"sheet": folder / "slides.csv", "root": folder, **words}},
            "tasks": tasks,
        }
    )


def tiles_of(
    config: Config,
    rows: list[tuple[str, int, int, int, bool]],
    bounds: tuple[int, int, int, int] = (0, 0, 1000, 1000),
) -> None:
    frame = pd.DataFrame(rows, columns=["slide_id", "tile", "x", "y", "kept"])
    frame = frame.assign(side=100, tissue=1.0, sharpness=1.0, pen=0.0, saturation=0.1, od=0.1)
    frame = frame.assign(reason=["" if kept else "tissue" for kept in frame["kept"]])
    write_tiles(config.paths.tiles("c", PART), frame, {})
    qc = pd.DataFrame({"slide_id": SHEET["slide_id"], "bounds": json.dumps(bounds)})
    write_qc(config.paths.qc("c", PART), qc, {})


def labels_of(config: Config) -> pd.DataFrame:
    run_stage("label", config, "c", PART)
    return read_labels(config.paths.labels("c", PART))


def square(name: str, x0: float, x1: float) -> dict[str, Any]:
    ring = [[x0, 0], [x1, 0], [x1, 100], [x0, 100], [x0, 0]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}},
    }


SHEET = pd.DataFrame({"slide_id": ["s1", "s2", "s3"], "patient_id": list("abc"), "path": "x.svs"})
TILES = [
    ("s1", 0, 0, 0, True),
    ("s1", 1, 100, 0, True),
    ("s1", 2, 200, 0, False),
    ("s1", 3, 300, 0, True),
    ("s2", 0, 0, 0, True),
    ("s3", 5, 0, 0, True),
]


def test_half_a_tile_makes_a_label_and_no_file_makes_it_unknown(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, SHEET, ["tumor", "fat"], annotations=str(tmp_path / "{slide_id}.geojson")
    )
    tiles_of(config, TILES)
    (tmp_path / "s1.geojson").write_text(
        json.dumps([square("tumor", 0, 150), square("fat", 340, 400)])
    )
    (tmp_path / "s3.geojson").write_text("[]")  # looked at, and nothing found
    found = labels_of(config)
    assert found[["slide_id", "tile"]].to_numpy().tolist() == [
        ["s1", 0], ["s1", 1], ["s1", 3], ["s2", 0], ["s3", 5],
    ]  # fmt: skip
    assert found["tile"].dtype == np.int32
    assert found["tumor"].dtype == found["fat"].dtype == np.float32
    assert found["tumor"].tolist() == pytest.approx([1, 1, 0, np.nan, 0], nan_ok=True)
    assert found["fat"].tolist() == pytest.approx([0, 0, 1, np.nan, 0], nan_ok=True)


def test_a_slide_that_the_sheet_says_is_free_of_it_is_normal_without_a_file(tmp_path: Path) -> None:
    pattern = str(tmp_path / "{slide_id}.geojson")
    config = config_of(
        tmp_path, SHEET.assign(tumor=["1", "0", "1"]), ["tumor"], annotations=pattern
    )
    tiles_of(config, TILES)
    (tmp_path / "s1.geojson").write_text(json.dumps([square("tumor", 0, 150)]))
    assert labels_of(config)["tumor"].tolist() == pytest.approx([1, 1, 0, 0, np.nan], nan_ok=True)


def test_outlines_say_which_classes_make_a_label_and_which_are_cut_out(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, SHEET, ["tumor"], annotations=str(tmp_path / "{slide_id}.geojson"),
        outlines={"tumor": {"of": ["_0", "metastases"], "without": ["normal"]}},
    )  # fmt: skip
    tiles_of(config, TILES)
    drawn = [square("_0", 0, 150), square("metastases", 300, 400), square("normal", 0, 60)]
    (tmp_path / "s1.geojson").write_text(json.dumps(drawn))
    assert labels_of(config)["tumor"].tolist()[:3] == [0, 1, 1]


def test_slides_without_a_pattern_are_unknown(tmp_path: Path) -> None:
    config = config_of(tmp_path, SHEET, ["tumor"])
    tiles_of(config, TILES)
    assert labels_of(config)["tumor"].isna().all()


def test_a_part_without_tiles_has_a_whole_empty_table(tmp_path: Path) -> None:
    config = config_of(tmp_path, SHEET, ["tumor"], annotations="{slide_id}.geojson")
    tiles_of(config, [])
    found = labels_of(config)
    assert list(found.columns) == ["slide_id", "tile", "tumor"]
    assert len(found) == 0
    assert found["tumor"].dtype == np.float32


def test_no_tile_task_gives_no_label_column(tmp_path: Path) -> None:
    config = config_of(tmp_path, SHEET, [])
    tiles_of(config, TILES)
    assert list(labels_of(config).columns) == ["slide_id", "tile"]


def test_an_annotation_that_cannot_be_read_costs_its_slide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, SHEET, ["tumor"], annotations=str(tmp_path / "{slide_id}.geojson"))
    tiles_of(config, TILES)
    (tmp_path / "s1.geojson").write_text("{")
    (tmp_path / "s2.geojson").write_text(json.dumps([square("tumor", 0, 100)]))
    (tmp_path / "s3.geojson").write_text("[]")
    found = labels_of(config)["tumor"].tolist()
    assert found == pytest.approx([np.nan] * 3 + [1, 0], nan_ok=True)
    assert "s1: its tiles have no label" in caplog.text


def test_a_class_that_may_be_meant_makes_a_slide_unknown_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = str(tmp_path / "{slide_id}.geojson")
    config = config_of(tmp_path, SHEET, ["tumor"], annotations=pattern)
    tiles_of(config, TILES)
    for slide, word in (("s1", "Tumor"), ("s2", " tumor "), ("s3", "tumor: Positive")):
        (tmp_path / f"{slide}.geojson").write_text(json.dumps([square(word, 0, 100)]))
    found = labels_of(config)["tumor"].tolist()
    assert found == pytest.approx([np.nan] * 3 + [1, np.nan], nan_ok=True)
    assert "s1: its 'tumor' is unknown: it has areas of class 'Tumor'" in caplog.text
    said = "\n".join(check(config))
    assert "2 file(s) have areas of class 'Tumor', 'tumor: Positive'" in said
    assert "outlines: {tumor: {of: [tumor, Tumor, tumor: Positive]}}" in said
    outlines = {"tumor": {"of": ["tumor", "Tumor"], "ignore": ["tumor: Positive"]}}
    config = config_of(tmp_path, SHEET, ["tumor"], annotations=pattern, outlines=outlines)
    assert labels_of(config)["tumor"].tolist() == [1, 0, 0, 1, 0]
    assert "cohorts.c.annotations" not in "\n".join(check(config))


def test_annotations_that_make_no_label_are_told_before_any_job(tmp_path: Path) -> None:
    pattern = str(tmp_path / "{slide_id}.geojson")
    config = config_of(tmp_path, SHEET, ["tumor"], annotations=pattern)
    assert "matches no existing file for any of 3 slides" in "\n".join(check(config))
    (tmp_path / "s1.geojson").write_text(json.dumps([square("DCIS", 0, 1)]))
    assert "no area in 1 files has the class 'tumor'" in "\n".join(check(config))
    (tmp_path / "s2.geojson").write_text("{}")
    found = read_outlines(config, "c")
    assert found is not None
    said = "\n".join(found.report())
    assert "annotations: 2 files for 3 slides" in said
    assert "annotated classes: DCIS 1" in said
    assert "1 cannot be read" in said


@pytest.mark.parametrize("pattern", ["all.geojson", "{slide}.geojson", "{}.json", "{slide_id"])
@pytest.mark.parametrize("key", ["annotations", "regions"])
def test_a_pattern_names_the_slide(tmp_path: Path, key: str, pattern: str) -> None:
    with pytest.raises(StainsslError, match=f"{key}"):
        config_of(tmp_path, SHEET, ["tumor"], **{key: pattern})


def test_patches_take_the_sheets_column(tmp_path: Path) -> None:
    sheet = SHEET.assign(tumor=["1", "0", ""], subtype=["ductal", "", "lobular"])
    config = config_of(tmp_path, sheet, ["tumor", "subtype"], kind="patches")
    tiles_of(config, [("s3", 0, 0, 0, True), ("s1", 0, 0, 0, True), ("s2", 0, 0, 0, False)])
    found = labels_of(config)
    assert found["slide_id"].tolist() == ["s3", "s1"]
    assert found["tumor"].tolist() == pytest.approx([np.nan, 1], nan_ok=True)
    assert found["tumor"].dtype == np.float32
    assert found["subtype"].tolist() == ["lobular", "ductal"]


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = config_of(tmp_path, SHEET, ["tumor"], kind="patches")
    tiles_of(config, TILES)
    with pytest.raises(StainsslError, match="'tumor'"):
        run_stage("label", config, "c", PART)


def test_a_sheets_column_keeps_its_kind() -> None:
    assert label.from_sheet(pd.Series(["0", "1", ""])).dtype == np.float32
    names = label.from_sheet(pd.Series(["a", "", "2"]))
    assert names.tolist() == ["a", None, "2"]
    assert label.from_sheet(pd.Series(["", ""])).isna().all()
