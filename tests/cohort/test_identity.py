"""Files with two names and patient ids in two cohorts are reported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stainssl.cohort import check, read_sheet
from stainssl.cohort.identity import file_keys
from stainssl.config import Config, parse
from stainssl.runtime.content import SAMPLE_BYTES, content_key

COLUMNS = ["slide_id", "patient_id", "path", "split", "her2"]
Row = tuple[str, str, str, str, int]


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "s"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.svs").write_text(f"slide {i:02d}")
    return folder


def base(prefix: str = "s") -> list[Row]:
    splits = ["train"] * 12 + ["test"] * 6
    return [(f"{prefix}{i}", f"p{i}", f"s/{i}.svs", split, i % 2) for i, split in enumerate(splits)]


def config_of(folder: Path, task: dict[str, Any] | None = None, **sheets: Any) -> Config:
    cohorts = {}
    for name, given in sheets.items():
        rows, keys = given if isinstance(given, tuple) else (given, {})
        pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / f"{name}.csv", index=False)
        cohorts[name] = {"sheet": str(folder / f"{name}.csv"), "root": str(folder), **keys}
    defaults = {"level": "patient", "label": "her2", "cohorts": ["c"], "split": {"kind": "sheet"}}
    return parse({"results": str(folder / "r"), "cohorts": cohorts,
                  "tasks": {"t": defaults | (task or {})}})  # fmt: skip


def same_path(slides: Path) -> str:
    return "s/0.svs"


def dotted(slides: Path) -> str:
    return "./s/../s/0.svs"


def link(slides: Path) -> str:
    os.symlink(slides / "0.svs", slides / "link.svs")
    return "s/link.svs"


def hard_link(slides: Path) -> str:
    os.link(slides / "0.svs", slides / "hard.svs")
    return "s/hard.svs"


def copy(slides: Path) -> str:
    shutil.copy(slides / "0.svs", slides / "copy.svs")
    return "s/copy.svs"


DUPLICATES = [same_path, dotted, link, hard_link, copy]


@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_a_file_with_two_names_is_reported(
    tmp_path: Path, slides: Path, duplicate: Callable[[Path], str]
) -> None:
    path = duplicate(slides)
    assert check(config_of(tmp_path, c=base())) == []
    twice = config_of(tmp_path, c=[*base(), ("dup", "p99", path, "test", 0)])
    (found,) = check(twice)
    assert "'s0' (patient p0, split train" in found
    assert "'dup' (patient p99, split test" in found
    other = [("x0", "q0", path, "test", 0), ("x1", "q1", "s/18.svs", "test", 1)]
    (found,) = check(config_of(tmp_path, {"external": ["b"]}, c=base(), b=other))
    assert "cohorts c and b" in found
    assert "with different patients" in found


def test_two_cohorts_with_the_same_sheet_are_no_problem(tmp_path: Path, slides: Path) -> None:
    config = config_of(tmp_path, c=base())
    data = config.model_dump(mode="json")
    data["cohorts"]["b"] = data["cohorts"]["c"]
    assert check(parse(data)) == []


def test_a_loop_of_links_is_a_missing_file(tmp_path: Path, slides: Path) -> None:
    os.symlink(slides / "loop.svs", slides / "loop.svs")
    found = check(config_of(tmp_path, c=[*base(), ("x", "p99", "s/loop.svs", "test", 0)]))
    assert len(found) == 1
    assert "loop.svs does not exist" in found[0]


def test_content_keys_detect_changes_at_the_start_and_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 20 * SAMPLE_BYTES, np.uint8)
    for name, change in (("a", None), ("b", None), ("c", 0), ("d", -1)):
        changed = data.copy()
        if change is not None:
            changed[change] ^= 1
        (tmp_path / name).write_bytes(changed.tobytes())
    keys = [content_key(tmp_path / name) for name in "abcd"]
    assert len(set(keys)) == 3
    assert keys[0] == keys[1]


def test_empty_files_and_images_of_one_hdf5_file_are_not_duplicates(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.touch()
    assert len(set(file_keys(files).values())) == 2
    config = config_of(tmp_path, c=[(f"s{i}", f"p{i}", f"a.h5#{i}", "train", 0) for i in range(3)])
    (tmp_path / "a.h5").write_bytes(b"x")
    assert not [problem for problem in check(config) if "one file" in problem]


def other_hospital() -> list[Row]:
    return [(f"b{i}", f"p{i}", f"s/{18 + i}.svs", "test", i % 2) for i in range(2)]


def test_patient_ids_in_two_cohorts_of_a_task_are_reported(tmp_path: Path, slides: Path) -> None:
    both = {"cohorts": ["c", "b"]}
    found, *_ = check(config_of(tmp_path, both, c=base(), b=other_hospital()))
    assert "have 2 patient ids in common (p0, p1)" in found
    assert "patient_ids" in found


def test_local_patient_ids_are_of_other_patients(tmp_path: Path, slides: Path) -> None:
    local = (other_hospital(), {"patient_ids": "local"})
    config = config_of(tmp_path, {"cohorts": ["c", "b"]}, c=base(), b=local)
    assert check(config) == []
    assert list(read_sheet(config, "b")["patient_id"]) == ["b:p0", "b:p1"]
    external = config_of(tmp_path, {"external": ["b"]}, c=base(), b=local)
    assert check(external) == []


def test_a_shared_patient_id_in_two_splits_is_reported(tmp_path: Path, slides: Path) -> None:
    shared = {"patient_ids": "shared"}
    config = config_of(
        tmp_path, {"cohorts": ["c", "b"]}, c=(base(), shared), b=(other_hospital(), shared)
    )
    (found,) = check(config)
    assert "p0" in found  # trains in one, tests in the other
    assert "split" in found


def test_slide_barcodes_as_patient_ids_are_refused(tmp_path: Path) -> None:
    rows = [(f"s{i}", f"TCGA-AA-{i:04d}-01Z-00-DX1", f"s/{i}.svs", "train", 0) for i in range(3)]
    found = "\n".join(check(config_of(tmp_path, c=rows)))
    assert "patient_id is 'TCGA-AA-0000-01Z-00-DX1': it is a sample or slide barcode" in found


def test_patient_ids_in_a_training_and_a_test_cohort_of_an_encoder_are_reported(
    tmp_path: Path, slides: Path
) -> None:
    config = config_of(tmp_path, c=base(), b=other_hospital())
    assert check(config) == []  # nothing uses both
    data = config.model_dump(mode="json")
    data["encoders"]["e"] = {"method": "simclr", "train": {"cohorts": ["b"], "splits": ["test"]}}
    data["heads"]["mean"] = {"kind": "mean"}
    data["benchmarks"]["main"] = {"tasks": ["t"], "encoders": ["e"], "heads": ["mean"]}
    (found,) = check(parse(data))
    assert "cohorts c and b have 2 patient ids in common" in found
