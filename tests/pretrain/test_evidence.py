"""The benchmark of robustness on a miniature cohort: metrics, splits and resuming."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks import robustness_measure as measure
from benchmarks import robustness_real as evidence
from benchmarks import robustness_table as table
from stainssl.config import parse
from tests.pretrain.world import BACKBONE, images

ENCODERS = ["random", "simclr", "stain-invariant"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Labelled patches of six patients with two photographs each, and tiles of five centres."""
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
def arguments(world):
    given = {"cohort": "mine", "label": "label", "work": world / "work", "real-data": world,
             "backbone": BACKBONE, "input-size": 32, "epochs": 1, "folds": 3,
             "set-aside": 1, "seeds": 0}  # fmt: skip
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [str(world / "config.yaml"), *options, "--encoders", *ENCODERS]


@pytest.fixture(scope="module")
def summary(arguments):
    return evidence.main(arguments)


def test_every_encoder_has_every_metric(summary, world):
    wanted = {"top1, worst pair", "top10, worst pair", "photo_map, worst pair",
              "margin, worst pair", "top1, od shift", "stain told", "centre told",
              "effective_rank", "alignment", "uniformity", "auroc, as it is",
              "auroc, worst stain", "auroc, confounded", "auroc, dose 0.5",
              "top1, dose 1.5", "distance, dose 1"}  # fmt: skip
    plain = summary[summary["minus"] == ""]
    for name in ENCODERS:
        mine = plain[plain["encoder"] == name]
        assert wanted <= set(mine["metric"])
        assert mine["value"].notna().all()
    patients = plain[plain["metric"] == "top1, worst pair"]["patients"]
    assert (patients == 4).all()  # two are set aside, each of the others is tested once
    tables = (world / "work" / "tables.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in tables for name in ENCODERS)
    assert all((world / "work" / f"{k}.png").stat().st_size > 10_000 for k in table.SHOWN)


def test_a_difference_is_that_of_the_metrics(summary):
    plain = summary[summary["minus"] == ""].set_index(["encoder", "metric"])["value"]
    differences = summary[summary["minus"] != ""]
    assert set(zip(differences["encoder"], differences["minus"], strict=True)) == {
        ("random", "simclr"), ("stain-invariant", "simclr"), ("stain-invariant", "random"),
    }  # fmt: skip
    for row in differences.to_dict("records"):
        wanted = plain[row["encoder"], row["metric"]] - plain[row["minus"], row["metric"]]
        assert row["value"] == pytest.approx(wanted)
        assert row["low"] <= row["high"]
    shares = plain[[m.startswith(("top", "photo_map", "stain told")) for _, m in plain.index]]
    assert shares.between(0, 1).all()


def _means(values):
    rows = [("p", pair, "top1", value, 0) for pair, value in values.items()]
    return pd.DataFrame(rows, columns=["patient", "pair", "metric", "value", "seed"])


def test_the_worst_pair_is_chosen_anew_in_every_resample():
    one = pd.concat([_means({"a": 0.2, "b": 0.6}), _means({"a": 0.8, "b": 0.2})])
    one["patient"] = ["p", "p", "q", "q"]
    sample = table.Sample(np.array(["p", "q"]), np.array([[1, 1], [2, 0], [0, 2]]))
    found = table.mean_figures(one, sample)["top1, worst pair"]
    assert found == pytest.approx([0.4, 0.2, 0.2])  # b, then a, then b


def test_encoders_trained_with_reinhard_stains_are_recognized():
    recipe = {"train": {"cohorts": ["mine"]}, "backbone": BACKBONE}
    cohorts = {"mine": {"sheet": "slides.csv"}}
    encoders = {
        name.replace(", ", "-").replace(" ", "-"): recipe | keys
        for name, keys in evidence.ENCODERS.items()
        if keys.get("method", "random") != "random" and "supervised_weight" not in keys
    }
    found = parse({"cohorts": cohorts, "encoders": encoders}).encoders
    known = {name for name, encoder in found.items() if evidence.knows_reinhard(encoder)}
    assert known == {"simclr-randstainna", "stain-invariant-drawn"}


def _tiles(seed):
    found = np.concatenate([images(4, site, seed) for site in "ab"]).transpose(0, 3, 1, 2)
    columns = {
        "patient": list("pqrspqrs"),
        "photo": list("pqrspqrs"),
        "site": "",
        "y": list("01010101"),
    }
    return measure.Tiles(np.ascontiguousarray(found), pd.DataFrame(columns))


def test_encoders_trained_with_reinhard_stains_are_tested_by_the_density_shift_only(world):
    centres = evidence.centre_images(world)
    stains = measure.stained(
        _tiles(0), _tiles(1), {n: measure.pooled_stain(x) for n, x in centres.items()}
    )

    def embed(given):
        return given.reshape(len(given), -1)[:, ::97].astype(np.float32)

    values = measure.run_values(embed, stains, centres, knows_reinhard=True)
    assert set(values.loc[values["metric"] == "top1", "pair"]) == {table.OD_PAIR}
    assert not values["metric"].str.contains("confounded|centre \\d|dose").any()
    complete = measure.run_values(embed, stains, centres, knows_reinhard=False)
    assert len(set(complete.loc[complete["metric"] == "top1", "pair"])) == 21


def test_the_distance_of_a_stain_increases_with_its_dose(world):
    centres = {n: measure.pooled_stain(x) for n, x in evidence.centre_images(world).items()}
    stains = measure.stained(_tiles(0), _tiles(1), centres)
    distance = [stains.distance[f"dose {share:g}"] for share in measure.DOSES]
    assert distance == sorted(distance)
    assert distance[0] < 0.3 * distance[-1]
    assert set(stains.farthest) <= set(centres)
    assert len(set(stains.farthest)) == 2


def test_patients_for_choosing_a_penalty_and_all_others_have_both_classes():
    patient = np.repeat([f"p{i}" for i in range(9)], 3)
    y = np.repeat([0, 0, 0, 1, 1, 1, 1, 1, 1], 3)
    val = measure.choosing(patient, y)
    assert set(patient[val]) == {"p1", "p4", "p7"}
    assert set(y[val]) == set(y[~val]) == {0, 1}


def test_a_second_run_computes_only_missing_values(arguments, summary, world):
    times = {p: p.stat().st_mtime_ns for p in (world / "work" / "values").iterdir()}
    (deleted := next(iter(times))).unlink()
    again = evidence.main(arguments)
    assert {p for p in times if p.stat().st_mtime_ns != times[p]} == {deleted}
    pd.testing.assert_frame_equal(again, summary)


def test_no_patient_is_in_training_and_test(world):
    config = yaml.safe_load((world / "config.yaml").read_text(encoding="utf-8"))
    config["cohorts"] = {evidence.COHORT: config["cohorts"]["mine"]}
    del config["tasks"]
    found = parse(evidence.folded(config, world, 3))
    assert [test for _, test in evidence.fold_splits(found, 1)] == ["f0", "f1"]
    folds = evidence.fold_splits(found)
    sheet = evidence.read_sheet(found, evidence.COHORT)
    assert sorted(test for _, test in folds) == ["f0", "f1", "f2"]
    for train, test in folds:
        seen = set(sheet.loc[sheet["split"].isin(train), "patient_id"])
        tested = set(sheet.loc[sheet["split"] == test, "patient_id"])
        assert not seen & tested
        assert len(seen | tested) == 6


def test_average_precision_equals_scikit_learn(rng):
    from sklearn.metrics import average_precision_score

    score = rng.random((12, 12)).astype(np.float32)
    relevant = (rng.random((12, 12)) < 0.3) & ~np.eye(12, dtype=bool)
    found = measure.average_precision(score, relevant)
    for i in range(12):
        others = np.arange(12) != i
        if relevant[i].any():
            wanted = average_precision_score(relevant[i][others], score[i][others])
            assert found[i] == pytest.approx(wanted)
        else:
            assert np.isnan(found[i])


def test_a_collapsed_encoder_retrieves_nothing_and_has_no_margin():
    same = np.ones((8, 4), np.float32)
    photo = np.repeat(["x", "y"], 4)
    values = measure.retrieval_values(same, same, photo)
    assert values["top1"].max() == 0
    assert values["margin"] == pytest.approx(0, abs=1e-6)
    ideal = measure.retrieval_values(np.eye(8), np.eye(8), photo)
    assert ideal["top1"].min() == 1


def test_patients_of_the_real_tiles_have_one_split_each(real_data, tmp_path):
    tiles = parse(evidence.folded(evidence.tiles_cohort(real_data, tmp_path), tmp_path, 6))
    sheet = evidence.read_sheet(tiles, evidence.COHORT)
    assert len(sheet) == 2130
    assert sheet["patient_id"].nunique() == 18
    assert sheet.groupby("patient_id")["split"].nunique().max() == 1


def test_the_synthetic_cohort_has_two_sites_without_training_patients(tmp_path):
    (tmp_path / "demo").mkdir()  # as if it had been rendered
    config = parse(evidence.synthetic_cohort(tmp_path, 200))
    sheet = evidence.read_sheet(config, evidence.COHORT)
    assert evidence.fold_splits(config) == [(["train"], "test")]
    patients = sheet.drop_duplicates("patient_id").groupby(["site", "split"]).size()
    assert patients.to_dict() == {
        ("a", "train"): 30, ("a", "test"): 10, ("b", "train"): 30, ("b", "test"): 10,
        ("c", "train"): 30, ("c", "test"): 10, ("d", "test"): 40, ("e", "test"): 40,
    }  # fmt: skip
    # Of the demo, the tests, benchmarks/demo_claim.py and the choice of settings.
    known = (0, 5, 20261123, evidence.CHOOSING_SEED)
    assert evidence.SYNTHETIC_SEED not in known


def test_settings_are_chosen_on_training_sites_and_reference_stains(tmp_path, real_data):
    (tmp_path / "demo").mkdir()
    config = parse(evidence.synthetic_cohort(tmp_path, 200, choosing=True))
    sheet = evidence.read_sheet(config, evidence.COHORT)
    patients = sheet.drop_duplicates("patient_id").groupby(["site", "split"]).size()
    each = {"train": 20, "test": 10}
    assert patients.to_dict() == {(s, k): n for s in "abc" for k, n in each.items()}
    stains = evidence.reference_images(real_data)
    assert list(stains) == list(evidence.REFERENCES)
    assert [len(images) for images in stains.values()] == [3, 3, 3, 1]
