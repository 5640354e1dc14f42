"""Jobs and notices of cohorts with `pixels: stream`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stainssl.config import Config, parse
from stainssl.plan.streaming import streaming_notices
from stainssl.plan.workflow import BUILDERS

PART = ("c", "all-0000")
TILE = {"level": "tile", "label": "tumor", "cohorts": ["c"]}
TRAIN = {"cohorts": ["c"], "splits": ["all"]}
SLIDE = {"level": "patient", "label": "her2", "cohorts": ["c"]}


def _config(folder: Path, pixels: str = "stream", path: str = "a.svs", **keys: Any) -> Config:
    sheet = folder / "c.csv"
    sheet.write_text(f"slide_id,patient_id,path,her2\na,p,{path},1\nb,q,b.svs,0\n")
    cohort = {"sheet": str(sheet), "root": str(folder), "pixels": pixels}
    encoders = {"given": {"weights": "resnet18"}}
    return parse({"cohorts": {"c": cohort}, "encoders": encoders, **keys})


def test_a_streamed_job_reads_tables_and_slides_but_no_pixel_store(tmp_path: Path) -> None:
    stored = BUILDERS["embed"](_config(tmp_path, "store"), "c", "given", "all-0000")
    config = _config(tmp_path)
    streamed = BUILDERS["embed"](config, "c", "given", "all-0000")
    paths = config.paths
    assert stored.inputs()["pixels"] == [str(paths.pixels(*PART))]
    assert streamed.inputs()["pixels"] == []
    assert streamed.inputs()["tiles"] == [str(paths.tiles(*PART))]
    assert streamed.inputs()["qc"] == [str(paths.qc(*PART))]
    assert stored.outputs() == streamed.outputs()


def test_a_streamed_job_depends_on_the_settings_of_the_tiles(tmp_path: Path) -> None:
    def param(**keys: Any) -> str:
        return BUILDERS["embed"](_config(tmp_path, **keys), "c", "given", "all-0000").param()

    tilings = {"default": {"size": 128}}
    assert param(path="moved.svs") != param()
    assert param(tilings=tilings) != param()
    assert param(pixels="store", path="moved.svs") == param(pixels="store")


def test_no_notice_if_nothing_reads_stored_tiles(tmp_path: Path) -> None:
    tasks = {"tumor": TILE, "her2": SLIDE}
    bench = {"tasks": ["her2"], "encoders": ["given"], "robustness": False}
    config = _config(tmp_path, tasks=tasks, benchmarks={"b": bench})
    assert streaming_notices(config) == []


@pytest.mark.parametrize(
    ("keys", "reader"),
    [
        (
            {"encoders": {"si": {"method": "simclr", "train": TRAIN}}},
            "the pretraining of encoders.si",
        ),
        (
            {
                "encoders": {
                    "g": {
                        "weights": "resnet18",
                        "preprocess": True,
                        "train": TRAIN,
                    }
                }
            },
            "the stain target of encoders.g",
        ),
        (
            {"tasks": {"t": SLIDE}, "benchmarks": {"b": {"tasks": ["t"], "encoders": ["given"]}}},
            "the robustness of encoders.given",
        ),
        (
            {
                "tasks": {"t": {**TILE, "protocol": "fine-tune"}},
                "benchmarks": {"b": {"tasks": ["t"], "encoders": ["given"], "robustness": False}},
            },
            "the fine-tuning of tasks.t",
        ),
    ],
    ids=["pretrain", "target", "robustness", "fine-tune"],
)
def test_a_notice_names_what_needs_stored_tiles(
    tmp_path: Path, keys: dict[str, Any], reader: str
) -> None:
    (sentence,) = streaming_notices(_config(tmp_path, **keys))
    assert "cohorts.c has pixels: stream, but its tiles are also stored" in sentence
    assert reader in sentence
    assert streaming_notices(_config(tmp_path, "store", **keys)) == []


def test_the_notice_lists_the_encoders_of_each_kind_of_job_once(tmp_path: Path) -> None:
    encoders = {
        "a": {"method": "simclr", "train": TRAIN, "seeds": [0, 1]},
        "b": {"method": "simclr", "train": TRAIN},
        "given": {"weights": "resnet18"},
    }
    bench = {"tasks": ["t"], "encoders": ["a", "given"]}
    keys: dict[str, Any] = {"tasks": {"t": SLIDE}, "benchmarks": {"b": bench}}
    (sentence,) = streaming_notices(_config(tmp_path, encoders=encoders, **keys))
    assert (
        "for the pretraining of encoders.a, encoders.b; the robustness of encoders.a,"
        " encoders.given. With" in sentence
    )


def test_the_notice_tells_whether_the_stored_tiles_are_removed(tmp_path: Path) -> None:
    encoders = {"si": {"method": "simclr", "train": TRAIN}}
    (kept,) = streaming_notices(_config(tmp_path, encoders=encoders))
    assert kept.endswith("With slides.keep_pixels: false they are removed afterwards.")
    slides = {"keep_pixels": False}
    (removed,) = streaming_notices(_config(tmp_path, encoders=encoders, slides=slides))
    assert removed.endswith("for the pretraining of encoders.si. They are removed afterwards.")


def test_no_notice_for_a_frozen_encoder(tmp_path: Path) -> None:
    method = {"method": "stain-invariant", "train": TRAIN}
    trained = {**method, "target": {"policy": "cohort"}}
    assert streaming_notices(_config(tmp_path, encoders={"si": trained}))
    assert not streaming_notices(_config(tmp_path, encoders={"si": {**trained, "frozen": True}}))
