"""Jobs: the only input of a stage, and the settings on which its result depends."""

from __future__ import annotations

import ast
import inspect
import os
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stainssl.config import Config, Encoder, parse
from stainssl.paths import Paths
from stainssl.plan.encoders import without_unused_keys
from stainssl.plan.job import Job, Role, as_text
from stainssl.plan.workflow import BUILDERS

KINDS = {verb: get_type_hints(build)["return"] for verb, build in BUILDERS.items()}
WHOLE = {"stainssl.config": {"Config", "load", "parse"}, "stainssl.paths": {"Paths"}}


def _types(annotation: Any) -> set[Any]:
    return {annotation}.union(*map(_types, get_args(annotation)))


@pytest.mark.parametrize("verb", BUILDERS)
def test_the_first_parameter_of_a_stage_is_its_job(verb: str) -> None:
    run = import_module(f"stainssl.stages.{verb}").run
    first = next(iter(inspect.signature(run).parameters))
    assert get_type_hints(run)[first] is KINDS[verb]


@pytest.mark.parametrize("verb", BUILDERS)
def test_no_job_has_the_whole_config_or_all_paths(verb: str) -> None:
    for name, hint in get_type_hints(KINDS[verb], include_extras=True).items():
        assert isinstance(hint.__metadata__[0], Role), name
        assert not _types(hint) & {Config, Paths}, name


@pytest.mark.parametrize("verb", BUILDERS)
def test_no_stage_imports_configs_sheets_or_paths(verb: str) -> None:
    file = Path(import_module(f"stainssl.stages.{verb}").__file__ or "")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            assert not names & WHOLE.get(node.module or "", set())
            if node.module == "stainssl.cohort":
                assert names <= {"site_columns", "PART"}


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=4))
def test_texts_of_different_values_differ(values: dict[str, Any]) -> None:
    assert as_text(values) == as_text(dict(reversed(values.items())))
    assert as_text({**values, "more": 1}) != as_text(values)


def test_texts_of_different_tables_differ() -> None:
    table = pd.DataFrame({"slide_id": ["a", "b"], "mpp": [0.5, float("nan")]})
    assert as_text(table) == as_text(table.copy())
    assert as_text(table) != as_text(table.iloc[::-1])
    assert as_text(table) != as_text(table.rename(columns={"mpp": "site"}))


def test_unused_keys_are_set_to_their_defaults() -> None:
    train = {"cohorts": ["c"]}
    simclr = Encoder.model_validate({"method": "simclr", "train": train, "views": "same"})
    assert without_unused_keys(simclr).views == "one"
    vicreg = simclr.model_copy(update={"loss": "vicreg", "temperature": 0.9, "seeds": [4]})
    assert (without_unused_keys(vicreg).temperature, without_unused_keys(vicreg).seeds) == (
        0.2,
        [0],
    )
    random = Encoder.model_validate({"method": "random", "lr": 7.0, "backbone": "resnet18"})
    assert (without_unused_keys(random).lr, without_unused_keys(random).backbone) == (
        1e-3,
        "resnet18",
    )


