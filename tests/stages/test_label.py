"""`label`: annotations become tile labels; tiles of slides without annotations are unknown."""

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


def config_of(folder: Path, sheet: pd.DataFrame, labels: list[str], **keys: Any) -> Config:
    sheet.to_csv(folder / "slides.csv", index=False)
    tasks = {name: {"level": "tile", "label": name, "cohorts": ["c"]} for name in labels}
    tasks["other"] = {"level": "patient", "label": "her2", "cohorts": ["c"]}
    return parse(
        {
            "results": str(folder / "results"),
            "slides": {"part_size": 100},
            "cohorts": {"c": {"sheet": folder / "slides.csv", "root": folder, **keys}},
            "tasks": tasks,
        }
    )


def write_part(
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


def run_label(config: Config) -> pd.DataFrame:
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


def test_half_a_tile_is_positive_and_slides_without_a_file_are_unknown(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, SHEET, ["tumor", "fat"], annotations=str(tmp_path / "{slide_id}.geojson")
    )
    write_part(config, TILES)
    (tmp_path / "s1.geojson").write_text(
        json.dumps([square("tumor", 0, 150), square("fat", 340, 400)])
    )
    (tmp_path / "s3.geojson").write_text("[]")  # annotated, with no areas
    found = run_label(config)
    assert found[["slide_id", "tile"]].to_numpy().tolist() == [
        ["s1", 0], ["s1", 1], ["s1", 3], ["s2", 0], ["s3", 5],
    ]  # fmt: skip
    assert found["tile"].dtype == np.int32
    assert found["tumor"].dtype == found["fat"].dtype == np.float32
    assert found["tumor"].tolist() == pytest.approx([1, 1, 0, np.nan, 0], nan_ok=True)
    assert found["fat"].tolist() == pytest.approx([0, 0, 1, np.nan, 0], nan_ok=True)


def test_slides_negative_in_the_sheet_need_no_annotation_file(tmp_path: Path) -> None:
    pattern = str(tmp_path / "{slide_id}.geojson")
    config = config_of(
        tmp_path, SHEET.assign(tumor=["1", "0", "1"]), ["tumor"], annotations=pattern
    )
    write_part(config, TILES)
    (tmp_path / "s1.geojson").write_text(json.dumps([square("tumor", 0, 150)]))
    assert run_label(config)["tumor"].tolist() == pytest.approx([1, 1, 0, 0, np.nan], nan_ok=True)


def test_outlines_choose_the_classes_of_a_label_and_those_cut_out(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, SHEET, ["tumor"], annotations=str(tmp_path / "{slide_id}.geojson"),
        outlines={"tumor": {"of": ["_0", "metastases"], "without": ["normal"]}},
    )  # fmt: skip
    write_part(config, TILES)
    drawn = [square("_0", 0, 150), square("metastases", 300, 400), square("normal", 0, 60)]
    (tmp_path / "s1.geojson").write_text(json.dumps(drawn))
    assert run_label(config)["tumor"].tolist()[:3] == [0, 1, 1]


def test_without_an_annotations_pattern_labels_are_unknown(tmp_path: Path) -> None:
    config = config_of(tmp_path, SHEET, ["tumor"])
    write_part(config, TILES)
    assert run_label(config)["tumor"].isna().all()


def test_a_part_without_tiles_has_an_empty_table_with_all_columns(tmp_path: Path) -> None:
    config = config_of(tmp_path, SHEET, ["tumor"], annotations="{slide_id}.geojson")
    write_part(config, [])
    found = run_label(config)
    assert list(found.columns) == ["slide_id", "tile", "tumor"]
    assert len(found) == 0
    assert found["tumor"].dtype == np.float32


def test_without_a_tile_task_there_is_no_label_column(tmp_path: Path) -> None:
    config = config_of(tmp_path, SHEET, [])
    write_part(config, TILES)
    assert list(run_label(config).columns) == ["slide_id", "tile"]


def test_an_unreadable_annotation_file_affects_only_its_slide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, SHEET, ["tumor"], annotations=str(tmp_path / "{slide_id}.geojson"))
    write_part(config, TILES)
    (tmp_path / "s1.geojson").write_text("{")
    (tmp_path / "s2.geojson").write_text(json.dumps([square("tumor", 0, 100)]))
    (tmp_path / "s3.geojson").write_text("[]")
    found = run_label(config)["tumor"].tolist()
    assert found == pytest.approx([np.nan] * 3 + [1, 0], nan_ok=True)
    assert "s1: its tiles have no label" in caplog.text


