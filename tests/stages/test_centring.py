"""Embeddings centred by site: means of patients outside the test fold, in tile and slide tasks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stainssl.cohort import check
from stainssl.config import parse
from stainssl.errors import StainsslError
from stainssl.evaluation.folds import each_fold, read_folds
from stainssl.evaluation.probe import probe
from stainssl.mil.centring import centred_bags, means_of
from stainssl.plan import encoders as plan
from stainssl.plan import groups, tasks
from stainssl.stages import mil, predict, run_stage
from stainssl.stages.probe import labelled_tiles
from stainssl.stores.embeddings import write_embeddings
from stainssl.stores.tables import read_table
from stainssl.stores.tiles import write_labels

PATIENTS, DIM, TILES = 18, 6, 12
SITE = {"a": 9.0, "b": -9.0, "": 30.0}  # mean of a site's embeddings; "" is no site
CV = {"kind": "cv", "folds": 3}


def _sheet():
    return pd.DataFrame([
        {"slide_id": f"s{i}", "patient_id": f"p{i}", "path": f"s{i}.svs",
         "site": ("a", "b", "")[i % 3], "her2": str(i // 3 % 2)}
        for i in range(PATIENTS)
    ])  # fmt: skip


def _write(config, sheet, rng):
    """Write embeddings centred at their site's value, shifted in one direction by the label."""
    labels = np.repeat(sheet["her2"].astype(int), TILES).to_numpy()
    features = (
        rng.normal(size=(PATIENTS * TILES, DIM))
        + np.repeat(sheet["site"].map(SITE), TILES).to_numpy()[:, None]
    )
    features[:, 0] += 4 * labels
    index = np.tile(np.arange(TILES, dtype=np.int32), PATIENTS)
    paths, slides = config.paths, sheet["slide_id"].tolist()
    write_embeddings(
        paths.embeddings("clinic", "enc", "all-0000"), slide_id=slides,
        counts=[TILES] * PATIENTS, dim=DIM, blocks=[features.astype(np.float16)],
        tile=index, x=index * 256, y=index * 0, settings={},
    )  # fmt: skip
    table = pd.DataFrame({"slide_id": np.repeat(slides, TILES), "tile": index, "her2": labels})
    write_labels(paths.labels("clinic", "all-0000"), table, {})


def _config(folder, **task_keys):
    split = {"split": CV} | task_keys
    own = {"label": "her2", "cohorts": ["clinic"], **split}
    return parse({
        "results": str(folder / "results"), "slides": {"part_size": 100},
        "cohorts": {"clinic": {"sheet": str(folder / "slides.csv"), "root": str(folder),
                               "annotations": str(folder / "{slide_id}.geojson")}},
        "encoders": {"enc": {"method": "random"}, "cut": {"vectors": "enc", "center": "site"}},
        "tasks": {"slide": {"level": "slide", **own}, "tile": {"level": "tile", **own}},
        "heads": {"mean": {"kind": "mean", "epochs": 8, "hidden": 8, "max_tiles": 16}},
        "benchmarks": {"b": {"tasks": ["slide", "tile"], "encoders": ["enc", "cut"],
                             "heads": ["mean"]}},
    })  # fmt: skip


@pytest.fixture
def config(tmp_path, rng):
    _sheet().to_csv(tmp_path / "slides.csv", index=False)
    made = _config(tmp_path)
    _write(made, _sheet(), rng)
    for task in made.tasks:
        run_stage("folds", made, task)
    return made


def _fold_means(tiles, patients):
    """Site → mean of its slides' means, by pandas; slides without a site count as the cohort."""
    table = tiles.table.assign(site=tiles.table["site"].replace("", "clinic"))
    own = table["patient_id"].isin(patients)
    frame = pd.DataFrame(tiles.features[own]).groupby(
        [table["site"][own].array, table["slide_id"][own].array]
    ).mean()  # fmt: skip
    return frame.groupby(level=0).mean()


