"""Exported files have each tool's layout, and importing them gives back the same embeddings.

The tools' own readers open the same files in `benchmarks/export_readers.py`.
"""

from __future__ import annotations

import json
from importlib import import_module

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
import torch
import zarr

from stainssl.config import Encoder
from stainssl.errors import StainsslError
from stainssl.stages import export, run_stage
from stainssl.stores.embeddings import open_embeddings
from stainssl.stores.tables import read_table

pytestmark = pytest.mark.xdist_group("trained")

SLIDE = "a-001-1"


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The whole cohort exported for each tool, in a folder of the tool's name."""
    folder = tmp_path_factory.mktemp("export")
    for tool in export.FORMATS:
        export.run(trained.config, tool, "clinic", "enc", folder / tool)
    return folder


def _bag(trained):
    store = open_embeddings(trained.config.paths.embeddings("clinic", "enc", "train-0000"))
    rows = store.rows(SLIDE)
    return np.asarray(store.features[rows]), np.stack([store.x[rows], store.y[rows]], axis=1)


def _stems(folder, suffix):
    return {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")}


def test_every_format_has_a_file_for_each_embedded_slide(trained, exported):
    broken = {"b-002-2"}  # the demo's unreadable slide
    expected = set(trained.sheet["slide_id"])
    found = _stems(exported / "clam" / "h5_files", ".h5")
    assert expected - found <= broken | {"a-002-2"}
    assert found == _stems(exported / "clam" / "pt_files", ".pt")
    assert found == _stems(exported / "stamp" / "features", ".h5")
    assert found == _stems(exported / "spatialdata", ".zarr")
    base = exported / "trident" / "20x_64px_0px_overlap"
    assert found == _stems(base / "features_enc", ".h5") == _stems(base / "patches", "_patches.h5")


def test_clam_files(trained, exported):
    features, xy = _bag(trained)
    with h5py.File(exported / "clam" / "h5_files" / f"{SLIDE}.h5") as h5:
        assert h5["features"].dtype == np.float32
        assert h5["coords"].dtype == np.int32
        np.testing.assert_array_equal(h5["features"][:], features.astype(np.float32))
        np.testing.assert_array_equal(h5["coords"][:], xy)
    tensor = torch.load(exported / "clam" / "pt_files" / f"{SLIDE}.pt")
    np.testing.assert_array_equal(tensor.numpy(), features.astype(np.float32))
    with h5py.File(exported / "clam" / "patches" / f"{SLIDE}.h5") as h5:
        assert h5["coords"].attrs["patch_size"] == 64
        assert h5["coords"].attrs["patch_level"] == 0
    table = pd.read_csv(exported / "clam" / "dataset.csv")
    assert list(table)[:2] == ["case_id", "slide_id"]
    assert "her2" in table


def test_trident_files(trained, exported):
    features, xy = _bag(trained)
    base = exported / "trident" / "20x_64px_0px_overlap"
    with h5py.File(base / "features_enc" / f"{SLIDE}.h5") as h5:
        np.testing.assert_array_equal(h5["features"][:], features.astype(np.float32))
        np.testing.assert_array_equal(h5["coords"][:], xy)
        attributes = dict(h5["coords"].attrs)
    assert attributes["patch_size"] == attributes["patch_size_level0"] == 64
    assert attributes["level0_magnification"] == attributes["target_magnification"] == 20
    assert (attributes["level0_width"], attributes["level0_height"]) == (512, 512)
    assert attributes["name"] == SLIDE
    assert attributes["overlap"] == 0


def test_stamp_coordinates_are_in_micrometres(trained, exported):
    features, xy = _bag(trained)
    with h5py.File(exported / "stamp" / "features" / f"{SLIDE}.h5") as h5:
        np.testing.assert_array_equal(h5["feats"][:], features)
        np.testing.assert_allclose(h5["coords"][:], xy * 0.5)
        assert h5.attrs["tile_size_um"] == 32
        assert h5.attrs["tile_size_px"] == 64
        assert h5.attrs["unit"] == "um"
        assert h5.attrs["feat_type"] == "tile"
    slides = pd.read_csv(exported / "stamp" / "slide.csv")
    clinical = pd.read_csv(exported / "stamp" / "clini.csv")
    assert f"{SLIDE}.h5" in slides["FILENAME"].tolist()
    assert clinical["PATIENT"].is_unique
    assert set(slides["PATIENT"]) == set(clinical["PATIENT"])


def test_spatialdata_files(trained, exported):
    features, xy = _bag(trained)
    path = exported / "spatialdata" / f"{SLIDE}.zarr"
    root = zarr.open_group(path, mode="r")
    assert root.attrs["spatialdata_attrs"]["version"] == "0.2"
    assert root.attrs["tile_spec"]["tiles"]["mpp"] == 0.5
    np.testing.assert_array_equal(root["tables/enc_tiles/X"][:], features.astype(np.float32))
    assert root["tables/enc_tiles"].attrs["instance_key"] == "tile_id"
    table = pq.read_table(path / "shapes" / "tiles" / "shapes.parquet")
    assert json.loads(table.schema.metadata[b"geo"])["primary_column"] == "geometry"
    bounds = shapely.bounds(shapely.from_wkb(table["geometry"].to_numpy()))
    np.testing.assert_array_equal(bounds, np.hstack([xy, xy + 64]))


def test_qupath_export_has_the_attention_of_a_task(trained, tmp_path):
    with pytest.raises(StainsslError, match="--task and --head"):
        export.run(trained.config, "qupath", "clinic", "enc", tmp_path)
    export.run(trained.config, "qupath", "clinic", "enc", tmp_path, task="slide", head="abmil",
               pictures=False)  # fmt: skip
    folder = trained.config.paths.mil("slide", "enc", "abmil")
    attention = read_table(folder / "attention.parquet", "attention")
    assert _stems(tmp_path, ".geojson") == set(attention["slide_id"])
    features = json.loads((tmp_path / f"{SLIDE}.geojson").read_text())["features"]
    rows = attention[attention["slide_id"] == SLIDE]
    ranks = [f["properties"]["measurements"]["attention"] for f in features]
    np.testing.assert_allclose(ranks, rows["attention"], atol=1e-6)
    assert {f["properties"]["objectType"] for f in features} == {"tile"}


@pytest.mark.parametrize("tool", export.FORMATS)
def test_files_of_an_earlier_export_are_reported(trained, tmp_path, caplog, tool):
    for again in (False, True):
        caplog.clear()
        export.run(trained.config, tool, "clinic", "enc", tmp_path)
        assert ("not exported now" in caplog.text) == again
        pattern = import_module(f"stainssl.export.{tool}").FILES
        files = tmp_path.glob(pattern.format(encoder="enc"))
        file = next(file for file in files if file.stem == SLIDE)
        if not again:
            file.rename(file.with_stem("gone"))
    assert f"gone{file.suffix}" in caplog.text


def test_an_unknown_tool_suggests_the_closest_name(trained, tmp_path):
    with pytest.raises(StainsslError, match="did you mean 'clam'"):
        export.run(trained.config, "clamm", "clinic", "enc", tmp_path)


def _import_config(trained, tmp_path, features):
    encoders = {"theirs": Encoder(features=features)}
    return trained.config.model_copy(update={"encoders": encoders, "results": tmp_path / "results"})


def _open_imported(config, part="train-0000"):
    return open_embeddings(config.paths.embeddings("clinic", "theirs", part))


@pytest.mark.parametrize(
    "where",
    [
        "clam:{}/clam",
        "clam:{}/clam/h5_files",
        "trident:{}/trident/20x_64px_0px_overlap/features_enc",
    ],
)
def test_importing_an_export_gives_the_same_embeddings(trained, exported, tmp_path, where):
    config = _import_config(trained, tmp_path, where.format(exported))
    run_stage("embed", config, "clinic", "theirs", "train-0000")
    store = _open_imported(config)
    features, xy = _bag(trained)
    rows = store.rows(SLIDE)
    np.testing.assert_array_equal(np.asarray(store.features[rows]), features)
    np.testing.assert_array_equal(np.stack([store.x[rows], store.y[rows]], axis=1), xy)
    assert store.valid.all()


def test_imported_pt_files_have_no_coordinates(trained, exported, tmp_path):
    config = _import_config(trained, tmp_path, f"clam:{exported}/clam/pt_files")
    run_stage("embed", config, "clinic", "theirs", "train-0000")
    store = _open_imported(config)
    assert len(store)
    assert (store.x == -1).all()


def test_a_bad_feature_file_affects_only_its_slide(exported, trained, tmp_path, caplog):
    folder = tmp_path / "features"
    folder.mkdir()
    whole = (exported / "clam" / "h5_files" / f"{SLIDE}.h5").read_bytes()
    (folder / f"{SLIDE}.h5").write_bytes(whole)
    (folder / "a-003-1.h5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(folder / "a-004-1.h5", "w") as h5:
        h5["features"], h5["coords"] = np.ones((3, 2)), np.zeros((4, 2))
    config = _import_config(trained, tmp_path, f"trident:{folder}")
    run_stage("embed", config, "clinic", "theirs", "train-0000")
    assert _open_imported(config).slide_id == [SLIDE]
    for message in ("a-003-1: left out", "a-004-1: left out", "a-001-2: left out"):
        assert message in caplog.text


def test_features_of_different_dimensions_are_refused(exported, trained, tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    for slide, width in ((SLIDE, 4), ("a-003-1", 5)):
        with h5py.File(folder / f"{slide}.h5", "w") as h5:
            h5["features"], h5["coords"] = np.ones((3, width)), np.zeros((3, 2), int)
    config = _import_config(trained, tmp_path, f"trident:{folder}")
    with pytest.raises(StainsslError, match=r"several dimensions: 4 \(a-001-1\), 5 \(a-003-1\)"):
        run_stage("embed", config, "clinic", "theirs", "train-0000")


@pytest.mark.parametrize("features", ["clam:/nowhere", "uni:/tmp", "clam"])
def test_check_reports_a_missing_feature_folder(trained, tmp_path, features):
    from stainssl.cohort import check

    config = _import_config(trained, tmp_path, features).model_copy(update={"benchmarks": {}})
    assert any("encoders.theirs.features" in problem for problem in check(config))