def test_a_similar_class_name_makes_the_slide_unknown_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = str(tmp_path / "{slide_id}.geojson")
    config = config_of(tmp_path, SHEET, ["tumor"], annotations=pattern)
    write_part(config, TILES)
    for slide, name in (("s1", "Tumor"), ("s2", " tumor "), ("s3", "tumor: Positive")):
        (tmp_path / f"{slide}.geojson").write_text(json.dumps([square(name, 0, 100)]))
    found = run_label(config)["tumor"].tolist()
    assert found == pytest.approx([np.nan] * 3 + [1, np.nan], nan_ok=True)
    assert "s1: its 'tumor' is unknown: it has areas of class 'Tumor'" in caplog.text
    problems = "\n".join(check(config))
    assert "2 file(s) have areas of class 'Tumor', 'tumor: Positive'" in problems
    assert "outlines: {tumor: {of: [tumor, Tumor, tumor: Positive]}}" in problems
    outlines = {"tumor": {"of": ["tumor", "Tumor"], "ignore": ["tumor: Positive"]}}
    config = config_of(tmp_path, SHEET, ["tumor"], annotations=pattern, outlines=outlines)
    assert run_label(config)["tumor"].tolist() == [1, 0, 0, 1, 0]
    assert "cohorts.c.annotations" not in "\n".join(check(config))


def test_check_reports_annotations_without_the_label(tmp_path: Path) -> None:
    pattern = str(tmp_path / "{slide_id}.geojson")
    config = config_of(tmp_path, SHEET, ["tumor"], annotations=pattern)
    assert "matches no existing file for any of 3 slides" in "\n".join(check(config))
    (tmp_path / "s1.geojson").write_text(json.dumps([square("DCIS", 0, 1)]))
    assert "no area in 1 files has the class 'tumor'" in "\n".join(check(config))
    (tmp_path / "s2.geojson").write_text("{}")
    found = read_outlines(config, "c")
    assert found is not None
    report = "\n".join(found.report())
    assert "annotations: 2 files for 3 slides" in report
    assert "annotated classes: DCIS 1" in report
    assert "1 cannot be read" in report


@pytest.mark.parametrize("pattern", ["all.geojson", "{slide}.geojson", "{}.json", "{slide_id"])
@pytest.mark.parametrize("key", ["annotations", "regions"])
def test_a_pattern_must_contain_slide_id(tmp_path: Path, key: str, pattern: str) -> None:
    with pytest.raises(StainsslError, match=f"{key}"):
        config_of(tmp_path, SHEET, ["tumor"], **{key: pattern})


def test_patches_are_labelled_by_a_column_of_the_sheet(tmp_path: Path) -> None:
    sheet = SHEET.assign(tumor=["1", "0", ""], subtype=["ductal", "", "lobular"])
    config = config_of(tmp_path, sheet, ["tumor", "subtype"], kind="patches")
    write_part(config, [("s3", 0, 0, 0, True), ("s1", 0, 0, 0, True), ("s2", 0, 0, 0, False)])
    found = run_label(config)
    assert found["slide_id"].tolist() == ["s3", "s1"]
    assert found["tumor"].tolist() == pytest.approx([np.nan, 1], nan_ok=True)
    assert found["tumor"].dtype == np.float32
    assert found["subtype"].tolist() == ["lobular", "ductal"]


def test_a_missing_label_column_is_named(tmp_path: Path) -> None:
    config = config_of(tmp_path, SHEET, ["tumor"], kind="patches")
    write_part(config, TILES)
    with pytest.raises(StainsslError, match="'tumor'"):
        run_stage("label", config, "c", PART)


def test_type_of_labels_from_the_sheet() -> None:
    assert label.from_sheet(pd.Series(["0", "1", ""])).dtype == np.float32
    names = label.from_sheet(pd.Series(["a", "", "2"]))
    assert names.tolist() == ["a", None, "2"]
    assert label.from_sheet(pd.Series(["", ""])).isna().all()