def test_tiles_are_centred_by_site_means_of_non_test_patients(config):
    tiles = labelled_tiles(tasks.probe(config, "tile", "cut"))
    for _, _, role in each_fold(read_folds(config.paths.folds("tile"))):
        found, training, test = tiles.of_fold(role)
        means = _fold_means(tiles, role["train"] | role["val"])
        site = tiles.table["site"].replace("", "clinic").to_numpy()
        expected = tiles.features - means.loc[site].to_numpy()
        rows = np.concatenate([training, test])
        np.testing.assert_allclose(found.features[rows], expected[rows], atol=1e-3)
        assert set(tiles.table["patient_id"].iloc[test]) == role["test"]


def test_test_embeddings_do_not_change_the_means(config):
    tiles = labelled_tiles(tasks.probe(config, "tile", "cut"))
    folds = read_folds(config.paths.folds("tile"))
    _, _, role = next(each_fold(folds))
    test = tiles.rows(role["test"])
    other = tiles.features.copy()
    other[test] += 1000
    moved, training, _ = type(tiles)(
        other, tiles.y, tiles.classes, tiles.table, tiles.center
    ).of_fold(role)
    np.testing.assert_array_equal(
        moved.features[training], tiles.of_fold(role)[0].features[training]
    )


def test_bags_are_centred_by_the_same_means(config):
    job = tasks.mil(config, "slide", "cut", "mean")
    slides = mil.labelled_slides(job.rows, job.label).assign(label=0)
    read = mil.slide_reader(job.embeddings, slides)
    bags = mil._bags(slides, "slide", read)
    sites = {f"s{i}": ("a", "b", "clinic")[i % 3] for i in range(PATIENTS)}
    train, test = bags[:12], bags[12:]
    means = means_of(train, sites)
    tiles = labelled_tiles(tasks.probe(config, "tile", "cut"))
    expected = _fold_means(tiles, {bag.patient_id for bag in train})
    assert set(means) == {"a", "b", "clinic"}
    for site, mean in means.items():
        np.testing.assert_allclose(mean, expected.loc[site], atol=2e-2)
    centred, left_out = centred_bags(test, sites, means)
    assert not left_out
    for bag, raw in zip(centred, test, strict=True):
        mean = means[sites[bag.slides[0]]]
        rows = np.array([1, 4])
        np.testing.assert_allclose(bag.rows(rows), raw.rows(rows) - mean, atol=2e-2)
        np.testing.assert_allclose(
            bag.tiles[0].moments[0], raw.tiles[0].moments[0] - mean, atol=2e-2
        )
        assert bag.dim == raw.dim
        np.testing.assert_array_equal(bag.tiles[0].x_level0_px, raw.tiles[0].x_level0_px)
    none, left_out = centred_bags(test, dict.fromkeys(sites, "x"), means)
    assert (none, sorted(left_out)) == ([], sorted(bag.slides[0] for bag in test))


def test_a_centred_encoder_is_evaluated_but_its_embeddings_are_not_stored(config):
    for name in ("enc", "cut"):
        run_stage("probe", config, "tile", name)
        run_stage("mil", config, "slide", name, "mean")
    paths = config.paths
    for of in ("cut", "enc"):
        folder = paths.mil("slide", of, "mean")
        assert len(read_table(folder / "predictions.parquet", "predictions")) == PATIENTS
    auroc = {
        name: pd.read_csv(paths.probe("tile", name) / "metrics.csv").set_index(["metric", "group"])
        for name in ("enc", "cut")
    }
    assert auroc["cut"].loc[("auroc", "all"), "value"] > 0.95
    assert not paths.embeddings("clinic", "cut", "all-0000").exists()
    assert [run.name for run in config.runs_on("clinic")] == ["enc"]
    assert groups.plan(config, {}) == {"clinic": []}
    job = tasks.benchmark(config, "b")
    assert job.prediction_folders["tile", "cut", "probe"] == paths.probe("tile", "cut")
    assert set(job.robustness) == {"enc"}
    assert job.seen["cut"] == job.seen["enc"]
    for name in ("tile", "slide"):
        own, others = (
            tasks.probe(config, name, n) if name == "tile" else tasks.mil(config, name, n, "mean")
            for n in ("cut", "enc")
        )
        assert own.inputs() == others.inputs()
        assert own.param() != others.param()
    with pytest.raises(StainsslError, match="centred within each fold and not stored: embed enc"):
        plan.embed(config, "clinic", "cut", "all-0000")
    with pytest.raises(StainsslError, match="could only be computed on the slides to predict"):
        predict._trained(config, "slide", "cut", "mean")


