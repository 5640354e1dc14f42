"""Checks before any job starts: names, paths, labels and features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stainssl.cohort import check, feature_warnings
from stainssl.config import Config, parse
from stainssl.errors import StainsslError

BASE: dict[str, Any] = {
    "cohorts": {"c": {"sheet": "c.csv"}, "b": {"sheet": "b.csv"}},
    "encoders": {"x": {"method": "random"}},
    "heads": {"mean": {"kind": "mean"}},
    "tasks": {"t": {"level": "patient", "label": "her2", "cohorts": ["c"]}},
}


def error_of(**changes: Any) -> str:
    data = {key: dict(value) for key, value in BASE.items()}
    for path, value in changes.items():
        kind, name = path.split("__", 1)
        data[kind][name] = {**data[kind].get(name, {}), **value}
    with pytest.raises(StainsslError) as caught:
        parse(data)
    return str(caught.value)


def test_duplicates_in_lists_are_refused() -> None:
    assert "tasks.t.cohorts has 'c' 2 times" in error_of(tasks__t={"cohorts": ["c", "c"]})
    assert "encoders.x.seeds has 0 2 times" in error_of(encoders__x={"seeds": [0, 0]})


def test_names_that_share_a_results_folder_are_refused() -> None:
    data = parse(BASE).model_dump(mode="json")
    data["encoders"] |= {"x": {"method": "random", "seeds": [0, 1]}, "x.1": {"method": "random"}}
    with pytest.raises(StainsslError, match=r"encoders x and x\.1 both make the run 'x\.1'"):
        parse(data)
    assert "heads.probe: the name is reserved" in error_of(heads__probe={"kind": "mean"})
    assert "x and X differ only in case" in error_of(encoders__X={"method": "random"})
    long = {f"encoders__{'e' * 252}": {"method": "random"}}
    assert "252 characters; at most 100" in error_of(**long)


@pytest.mark.parametrize("column", ["tile", "cohort", "slide_id", "stainssl_part"])
def test_reserved_columns_are_refused_as_a_label(column: str) -> None:
    assert f"tasks.t.label: '{column}' is reserved" in error_of(tasks__t={"label": column})


def test_the_label_as_a_clinical_column_is_refused() -> None:
    assert "this would leak the label" in error_of(tasks__t={"clinical": ["age", "her2"]})


@pytest.mark.parametrize("lr", [1e30, float("inf"), float("nan")])
def test_absurd_learning_rates_are_refused(lr: float) -> None:
    assert "lr" in error_of(heads__mean={"lr": lr})
    assert "lr" in error_of(encoders__x={"lr": lr})


def config_of(folder: Path, task: dict[str, Any], extra: dict[str, Any], **sheets: Any) -> Config:
    cohorts = {}
    for name, (rows, keys) in sheets.items():
        columns = ["slide_id", "patient_id", "path", "her2"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / f"{name}.csv", index=False)
        cohorts[name] = {"sheet": str(folder / f"{name}.csv"), "root": str(folder), **keys}
    defaults = {"level": "patient", "label": "her2", "cohorts": ["c"], "split": {"folds": 2}}
    return parse({"cohorts": cohorts, "tasks": {"t": defaults | task}} | extra)


def rows_of(folder: Path, name: str, labels: list[str], count: int = 12) -> list[tuple[Any, ...]]:
    for i in range(count):
        (folder / f"{name}{i}.svs").write_text(f"{name}{i}")
    return [
        (f"{name}{i}", f"{name}p{i}", f"{name}{i}.svs", labels[i % len(labels)])
        for i in range(count)
    ]


def test_labels_of_an_external_cohort_without_a_class_are_reported(tmp_path: Path) -> None:
    own = (rows_of(tmp_path, "c", ["0", "1"]), {})
    other = (rows_of(tmp_path, "b", ["negative", "positive", "NA"]), {})
    external = {"external": ["b"]}
    (found,) = check(config_of(tmp_path, external, {}, c=own, b=other))
    assert "has 'her2' 'negative' (4), 'positive' (4), which no slide of c has" in found
    classes = {"neg": ["0", "negative"], "pos": ["1", "positive"]}
    assert check(config_of(tmp_path, external | {"classes": classes}, {}, c=own, b=other)) == []
    same = (rows_of(tmp_path, "b", ["1", "0", ""]), {})
    assert check(config_of(tmp_path, external, {}, c=own, b=same)) == []


def test_cohorts_of_a_task_without_a_common_label_are_reported(tmp_path: Path) -> None:
    own = (rows_of(tmp_path, "c", ["0", "1"]), {})
    other = (rows_of(tmp_path, "b", ["neg", "pos"]), {})
    found = check(config_of(tmp_path, {"cohorts": ["c", "b"]}, {}, c=own, b=other))
    assert "cohorts c and b has no word in common (0, 1 and neg, pos)" in "\n".join(found)


def test_a_features_folder_without_files_of_the_cohort_is_reported(tmp_path: Path) -> None:
    features = tmp_path / "features"
    features.mkdir()
    (features / "C-0.h5").touch()
    extra = {"encoders": {"uni": {"features": f"trident:{features}"}}}
    config = config_of(tmp_path, {}, extra, c=(rows_of(tmp_path, "c", ["0", "1"]), {}))
    (found,) = check(config)
    assert "has no file for any of the 12 slides of c: looked for c0.h5, found C-0.h5" in found
    (features / "c3.h5").touch()
    assert check(config) == []
    (warning,) = feature_warnings(config)
    assert "11 of 12 slides of c have no file" in warning
    assert "c0, c1, c2, c4, c5 … (11 in all)" in warning
    for number in range(12):
        (features / f"c{number}.h5").touch()
    assert feature_warnings(config) == []


def test_paths_outside_the_root_are_reported_unless_allowed(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    rows = rows_of(tmp_path, "c", ["0", "1"])
    for up in ("../", f"{tmp_path}/"):
        moved = [(slide, patient, up + path, label) for slide, patient, path, label in rows]
        keys = {"root": str(root)}
        (found,) = check(config_of(tmp_path, {}, {}, c=(moved, keys)))
        assert "12 path(s) are outside" in found
        assert check(config_of(tmp_path, {}, {}, c=(moved, keys | {"outside_root": True}))) == []
    absolute = [(s, p, f"{tmp_path}/{path}", label) for s, p, path, label in rows]
    assert check(config_of(tmp_path, {}, {}, c=(absolute, {}))) == []


def test_braces_in_a_path_and_many_missing_files_are_one_message_each(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "c", ["0", "1"])
    (tmp_path / "{a}.svs").write_text("a")
    (found,) = check(config_of(tmp_path, {}, {}, c=([*rows, ("a", "a", "{a}.svs", "0")], {})))
    assert "1 path(s) have braces" in found
    gone = [(slide, patient, f"gone/{path}", label) for slide, patient, path, label in rows]
    (found,) = check(config_of(tmp_path, {}, {}, c=(gone, {})))
    assert "12 of 12 files do not exist" in found
