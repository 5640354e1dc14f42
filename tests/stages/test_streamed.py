"""Embeddings of tiles that are read from the slides, not from a pixel store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stainssl.config import Config, parse
from stainssl.demo import make
from stainssl.encoders.embedding import embed_pixels
from stainssl.errors import SlideError, StainsslError, Status
from stainssl.runtime import parallel
from stainssl.slides.scale import read_square
from stainssl.stages import embed, pixels, run_stage
from stainssl.stores.embeddings import open_embeddings
from stainssl.view.viewer_data import ViewerData
from tests.stages.trained import save_encoder

PART = ("clinic", "all-0000")
SLIDES = 3
BOTH = ("one", "two")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a sheet of three sound slides and one that cannot be opened, and two encoders."""
    folder = tmp_path_factory.mktemp("streamed")
    make(folder / "clinic", 3, {"a": SLIDES}, processes=1, side_px=768)
    sheet = pd.read_csv(folder / "clinic/slides.csv", dtype=str)[["slide_id", "patient_id", "path"]]
    (folder / "clinic/slides/bad.svs").write_bytes(b"no slide")
    bad = pd.DataFrame([["bad", "bad", "slides/bad.svs"]], columns=sheet.columns)
    pd.concat([bad, sheet.iloc[:SLIDES]]).to_csv(folder / "sheet.csv", index=False)
    for name in BOTH:
        save_encoder(folder / name / "model")
    return folder


def _config(slides: Path, results: Path, how: str) -> Config:
    cohort = {"sheet": str(slides / "sheet.csv"), "root": str(slides / "clinic"), "pixels": how}
    return parse(
        {
            "results": str(results),
            "slides": {"part_size": 100},
            "cohorts": {"clinic": cohort},
            "tilings": {"default": {"mpp": 0.5, "size": 64, "min_tissue": 0.3}},
            "encoders": {
                name: {"weights": f"local-dir:{slides / name / 'model'}"} for name in BOTH
            },
        }
    )


@pytest.fixture(scope="module")
def stored(slides: Path) -> Config:
    """The embeddings made from a pixel store."""
    config = _config(slides, slides / "stored", "store")
    for verb in ("tile", "pixels"):
        run_stage(verb, config, *PART)
    run_stage("embed", config, PART[0], list(BOTH), PART[1])
    return config


@pytest.fixture
def streamed(slides: Path, tmp_path: Path) -> Config:
    """A streamed cohort that is tiled and not yet embedded."""
    config = _config(slides, tmp_path / "results", "stream")
    run_stage("tile", config, *PART)
    return config


def _files(config: Config, name: str) -> dict[str, bytes]:
    folder = config.paths.embeddings(PART[0], name, PART[1])
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(params=[1, 3, 8])
def threads(request: pytest.FixtureRequest) -> Any:
    parallel.set_job_threads(request.param)
    yield request.param
    parallel.set_job_threads(1)


def test_a_streamed_cohort_has_the_same_embeddings_as_a_stored_one(
    stored: Config, streamed: Config, threads: int
) -> None:
    run_stage("embed", streamed, PART[0], list(BOTH), PART[1])
    for name in BOTH:
        made, expected = _files(streamed, name), _files(stored, name)
        assert made.keys() == expected.keys()
        made_of, expected_of = (
            open_embeddings(c.paths.embeddings(PART[0], name, PART[1])) for c in (streamed, stored)
        )
        assert made_of.slide_id == expected_of.slide_id
        assert len(made_of.slide_id) == SLIDES
        rows = slice(0, len(made_of))
        np.testing.assert_array_equal(made_of.read(rows), expected_of.read(rows))
        for column in ("tile", "x", "y", "start", "valid"):
            np.testing.assert_array_equal(getattr(made_of, column), getattr(expected_of, column))
    assert not streamed.paths.pixels(*PART).exists()


def test_the_viewer_shows_the_tiles_that_encoders_saw(stored: Config, streamed: Config) -> None:
    tiles = open_embeddings(stored.paths.embeddings(PART[0], "one", PART[1]))
    place = ("tile", PART[0], tiles.slide_id[0], str(tiles.tile[5]))
    assert ViewerData(streamed).picture(*place) == ViewerData(stored).picture(*place)


