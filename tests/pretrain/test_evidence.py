"""The evidence protocol on a miniature: its figures are what they say; it goes on where it was."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks import robustness_real as evidence
from stainssl.config import parse
from tests.pretrain.world import BACKBONE, images

ENCODERS = ["random", "simclr", "stain-invariant"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Patches of six patients with a label and two photographs each; centres of one tile each."""
    folder = tmp_path_factory.mktemp("evidence")
    rows = []
    for patient in range(6):
        for number, image in enumerate(images(6, "ab"[patient % 2], patient)):
            name = f"p{patient}-{number}"
            cv2.imwrite(str(folder / f"{name}.png"), image[..., ::-1])
            rows.append({"slide_id": name, "patient_id": f"p{patient}", "path": f"{name}.png",
                         "photo": f"p{patient}-{number // 3}", "label": number % 2})  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "slides.csv", index=False)
    config = {
        "cohorts": {"mine": {"sheet": str(folder / "slides.csv"), "root": str(folder),
                             "kind": "patches"}},
        "tilings": {"default": {"mpp": 1.0, "size": 48, "min_tissue": 0.0}},
        "tasks": {"t": {"level": "tile", "label": "label", "cohorts": ["mine"]}},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    _centres(folder / "camelyon17-centres")
    return folder


def _centres(folder):
    folder.mkdir()
    rows = []
    for centre in range(5):
        for index in range(3):
            path = f"centre_{centre}_{index}.png"
            tile = images(1, "ab"[centre % 2], 10 * centre + index)[0]
            large = cv2.resize(tile, (128, 128), interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(folder / path), large[..., ::-1])
            rows.append({"path": path, "centre": centre})
    pd.DataFrame(rows).to_csv(folder / "tiles.csv", index=False)


@pytest.fixture(scope="module")
def words(world):
    given = {"cohort": "mine", "label": "label", "work": world / "work", "real-data": world,
             "backbone": BACKBONE, "input-size": 32, "epochs": 1, "folds": 2,
             "seeds": 0}  # fmt: skip
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [str(world / "config.yaml"), *options, "--encoders", *ENCODERS]


@pytest.fixture(scope="module")
def summary(words):
    return evidence.main(words)


def test_every_encoder_has_every_figure(summary):
    wanted = {"top1", "top10", "photo_map", "margin", "stain_hit", "centre_hit", "effective_rank",
              "alignment", "uniformity", "auroc: as it is", "auroc: worst stain",
              "auroc: confounded", "auroc: dose 0.4"}  # fmt: skip
    for name in ENCODERS:
        mine = summary[summary["encoder"] == name]
        assert wanted <= set(mine["metric"])
        assert mine["value"].notna().all()
    patients = summary[summary["metric"] == "top1"]["patients"]
    assert (patients == 6).all()  # each is tested once


def test_simclr_less_itself_is_nothing(summary):
    mine = summary[(summary["encoder"] == "simclr") & (summary["patients"] > 0)]
    assert (mine["minus_simclr"] == 0).all()
    bounded = summary[summary["metric"].isin(["top1", "top10", "photo_map", "stain_hit"])]
    assert bounded["value"].between(0, 1).all() and (bounded["low"] <= bounded["high"]).all()


def test_it_goes_on_where_it_was(words, summary, world):
    times = {p: p.stat().st_mtime_ns for p in (world / "work" / "values").iterdir()}
    (gone := next(iter(times))).unlink()
    again = evidence.main(words)
    assert {p for p in times if p.stat().st_mtime_ns != times[p]} == {gone}
    pd.testing.assert_frame_equal(again, summary)


def test_no_patient_is_trained_on_and_tested(world):
    config = yaml.safe_load((world / "config.yaml").read_text(encoding="utf-8"))
    config["cohorts"] = {evidence.COHORT: config["cohorts"]["mine"]}
    del config["tasks"]
    found = parse(evidence.folded(config, world, 3))
    folds = evidence.fold_splits(found)
    sheet = evidence.read_sheet(found, evidence.COHORT)
    assert sorted(test for _, test in folds) == ["f0", "f1", "f2"]
    for train, test in folds:
        seen = set(sheet.loc[sheet["split"].isin(train), "patient_id"])
        tested = set(sheet.loc[sheet["split"] == test, "patient_id"])
        assert not seen & tested and len(seen | tested) == 6


def test_average_precision_is_that_of_scikit_learn(rng):
    from sklearn.metrics import average_precision_score

    score = rng.random((12, 12)).astype(np.float32)
    relevant = (rng.random((12, 12)) < 0.3) & ~np.eye(12, dtype=bool)
    found = evidence.average_precision(score, relevant)
    for i in range(12):
        others = np.arange(12) != i
        if relevant[i].any():
            wanted = average_precision_score(relevant[i][others], score[i][others])
            assert found[i] == pytest.approx(wanted)
        else:
            assert np.isnan(found[i])


def test_a_collapsed_encoder_finds_nothing_and_has_no_margin():
    same = np.ones((8, 4), np.float32)
    photo = np.repeat(["x", "y"], 4)
    values = evidence.retrieval_values(same, same, photo)
    assert values["top1"].max() == 0
    assert values["margin"] == pytest.approx(0, abs=1e-6)
    ideal = evidence.retrieval_values(np.eye(8), np.eye(8), photo)
    assert ideal["top1"].min() == 1


def test_the_two_cohorts_of_ours_are_configs(real_data, tmp_path):
    tiles = parse(evidence.folded(evidence.tiles_cohort(real_data, tmp_path), tmp_path, 6))
    sheet = evidence.read_sheet(tiles, evidence.COHORT)
    assert len(sheet) == 2130 and sheet["patient_id"].nunique() == 18
    assert sheet.groupby("patient_id")["split"].nunique().max() == 1
    synthetic = parse(evidence.synthetic_cohort(tmp_path, 200))
    assert evidence.fold_splits(synthetic) == [(["train"], "test")]
