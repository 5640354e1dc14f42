"""The benchmark on AMi-Br runs on its miniature, resumes, and writes its tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from benchmarks import evidence_amibr, evidence_predictions, evidence_table


@pytest.fixture(scope="module")
def work(releases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("evidence")
    encoders = ["color=color", "random=random:test_resnet", "red=reinhard+random:test_resnet"]
    arguments = ["--root", str(releases["amibr"]), "--work", str(work), "--input-size", "32"]
    evidence_amibr.main(["measure", *arguments, "--encoder", *encoders])
    return work


def test_all_cases_of_the_left_out_site_are_tested_and_none_is_trained_on(
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


def test_embeddings_of_training_sites_do_not_depend_on_the_test_site(
    releases: dict[str, Path],
) -> None:
    sheet, images = evidence_amibr.read_tiles(releases["amibr"], None)
    training = (sheet["site"] != "midog-xr").to_numpy()
    other = images.copy()
    other[~training] = 255 - other[~training] // 2
    source = "reinhard+random:test_resnet"
    one, two = (evidence_amibr.Embedder(source, i, 32)("s", training) for i in (images, other))
    np.testing.assert_allclose(one[training], two[training], rtol=1e-4, atol=1e-6)
    assert not np.allclose(one[~training], two[~training], rtol=1e-2)


def test_the_published_reference_does_not_depend_on_the_training_tiles(
    releases: dict[str, Path],
) -> None:
    sheet, images = evidence_amibr.read_tiles(releases["amibr"], None)
    source = "macenko-reference+random:test_resnet"
    half = np.arange(len(sheet)) % 2 == 0
    one = evidence_amibr.Embedder(source, images, 32)("s", half)
    np.testing.assert_array_equal(one, evidence_amibr.Embedder(source, images, 32)("t", ~half))
    plain = evidence_amibr.Embedder("random:test_resnet", images, 32)("s", half)
    assert not np.allclose(one, plain, rtol=1e-2)


def test_tiles_without_detail_are_flat_where_only_pixels_differed() -> None:
    fine = np.indices((32, 32)).sum(0) % 2 * 200
    coarse = np.repeat(np.indices((2, 2)).sum(0) % 2 * 200, 16, 0).repeat(16, 1)
    images = np.stack([np.stack([x] * 3, -1).astype(np.uint8) for x in (fine, coarse)])
    found = evidence_amibr.without_detail(images, 16)
    assert found.shape == images.shape
    np.testing.assert_allclose(found[0], 100, atol=1)
    np.testing.assert_allclose(found[1][2:14, 2:14], 0, atol=2)


def test_an_encoder_can_be_given_tiles_without_detail(releases: dict[str, Path]) -> None:
    _, images = evidence_amibr.read_tiles(releases["amibr"], None)
    everywhere, side = np.ones(len(images), bool), images.shape[1] // 2
    source = f"detail-{side}+random:test_resnet"
    found = evidence_amibr.Embedder(source, images, 32)("s", everywhere)
    reduced = evidence_amibr.without_detail(images, side)
    plain = evidence_amibr.Embedder("random:test_resnet", reduced, 32)("s", everywhere)
    np.testing.assert_array_equal(found, plain)


def test_a_finished_run_is_not_repeated(work: Path, releases: dict[str, Path]) -> None:
    paths = sorted((work / "runs").glob("*.parquet"))
    before = [path.stat().st_mtime_ns for path in paths]
    arguments = ["--root", str(releases["amibr"]), "--work", str(work), "--input-size", "32"]
    evidence_amibr.main(["measure", *arguments, "--encoder", "color=color"])
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_the_threshold_maximizes_balanced_accuracy() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    p = np.clip(rng.normal(0.3 + 0.2 * y, 0.2), 0, 1)
    best = evidence_amibr.best_threshold(y, p)
    reached = balanced_accuracy_score(y, p >= best)
    assert reached >= max(balanced_accuracy_score(y, p >= cut) for cut in np.unique(p)) - 1e-12


def test_the_record_compares_finished_encoders_and_lists_the_others(
    work: Path, tmp_path: Path
) -> None:
    runs = evidence_amibr.finished(work)
    described = {p.stem: json.loads(p.read_text()) for p in (work / "runs").glob("*.json")}
    runs["red"].pop("midog-xr")
    result = evidence_table.record(runs, described, 200)
    assert set(result["encoders"]) == {"color", "random"}
    assert result["unfinished"] == ["red"]
    mean = result["encoders"]["color"]["mean"]["auroc"]["value"]
    sites = result["encoders"]["color"]["sites"]["auroc"]
    assert mean == pytest.approx(np.mean([one["value"] for one in sites.values()]), abs=1e-3)
    (pair,) = result["differences"]["auroc"]
    other = result["encoders"]["random"]["mean"]["auroc"]["value"]
    assert pair["value"] == pytest.approx(mean - other, abs=1e-3)
    assert "`random`" in evidence_table.section(result)


def _table(work: Path, releases: dict[str, Path], result: Path) -> dict:
    arguments = ["--root", str(releases["amibr"]), "--work", str(work)]
    evidence_amibr.main(["table", *arguments, "--json", str(result), "--resamples", "200"])
    return json.loads(result.read_text())


def test_encoders_with_stored_predictions_are_compared_with_later_ones(
    work: Path, releases: dict[str, Path], tmp_path: Path
) -> None:
    whole = _table(work, releases, tmp_path / "whole.json")
    first, later = tmp_path / "first", tmp_path / "later"
    for folder, names in ((first, ["color", "red"]), (later, ["random"])):
        (folder / "runs").mkdir(parents=True)
        for path in (work / "runs").iterdir():
            if path.stem.split("@")[0] in names:
                (folder / "runs" / path.name).write_bytes(path.read_bytes())
    assert set(_table(first, releases, tmp_path / "parts.json")["encoders"]) == {"color", "red"}
    assert _table(later, releases, tmp_path / "parts.json") == whole
    columns = set(pd.read_parquet(tmp_path / "parts.parquet").columns)
    assert columns == {
        f"{n}{end}" for n in ("color", "random", "red") for end in ("", " threshold")
    }


def test_predictions_are_stored_and_read_back_with_the_sheet(
    work: Path, releases: dict[str, Path], tmp_path: Path
) -> None:
    runs = {"color": evidence_amibr.finished(work)["color"]}
    evidence_predictions.write(tmp_path / "p.parquet", runs, {"color": {"source": "color"}})
    sheet = evidence_amibr.read_sheet(releases["amibr"])
    found, described = evidence_predictions.read(tmp_path / "p.parquet", sheet, "atypical")
    assert described == {"color": {"source": "color"}}
    for site, rows in runs["color"].items():
        one = found["color"][site].set_index("slide_id").loc[rows["slide_id"]]
        np.testing.assert_array_equal(one["y"], rows["y"])
        np.testing.assert_allclose(one["p_1"], rows["p_1"], atol=1e-6)
        np.testing.assert_array_equal(one["patient_id"], rows["patient_id"])