def test_encoders_that_do_not_fit_together_read_the_slides_again(
    stored: Config, streamed: Config, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def full(encoders: Any, tiles: Any, **words: Any) -> Any:
        blocks = embed_pixels(encoders, tiles, **words)
        yield next(blocks)
        if len(encoders) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.\nDetails")
        yield from blocks

    monkeypatch.setattr(embed, "embed_pixels", full)
    run_stage("embed", streamed, PART[0], list(BOTH), PART[1])
    for name in BOTH:
        assert _files(streamed, name).keys() == _files(stored, name).keys()
        made, expected = (
            open_embeddings(c.paths.embeddings(PART[0], name, PART[1])) for c in (streamed, stored)
        )
        np.testing.assert_array_equal(
            made.read(made.rows(made.slide_id[-1])), expected.read(expected.rows(made.slide_id[-1]))
        )
        assert len(made) == len(expected)
    (sentence,) = [r.getMessage() for r in caplog.records if "at once" in r.getMessage()]
    assert sentence.endswith(
        "each reads the tiles by itself: OutOfMemoryError: CUDA out of memory."
    )
    assert [file.name for file in streamed.results.iterdir()] == ["cohorts"]


def test_a_slide_that_can_no_longer_be_read_is_left_out(
    stored: Config, streamed: Config, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    every = open_embeddings(stored.paths.embeddings(PART[0], "one", PART[1]))
    gone = every.slide_id[1]

    def broken(slide: Any, *place: Any) -> np.ndarray:
        if gone in str(slide.path):
            raise SlideError(Status.UNREADABLE, "the disk is broken")
        return read_square(slide, *place)

    monkeypatch.setattr(pixels, "read_square", broken)
    run_stage("embed", streamed, PART[0], "one", PART[1])
    found = open_embeddings(streamed.paths.embeddings(PART[0], "one", PART[1]))
    assert found.slide_id == [name for name in every.slide_id if name != gone]
    assert f"{gone}: left out" in caplog.text
    for name in found.slide_id:
        np.testing.assert_allclose(
            found.read(found.rows(name)), every.read(every.rows(name)), rtol=2e-3, atol=2e-3
        )


def test_a_tile_that_cannot_be_read_has_no_embedding(
    stored: Config, streamed: Config, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    every = open_embeddings(stored.paths.embeddings(PART[0], "one", PART[1]))
    bad = (int(every.x[4]), int(every.y[4]))

    def broken(slide: Any, x: int, y: int, *rest: Any) -> np.ndarray:
        if every.slide_id[0] in str(slide.path) and (x, y) == bad:
            raise SlideError(Status.UNREADABLE, "the disk is broken")
        return read_square(slide, x, y, *rest)

    monkeypatch.setattr(pixels, "read_square", broken)
    run_stage("embed", streamed, PART[0], "one", PART[1])
    found = open_embeddings(streamed.paths.embeddings(PART[0], "one", PART[1]))
    assert np.flatnonzero(~found.valid).tolist() == [4]
    assert f"1 of {len(found)} tiles have no embedding" in caplog.text


def _copied(slides: Path, tmp_path: Path, **keys: Any) -> tuple[Config, Path, pd.DataFrame]:
    """A streamed cohort of copied slides, tiled: its config, folder and sheet."""
    sheet = pd.read_csv(slides / "sheet.csv", dtype=str).iloc[1:]
    root = tmp_path / "clinic"
    (root / "slides").mkdir(parents=True)
    for path in sheet["path"]:
        (root / path).write_bytes((slides / "clinic" / path).read_bytes())
    sheet.to_csv(tmp_path / "sheet.csv", index=False)
    config = _config(slides, tmp_path / "results", "stream")
    cohort = config.cohorts["clinic"]
    moved = cohort.model_copy(update={"sheet": tmp_path / "sheet.csv", "root": root})
    of_slides = config.slides.model_copy(update=keys)
    config = config.model_copy(update={"cohorts": {"clinic": moved}, "slides": of_slides})
    run_stage("tile", config, *PART)
    return config, root, sheet


def test_a_slide_replaced_after_tiling_is_left_out(
    slides: Path, tmp_path: Path, caplog: Any
) -> None:
    config, root, sheet = _copied(slides, tmp_path)
    first, second = (root / path for path in sheet["path"].iloc[:2])
    first.write_bytes(second.read_bytes())
    run_stage("embed", config, PART[0], "one", PART[1])
    found = open_embeddings(config.paths.embeddings(PART[0], "one", PART[1]))
    assert found.slide_id == list(sheet["slide_id"].iloc[1:])
    assert f"{sheet['slide_id'].iloc[0]}: left out" in caplog.text


def test_a_slide_deleted_after_tiling_is_left_out_if_it_may_be_missing(
    slides: Path, tmp_path: Path, caplog: Any
) -> None:
    config, root, sheet = _copied(slides, tmp_path, on_missing="quarantine")
    (root / sheet["path"].iloc[1]).unlink()
    run_stage("embed", config, PART[0], "one", PART[1])
    found = open_embeddings(config.paths.embeddings(PART[0], "one", PART[1]))
    assert found.slide_id == list(sheet["slide_id"].iloc[[0, 2]])
    assert f"{sheet['slide_id'].iloc[1]}: left out: missing" in caplog.text


def test_a_slide_deleted_after_tiling_is_an_error_if_none_may_be_missing(
    slides: Path, tmp_path: Path
) -> None:
    config, root, sheet = _copied(slides, tmp_path)
    (root / sheet["path"].iloc[1]).unlink()
    with pytest.raises(StainsslError, match=r"does not exist.*on_missing: quarantine"):
        run_stage("embed", config, PART[0], "one", PART[1])
    assert not config.paths.embeddings(PART[0], "one", PART[1]).exists()
