"""Configs of three pages run on miniatures, from the folder to the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stainssl.config import Config, parse
from stainssl.datasets import _load_cached
from stainssl.evaluation.predictions import THRESHOLD
from stainssl.stages import run_stage
from stainssl.stores.embeddings import open_embeddings
from stainssl.stores.tiles import read_labels, read_qc, read_tiles
from tests.datasets.chain import run_all
from tests.datasets.docs import config_of, reduced, with_miniature_roots
from tests.datasets.miniature import Pictures


def config_for(
    page: str, releases: dict[str, Path], folder: Path, **tasks: dict[str, Any]
) -> Config:
    """A page's config with at most two encoders, one head, and additional tasks."""
    config: dict[str, Any] = reduced(with_miniature_roots(config_of(page), releases))
    kept = [name for name in config["encoders"] if name in ("stain-invariant", "random")]
    config["encoders"] = {name: config["encoders"][name] for name in kept}
    heads = list(config.get("heads", {}))[:1]
    config["heads"] = {name: config["heads"][name] for name in heads}
    for benchmark in config["benchmarks"].values():
        benchmark |= {"encoders": kept, "heads": heads, "robustness": False}
        benchmark["tasks"] += tasks
    config["tasks"] |= tasks
    config["results"] = str(folder / "results")
    _load_cached.cache_clear()
    return parse(config)


def table_of(config: Config, benchmark: str) -> pd.DataFrame:
    run_all(config)
    folder = config.paths.benchmark(benchmark)
    for name in ("table.md", "table.tex", "table.html", "figures/forest.png"):
        assert (folder / name).stat().st_size > 100
    return pd.read_csv(folder / "table.csv")


def test_wilds_from_the_folder_to_the_table(releases: dict[str, Path], tmp_path: Path) -> None:
    config = config_for("camelyon17-wilds", releases, tmp_path)
    table = table_of(config, "wilds")
    rows = table.query("metric == 'auroc' and group == 'all' and head == 'linear'")
    assert set(rows["encoder"]) == {"stain-invariant", "random"}
    assert np.isfinite(rows["value"]).all()
    assert (rows["patients"] == 2).all()  # of the test hospital
    folds = pd.read_csv(config.paths.folds("tumor"))
    roles = folds.groupby("role")["patient_id"].unique().map(sorted).to_dict()
    assert roles["test"] == ["patient_044", "patient_045"]
    assert roles["val"] == ["patient_024", "patient_025"]
    seen = pd.read_csv(config.paths.seen("stain-invariant"))
    assert set(seen["patient_id"]) == set(roles["train"])
    text = (config.paths.benchmark("wilds") / "table.md").read_text()
    ours, theirs = text.split("\n---\n")
    assert "ERM" not in ours
    assert "tumor: accuracy (2 patients) | tumor: AUROC (2 patients)" in ours
    assert "accuracy, test hospital 70.3 (6.4)" in theirs
    assert "probe of a frozen encoder is another protocol" in theirs
    figures = table.query("group == 'published'").set_index("encoder")["value"]
    assert figures["CORAL"] == 59.5


def test_wilds_fine_tuned_as_published(releases: dict[str, Path], tmp_path: Path) -> None:
    """Three hospitals are for training, one for choosing the epoch, and one for testing."""
    probed = config_of("camelyon17-wilds")["tasks"]["tumor"]
    tuned = probed | {"protocol": "fine-tune", "fine_tune": {"epochs": 2, "batch_size": 8}}
    config = config_for("camelyon17-wilds", releases, tmp_path, tuned=tuned)
    table = table_of(config, "wilds")
    rows = table.query("head == 'fine-tune' and metric == 'accuracy' and group == 'all'")
    assert set(rows["task"]) == {"tuned"}
    assert set(rows["encoder"]) == {"stain-invariant", "random"}
    assert rows["value"].between(0, 1).all()
    for encoder in ("stain-invariant", "random"):
        folder = config.paths.fine_tuned("tuned", encoder)
        predicted = pd.read_parquet(folder / "predictions.parquet")
        assert set(predicted["site"]) == {"hospital-2"}
        assert len(predicted) == 12  # two patients, three tiles a class
        assert predicted[THRESHOLD].nunique() == 1  # chosen on hospital 1
    text = (config.paths.benchmark("wilds") / "table.md").read_text()
    assert "| tuned | ERM | DenseNet-121 trained end to end on the labels | accuracy" in text


