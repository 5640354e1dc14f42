"""`predict` gives the same predictions for a slide as the fold models did in the workflow."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stainssl.cohort import outside_problems
from stainssl.errors import StainsslError
from stainssl.stages import export, predict
from stainssl.stores.tables import read_table
from stainssl.view.run import config_of
from stainssl.view.viewer_data import ViewerData

pytestmark = pytest.mark.xdist_group("trained")


def _predict(trained, sheet: pd.DataFrame, out, task="patient", **options):
    sheet.to_csv(out.with_suffix(".csv"), index=False)
    predict.run(
        trained.config, task, "enc", "abmil",
        sheet=out.with_suffix(".csv"), root=trained.root, out=out, **options,
    )  # fmt: skip
    return pd.read_csv(out / "predictions.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    """Predictions of three slides of two patients and an unreadable one, as if they were new."""
    out = tmp_path_factory.mktemp("predict") / "out"
    (trained.root / "slides" / "broken.svs").write_bytes(b"no slide")
    rows = trained.rows("a-001-1", "a-001-2", "b-003-1")
    broken = {"slide_id": "x", "patient_id": "x", "path": "slides/broken.svs"}
    sheet = pd.concat([rows, pd.DataFrame([broken])])
    return out, _predict(trained, sheet, out)


def _mil_table(trained, task, name):
    folder = trained.config.paths.mil(task, "enc", "abmil")
    return read_table(folder / f"{name}.parquet", name)


def test_each_fold_model_predicts_as_in_the_workflow(trained, predicted):
    new = read_table(predicted[0] / "by-model.parquet", "predictions")
    keys = ["patient_id", "repeat", "fold"]
    both = _mil_table(trained, "patient", "predictions").merge(new, on=keys, suffixes=("", "_new"))
    assert len(both) == 2 * 2  # each patient is tested once per repeat
    np.testing.assert_array_equal(both["p_1"], both["p_1_new"])


def test_the_prediction_is_the_mean_of_all_models_with_an_interval(predicted):
    out, predictions = predicted
    by_model = read_table(out / "by-model.parquet", "predictions").query("patient_id == 'b-003'")
    row = predictions.set_index("patient_id").loc["b-003"]
    assert len(by_model) == row["models"] == 4
    assert row["p_1"] == pytest.approx(by_model["p_1"].mean(), rel=1e-4)
    assert by_model["p_1"].min() - 1e-6 <= row["low_1"] <= row["p_1"] <= row["high_1"]
    assert row["p_0"] + row["p_1"] == pytest.approx(1, abs=1e-4)


def test_predicted_classes_use_the_thresholds_of_the_evaluation(trained, predicted):
    out, predictions = predicted
    new = read_table(out / "by-model.parquet", "predictions")
    evaluated = _mil_table(trained, "patient", "predictions")
    keys = ["patient_id", "repeat", "fold"]
    both = evaluated.merge(new, on=keys, suffixes=("", "_new"))
    np.testing.assert_array_equal(both["threshold"], both["threshold_new"])
    assert (new["predicted"] == (new["p_1"] >= new["threshold"]).astype(int).astype(str)).all()
    mean = new.groupby("patient_id")["threshold"].mean()
    np.testing.assert_allclose(predictions.set_index("patient_id")["threshold"], mean, rtol=1e-5)
    above = (predictions["p_1"] >= predictions["threshold"]).astype(int)
    assert predictions["predicted"].astype(int).tolist() == above.tolist()


def _by_model(**columns):
    rows = {"patient_id": ["a", "a", "b", "b"], "p_0": [0.7, 0.6, 0.2, 0.3]}
    return pd.DataFrame(rows | {"p_1": [0.3, 0.4, 0.8, 0.7]} | columns)


def _summary(by_model):
    rows = {"slide_id": ["a", "b"], "patient_id": ["a", "b"], "tiles": [5, 5]}
    distances = {column: [0.1, 0.1] for column in predict.OUT_OF_RANGE_NOTES}
    return predict.summary(by_model, pd.DataFrame(rows | distances), "patient")


def test_a_low_threshold_predicts_the_less_probable_class():
    found = _summary(_by_model(threshold=[0.2, 0.4, 0.2, 0.4]))
    assert found["predicted"].tolist() == ["1", "1"]
    assert found["threshold"].tolist() == pytest.approx([0.3, 0.3])


def test_models_without_thresholds_predict_the_most_probable_class():
    found = _summary(_by_model())
    assert found["predicted"].tolist() == ["0", "1"]
    assert "threshold" not in found


def test_slides_of_a_patient_are_combined_and_an_unreadable_one_is_left_out(predicted):
    out, predictions = predicted
    assert predictions["patient_id"].tolist() == ["a-001", "b-003"]
    assert predictions["slides"].tolist() == [2, 1]
    slides = pd.read_csv(out / "slides.csv").set_index("slide_id")
    assert slides["status"].to_dict() == {
        "a-001-1": "ok", "a-001-2": "ok", "b-003-1": "ok", "x": "unsupported",
    }  # fmt: skip
    assert slides.loc["x", "detail"]


def test_training_slides_are_within_the_training_range(predicted):
    slides = pd.read_csv(predicted[0] / "slides.csv").dropna()
    assert (slides[["feature_distance", "stain_distance"]] <= 1).all(axis=None)
    assert set(predicted[1]["note"]) == {"the models were trained on a patient with this id"}


def test_attention_is_written_as_table_pictures_and_geojson(trained, predicted):
    out = predicted[0]
    attention = read_table(out / "attention.parquet", "attention")
    of_mil = _mil_table(trained, "patient", "attention")
    of_mil = of_mil[of_mil["slide_id"].isin(attention["slide_id"])]
    keys = ["slide_id", "tile", "x", "y"]
    assert len(attention.merge(of_mil, on=keys)) == len(attention) == len(of_mil)
    found = json.loads((out / "attention" / "b-003-1.geojson").read_text())["features"]
    rows = attention[attention["slide_id"] == "b-003-1"]
    assert [f["geometry"]["coordinates"][0][0] for f in found] == rows[["x", "y"]].values.tolist()
    for name in ("b-003-1.png", "b-003-1-tiles.png"):
        assert (out / "attention" / name).read_bytes().startswith(b"\x89PNG")
    assert not (out / "attention" / "x.png").exists()


def test_the_viewer_opens_the_output_folder(predicted):
    out = predicted[0]
    viewer = ViewerData(config_of(out))
    columns = viewer.data("cohort", "new")["columns"]
    assert "b-003-1" in columns["slide_id"]
    assert "feature_distance" in columns
    assert viewer.data("attention", "new", "b-003-1", "predictions")["tile"]
    assert viewer.data("predictions", "new", "predictions")["columns"]["low_1"]


def test_a_stain_outside_the_training_range_is_reported(trained, tmp_path, caplog):
    """Red and blue are swapped, which changes stain and features."""
    from stainssl.demo.svs import write_svs
    from stainssl.slides.readers import open_slide

    slide = open_slide(trained.root / "slides" / "a-001-1.svs", "auto")
    image = slide.read_region(0, 0, 0, slide.level_sizes_px[0])
    slide.close()
    swapped = np.ascontiguousarray(image[..., ::-1])
    write_svs(tmp_path / "blue.svs", swapped, quality=90, mpp=0.5, magnification=20)
    row = {"slide_id": "g", "patient_id": "g", "path": str(tmp_path / "blue.svs")}
    predictions = _predict(
        trained, pd.DataFrame([row]), tmp_path / "out", "slide", pictures=False, outside_root=True
    )
    assert "its stain is outside" in predictions["note"].item()
    assert "g: its stain is outside the task's training range" in caplog.text
    assert [p.name for p in (tmp_path / "out" / "attention").iterdir()] == ["g.geojson"]


def test_a_slide_without_an_h_and_e_stain_is_reported(trained, tmp_path, monkeypatch, caplog):
    """No tile has a valid stain profile, as on a slide of one color."""
    rows = trained.rows("a-001-1", "b-003-1")
    stain_of_slides = predict.stain_of_slides

    def without_profiles(*args):
        return {**stain_of_slides(*args), "b-003-1": np.empty(0, np.float32)}

    monkeypatch.setattr(predict, "stain_of_slides", without_profiles)
    predictions = _predict(trained, rows, tmp_path / "out", "slide", pictures=False)
    notes = predictions.set_index("slide_id")["note"].fillna("")
    assert "no H&E stain" in notes["b-003-1"]
    assert "no H&E stain" not in notes["a-001-1"]
    assert "b-003-1: no H&E stain found" in caplog.text


def test_slides_are_predicted_if_no_stain_of_the_training_slides_is_stored(
    trained, tmp_path, monkeypatch, caplog
):
    """As with `slides.keep_pixels: false` or `pixels: stream`."""
    of = predict.references
    none = np.empty(0, np.float32)
    monkeypatch.setattr(
        predict, "references", lambda table: of(table.assign(stain=[none] * len(table)))
    )
    answers = _predict(trained, trained.rows("b-003-1"), tmp_path / "out")
    assert answers["stain_distance"].tolist() == [""]
    assert answers["feature_distance"].astype(float).item() <= 1
    assert "no H&E stain" not in answers["note"].item()
    assert "stain_distance is unknown" in caplog.text


def test_a_patient_without_a_usable_slide_is_named(trained, tmp_path, caplog):
    (trained.root / "slides" / "bad.svs").write_bytes(b"no slide")
    bad = {"slide_id": "x", "patient_id": "alone", "path": "slides/bad.svs"}
    sheet = pd.concat([trained.rows("b-003-1"), pd.DataFrame([bad])])
    with caplog.at_level("INFO"):
        predictions = _predict(trained, sheet, tmp_path / "out")
    assert predictions["patient_id"].tolist() == ["b-003"]
    assert "1 patient(s) have no usable slide and no prediction: alone" in caplog.text


def test_no_usable_slide_is_an_error_and_statuses_are_written(trained, tmp_path):
    row = {"slide_id": "gone", "patient_id": "p", "path": "slides/gone.svs"}
    with pytest.raises(StainsslError, match=r"No slide of .*slides\.csv for the reasons"):
        _predict(trained, pd.DataFrame([row]), tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["status"].item() == "missing"


def test_a_task_without_models_names_the_command_to_run(trained, tmp_path):
    with pytest.raises(StainsslError, match="run `stainssl mil`"):
        predict.run(
            trained.config, "patient", "enc", "mean", sheet=tmp_path / "s.csv", root=tmp_path,
            out=tmp_path / "out",
        )  # fmt: skip


def test_imported_features_are_refused(trained, tmp_path):
    features = trained.config.encoders["enc"].model_copy(
        update={"weights": None, "features": "clam:somewhere"}
    )
    config = trained.config.model_copy(update={"encoders": {"enc": features}})
    with pytest.raises(StainsslError, match=r"clam:somewhere.*without a network"):
        predict.run(config, "patient", "enc", "abmil", tmp_path / "s.csv", tmp_path, tmp_path)
    with pytest.raises(StainsslError, match="do not give the tile size"):
        export.run(config, "qupath", "clinic", "enc", tmp_path, task="patient", head="abmil")


def test_known_patients_are_the_training_patients(trained):
    known = predict.known_patients(trained.config, "patient", "enc")
    assert set(known) == set(trained.sheet["patient_id"])


def test_a_path_outside_the_root_is_refused_unless_allowed(trained, tmp_path):
    rows = trained.rows("a-001-1").assign(path="../slides/a-001-1.svs")
    rows.to_csv(tmp_path / "s.csv", index=False)
    root = trained.root / "elsewhere"
    with pytest.raises(StainsslError, match=r"1 path.s. are outside .*elsewhere.* --outside-root"):
        predict.run(
            trained.config, "patient", "enc", "abmil", tmp_path / "s.csv", root, tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
    new = predict.config_of_new(
        trained.config, "patient", "enc", tmp_path / "s.csv", root, tmp_path / "out", True
    )
    assert not list(outside_problems(new, predict.NEW, "--root", "give --outside-root"))


def test_a_full_disk_is_reported_with_folder_and_free_space(trained, tmp_path, monkeypatch):
    def fail(*_args, **_words):
        raise OSError(errno.ENOSPC, "No space left on device")

    sheet = tmp_path / "s.csv"
    trained.rows("a-001-1").to_csv(sheet, index=False)
    monkeypatch.setattr(predict, "write_text", fail)
    with pytest.raises(StainsslError, match=rf"No space left.* {tmp_path}.*GB free"):
        predict.run(trained.config, "patient", "enc", "abmil", sheet, trained.root, tmp_path)
    monkeypatch.setattr(Path, "write_bytes", fail)
    for tool in ("clam", "trident", "stamp"):
        with pytest.raises(StainsslError, match=rf"No space left.* {tmp_path}.*GB free"):
            export.run(trained.config, tool, "clinic", "enc", tmp_path / tool)
        assert not [path for path in (tmp_path / tool).rglob("*") if path.is_file()]