def test_the_seed_is_a_setting_of_jobs_that_use_it_only(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("slide_id,patient_id,path,her2\na,p,a.svs,1\nb,q,b.svs,0\n")
    made = {
        "cohorts": {"c": {"sheet": str(tmp_path / "c.csv"), "root": str(tmp_path)}},
        "encoders": {"e": {"method": "simclr", "train": {"cohorts": ["c"], "splits": ["all"]}}},
        "tasks": {"t": {"level": "patient", "label": "her2", "cohorts": ["c"]}},
    }
    jobs: list[list[Job]] = []
    for seed in (0, 1):
        config = parse({**made, "seed": seed})
        jobs.append([BUILDERS["folds"](config, "t"), BUILDERS["pretrain"](config, "e")])
    (folds, pretrain), (folds_1, pretrain_1) = jobs
    assert folds.param() != folds_1.param()
    assert pretrain.param() == pretrain_1.param()


def _config(folder: Path, encoder: dict[str, str]) -> Config:
    (folder / "c.csv").write_text("slide_id,patient_id,path\na,p,a.svs\nb,q,b.svs\n")
    cohort = {"sheet": str(folder / "c.csv"), "root": str(folder)}
    return parse({"cohorts": {"c": cohort}, "encoders": {"e": encoder}})


def test_settings_change_with_the_weights_in_a_file_but_not_with_its_time(
    tmp_path: Path,
) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(bytes(3_000_000))
    config = _config(tmp_path, {"weights": f"resnet18@{file}"})
    first = BUILDERS["embed"](config, "c", "e", "all-0000").param()
    os.utime(file, (1, 1))
    assert BUILDERS["embed"](config, "c", "e", "all-0000").param() == first
    with file.open("r+b") as opened:
        opened.seek(1_500_000)
        opened.write(b"other" * 20_000)
    assert BUILDERS["embed"](config, "c", "e", "all-0000").param() != first


def test_new_and_changed_feature_files_change_the_job(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.h5").write_bytes(b"1")
    config = _config(tmp_path, {"features": f"trident:{tmp_path / 'f'}"})

    def job() -> tuple[str, dict[str, list[str]]]:
        made = BUILDERS["embed"](config, "c", "e", "all-0000")
        return made.param(), made.inputs()

    first = job()
    (tmp_path / "f" / "b.h5").write_bytes(b"1")
    second = job()
    (tmp_path / "f" / "a.h5").write_bytes(b"12")
    assert first[1] != second[1]
    assert job()[0] != second[0]


def test_robustness_without_a_tile_task_uses_one_task_of_the_same_cohorts_and_no_label(
    tmp_path: Path,
) -> None:
    made = _config(tmp_path, {"method": "random"}).model_dump(mode="json")
    task = {"level": "patient", "label": "her2", "cohorts": ["c"]}
    tile = {"level": "tile", "label": "tumor", "cohorts": ["c"]}
    made["tasks"] = {"a": task, "b": task, "t": tile}
    benchmarks = {"s": {"tasks": ["a", "b"], "encoders": ["e"]}}
    job = BUILDERS["robustness"](parse({**made, "benchmarks": benchmarks}), "e")
    assert list(job.tasks) == ["a"]
    assert job.tasks["a"]["label"] is None
    assert not job.labels
    benchmarks["t"] = {"tasks": ["t", "a"], "encoders": ["e"]}
    both = BUILDERS["robustness"](parse({**made, "benchmarks": benchmarks}), "e")
    assert {name: found["label"] is None for name, found in both.tasks.items()} == {
        "a": True,
        "t": False,
    }
    assert list(both.labels) == [("c", "all-0000")]
    benchmarks["s"]["robustness"] = False
    alone = BUILDERS["robustness"](parse({**made, "benchmarks": benchmarks}), "e")
    assert list(alone.tasks) == ["t"]


@pytest.mark.parametrize(
    ("normalizer", "family"),
    [
        ("macenko", "reinhard"),
        ("reinhard", "macenko"),
        (["macenko", "reinhard"], "reinhard"),
        (["reinhard", "macenko"], "macenko"),
    ],
)
def test_robustness_uses_another_stain_family_than_the_first_normalizer(
    tmp_path: Path, normalizer: str | list[str], family: str
) -> None:
    train = {"method": "stain-invariant", "train": {"cohorts": ["c"]}, "backbone": "resnet18"}
    made = _config(tmp_path, {**train, "normalizer": normalizer}).model_dump(mode="json")
    made["tasks"] = {"a": {"level": "patient", "label": "her2", "cohorts": ["c"]}}
    made["benchmarks"] = {"s": {"tasks": ["a"], "encoders": ["e"]}}
    assert BUILDERS["robustness"](parse(made), "e").family == family