def test_bracs_regions_from_the_folder_to_the_table(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    config = config_for("bracs-roi", releases, tmp_path)
    table = table_of(config, "bracs")
    rows = table.query("metric == 'f1_weighted' and group == 'all'")
    assert set(rows["task"]) == {"subtype", "group"}
    assert (rows["units"] == 7).all()
    text = (config.paths.benchmark("bracs") / "table.md").read_text()
    assert "subtype: weighted F1 (" in text
    assert "group: weighted F1 (" in text
    qc = read_qc(config.paths.qc("bracs", "train-0000"))
    assert set(qc["status"]) == {"ok"}
    assert qc["mpp"].eq(0.25).all()
    assert qc["tiles_kept"].min() > 1  # a region is a bag


def test_yale_from_the_folder_to_the_table(releases: dict[str, Path], tmp_path: Path) -> None:
    config = config_for("her2-yale", releases, tmp_path)
    table = table_of(config, "yale")
    rows = table.query("metric == 'auroc' and group == 'all'").set_index(["task", "encoder"])
    assert rows.loc[("her2", "stain-invariant"), "patients"] == 10
    assert rows.loc[("response", "stain-invariant"), "patients"] == 8
    # The response cohort is external: no encoder saw it.
    assert rows.loc[("her2", "stain-invariant"), "seen"] == 10
    assert (rows.loc["response", "seen"] == 0).all()
    # Kept tiles are inside the outlines and outside the excluded areas.
    tiles = read_tiles(config.paths.tiles("her2", "all-0000"))
    kept = tiles[tiles["kept"]]
    assert (kept[["x", "y"]].max() + 32 <= 640).all()
    assert not ((kept["x"] < 64) & (kept["y"] < 64)).any()
    assert (tiles["reason"] == "region").any()


@pytest.mark.parametrize(
    ("name", "cohort"), [("camelyon17", "camelyon17"), ("pcam", "pcam"), ("bcnb", "bcnb")]
)
def test_labels_and_embeddings_of_other_formats(
    releases: dict[str, Path], pictures: Pictures, name: str, cohort: str, tmp_path: Path
) -> None:
    """Outlines of ASAP with unlabelled tiles, images in HDF5, outlines of BCNB."""
    from stainssl.cohort import parts

    config = config_for(name, releases, tmp_path)
    part = next(iter(parts(config, cohort)))
    paths = config.paths
    for verb in ("tile", "label", "pixels"):
        run_stage(verb, config, cohort, part)
    run_stage("pretrain", config, "random")
    run_stage("embed", config, cohort, "random", part)
    store = open_embeddings(paths.embeddings(cohort, "random", part))
    assert len(store) > 0
    assert store.valid.all()
    labels = read_labels(paths.labels(cohort, part))
    if name == "camelyon17":
        by_node = labels.assign(node=labels["slide_id"].str[-1]).groupby("node")["tumor"]
        assert by_node.mean()["0"] == 0  # negative: normal
        assert by_node.count()["1"] == 0  # itc without outlines: unknown
        assert 0 < by_node.mean()["3"] < 1
    if name == "pcam":
        assert labels["tumor"].tolist() == [0, 0, 1, 1] * 2
    if name == "bcnb":
        tiles = read_tiles(paths.tiles(cohort, part))
        assert tiles.loc[tiles["kept"], "x"].min() >= 64