def test_test_tiles_of_sites_without_training_patients_are_left_out(config, caplog):
    tiles = labelled_tiles(tasks.probe(config, "tile", "cut"))
    names = [f"p{i}" for i in range(PATIENTS)]
    folds = pd.DataFrame({
        "repeat": 0, "fold": 0, "patient_id": names,
        "role": ["test" if i % 3 == 2 or i < 2 else "train" for i in range(PATIENTS)],
    })  # fmt: skip
    predicted, _ = probe(tiles, folds)
    assert set(predicted["site"]) == {"a", "b"}
    assert "72 tiles of sites without training patients left out" in caplog.text


def test_a_centred_encoder_has_the_seeds_of_its_source(tmp_path):
    _sheet().to_csv(tmp_path / "slides.csv", index=False)
    found = _config(tmp_path).model_dump(mode="json")
    found["encoders"]["enc"]["seeds"] = [3, 5]
    config = parse(found)
    assert [run.name for run in config.runs_of("cut")] == ["cut.3", "cut.5"]
    assert config.stored_run("cut.5").name == "enc.5"
    job = tasks.probe(config, "tile", "cut.5")
    assert "enc.5" in str(next(iter(job.embeddings.values())))


@pytest.mark.parametrize(
    ("split", "pattern"),
    [
        (
            {"kind": "leave-one-out", "group": "site"},
            r"site 'a' \(s0, s3, s6, s9, s12 and 1 more\)",
        ),
        ({"kind": "sheet"}, r"repeat 0 fold 0, site 'clinic' \(s2, "),
        (CV, None),
    ],
)
def test_check_reports_sites_that_have_only_test_patients(tmp_path, split, pattern):
    sheet = _sheet()
    if split["kind"] == "leave-one-out":
        sheet["site"] = sheet["site"].replace("", "c")
    else:
        sheet["split"] = ["test" if i % 3 == 2 else "train" for i in range(PATIENTS)]
    sheet.to_csv(tmp_path / "slides.csv", index=False)
    found = check(_config(tmp_path, split=split))
    messages = [sentence for sentence in found if "center" in sentence]
    if pattern is None:
        assert not messages
    else:
        assert len(messages) == 2  # one per task
        assert pd.Series(messages).str.contains(pattern).all()
        assert "Their mean could only be computed on test patients" in messages[0]


def test_external_cohorts_and_further_uses_of_a_centred_encoder_are_refused(tmp_path):
    _sheet().to_csv(tmp_path / "slides.csv", index=False)
    found = _config(tmp_path).model_dump(mode="json")
    found["cohorts"]["other"] = found["cohorts"]["clinic"]
    found["tasks"]["slide"]["external"] = ["other"]
    with pytest.raises(StainsslError, match=r"'cut' is centred by site, and the means .* of other"):
        parse(found)
    found["tasks"]["slide"]["external"] = []
    found["encoders"]["more"] = {"vectors": "cut", "center": "site"}
    with pytest.raises(StainsslError, match=r"those of 'cut' are centred .* use those of 'enc'"):
        parse(found)
    found["encoders"]["more"] = {
        "method": "simclr", "train": {"cohorts": ["clinic"]}, "init": "cut",
    }  # fmt: skip
    with pytest.raises(StainsslError, match="'cut' is computed from embeddings by 'enc', without"):
        parse(found)
