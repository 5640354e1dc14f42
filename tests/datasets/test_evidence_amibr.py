"""The measurement on AMi-Br runs on its miniature, goes on where it stopped, and fills the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from benchmarks import evidence_amibr, evidence_table


@pytest.fixture(scope="module")
def work(releases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("evidence")
    encoders = ["color=color", "random=random:test_resnet", "red=reinhard+random:test_resnet"]
    where = ["--root", str(releases["amibr"]), "--work", str(work), "--input-size", "32"]
    evidence_amibr.main(["measure", *where, "--encoder", *encoders])
    return work


def test_a_left_out_site_is_tested_whole_and_chooses_nothing(
    work: Path, releases: dict[str, Path]
) -> None:
    sheet, images = evidence_amibr.read_tiles(releases["amibr"], None)
    assert images.shape == (30, 96, 96, 3)
    folds = evidence_amibr.site_folds(sheet)
    assert len(folds) == 5
    for site, role in folds.items():
        cases = set(sheet.loc[sheet["site"] == site, "patient_id"])
        assert role["test"] == cases
        assert not cases & (role["train"] | role["val"])
        assert role["val"]
        found = pd.read_parquet(evidence_amibr.run_path(work, "random", site))
        assert set(found["patient_id"]) == cases
        assert found["threshold"].nunique() == 1


def test_vectors_of_a_site_do_not_know_its_stain(releases: dict[str, Path]) -> None:
    sheet, images = evidence_amibr.read_tiles(releases["amibr"], None)
    training = (sheet["site"] != "midog-xr").to_numpy()
    other = images.copy()
    other[~training] = 255 - other[~training] // 2
    source = "reinhard+random:test_resnet"
    one, two = (evidence_amibr.Embedder(source, i, 32)("s", training) for i in (images, other))
    np.testing.assert_allclose(one[training], two[training], rtol=1e-4, atol=1e-6)
    assert not np.allclose(one[~training], two[~training], rtol=1e-2)


def test_the_published_reference_is_chosen_by_no_tile(releases: dict[str, Path]) -> None:
    sheet, images = evidence_amibr.read_tiles(releases["amibr"], None)
    source = "macenko-reference+random:test_resnet"
    some = np.arange(len(sheet)) % 2 == 0
    one = evidence_amibr.Embedder(source, images, 32)("s", some)
    np.testing.assert_array_equal(one, evidence_amibr.Embedder(source, images, 32)("t", ~some))
    plain = evidence_amibr.Embedder("random:test_resnet", images, 32)("s", some)
    assert not np.allclose(one, plain, rtol=1e-2)


def test_a_finished_run_is_not_made_again(work: Path, releases: dict[str, Path]) -> None:
    paths = sorted((work / "runs").glob("*.parquet"))
    before = [path.stat().st_mtime_ns for path in paths]
    where = ["--root", str(releases["amibr"]), "--work", str(work), "--input-size", "32"]
    evidence_amibr.main(["measure", *where, "--encoder", "color=color"])
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_the_threshold_is_the_best_there_is() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    p = np.clip(rng.normal(0.3 + 0.2 * y, 0.2), 0, 1)
    best = evidence_amibr.best_threshold(y, p)
    reached = balanced_accuracy_score(y, p >= best)
    assert reached >= max(balanced_accuracy_score(y, p >= cut) for cut in np.unique(p)) - 1e-12


def test_the_record_compares_what_is_whole_and_names_the_rest(work: Path, tmp_path: Path) -> None:
    runs = evidence_amibr.finished(work)
    described = {p.stem: json.loads(p.read_text()) for p in (work / "runs").glob("*.json")}
    runs["red"].pop("midog-xr")
    made = evidence_table.record(runs, described, 200)
    assert set(made["encoders"]) == {"color", "random"}
    assert made["unfinished"] == ["red"]
    mean = made["encoders"]["color"]["mean"]["auroc"]["value"]
    sites = made["encoders"]["color"]["sites"]["auroc"]
    assert mean == pytest.approx(np.mean([one["value"] for one in sites.values()]), abs=1e-3)
    (pair,) = made["differences"]["auroc"]
    other = made["encoders"]["random"]["mean"]["auroc"]["value"]
    assert pair["value"] == pytest.approx(mean - other, abs=1e-3)
    assert "`random`" in evidence_table.section(made)
