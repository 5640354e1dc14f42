"""One file under two names and one patient in two cohorts are told before any job."""

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


def base(first: str = "s") -> list[Row]:
    roles = ["train"] * 12 + ["test"] * 6
    return [(f"{first}{i}", f"p{i}", f"s/{i}.svs", role, i % 2) for i, role in enumerate(roles)]


def config_of(folder: Path, task: dict[str, Any] | None = None, **sheets: Any) -> Config:
    cohorts = {}
    for name, given in sheets.items():
        rows, keys = given if isinstance(given, tuple) else (given, {})
        pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / f"{name}.csv", index=False)
        cohorts[name] = {"sheet": str(folder / f"{name}.csv"), "root": str(folder), **keys}
    asked = {"level": "patient", "label": "her2", "cohorts": ["c"], "split": {"kind": "sheet"}}
    return parse({"results": str(folder / "r"), "cohorts": cohorts,
                  "tasks": {"t": asked | (task or {})}})  # fmt: skip


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


WAYS = [same_path, dotted, link, hard_link, copy]


@pytest.mark.parametrize("again", WAYS)
def test_one_file_twice_is_told(tmp_path: Path, slides: Path, again: Callable[[Path], str]) -> None:
    path = again(slides)
    assert check(config_of(tmp_path, c=base())) == []
    twice = config_of(tmp_path, c=[*base(), ("dup", "p99", path, "test", 0)])
    (found,) = check(twice)
    assert "'s0' (patient p0, split train" in found
    assert "'dup' (patient p99, split test" in found
    other = [("x0", "q0", path, "test", 0), ("x1", "q1", "s/18.svs", "test", 1)]
    (found,) = check(config_of(tmp_path, {"external": ["b"]}, c=base(), b=other))
    assert "cohorts c and b" in found
    assert "with different patients" in found


def test_a_cohort_that_is_tiled_in_two_ways_is_no_problem(tmp_path: Path, slides: Path) -> None:
    config = config_of(tmp_path, c=base())
    data = config.model_dump(mode="json")
    data["cohorts"]["b"] = data["cohorts"]["c"]
    assert check(parse(data)) == []


def test_a_loop_of_links_is_a_file_that_does_not_exist(tmp_path: Path, slides: Path) -> None:
    os.symlink(slides / "loop.svs", slides / "loop.svs")
    found = check(config_of(tmp_path, c=[*base(), ("x", "p99", "s/loop.svs", "test", 0)]))
    assert len(found) == 1
    assert "loop.svs does not exist" in found[0]


def test_contents_are_compared_by_blocks_spread_over_the_file(tmp_path: Path) -> None:
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


def test_empty_files_and_pictures_of_one_file_are_not_one(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.touch()
    assert len(set(file_keys(files).values())) == 2
    config = config_of(tmp_path, c=[(f"s{i}", f"p{i}", f"a.h5#{i}", "train", 0) for i in range(3)])
    (tmp_path / "a.h5").write_bytes(b"x")
    assert not [sentence for sentence in check(config) if "one file" in sentence]


def other_hospital() -> list[Row]:
    return [(f"b{i}", f"p{i}", f"s/{18 + i}.svs", "test", i % 2) for i in range(2)]


def test_ids_in_two_cohorts_are_asked_about(tmp_path: Path, slides: Path) -> None:
    both = {"cohorts": ["c", "b"]}
    found, *_ = check(config_of(tmp_path, both, c=base(), b=other_hospital()))
    assert "have 2 patient ids in common (p0, p1)" in found
    assert "patient_ids" in found


def test_ids_of_a_cohort_of_its_own_are_other_people(tmp_path: Path, slides: Path) -> None:
    local = (other_hospital(), {"patient_ids": "local"})
    config = config_of(tmp_path, {"cohorts": ["c", "b"]}, c=base(), b=local)
    assert check(config) == []
    assert list(read_sheet(config, "b")["patient_id"]) == ["b:p0", "b:p1"]
    external = config_of(tmp_path, {"external": ["b"]}, c=base(), b=local)
    assert check(external) == []


def test_ids_that_are_shared_are_one_patient_in_one_split(tmp_path: Path, slides: Path) -> None:
    shared = {"patient_ids": "shared"}
    config = config_of(
        tmp_path, {"cohorts": ["c", "b"]}, c=(base(), shared), b=(other_hospital(), shared)
    )
    (found,) = check(config)
    assert "p0" in found  # trains in one, tests in the other
    assert "split" in found


def test_slide_barcodes_are_no_patients(tmp_path: Path) -> None:
    rows = [(f"s{i}", f"TCGA-AA-{i:04d}-01Z-00-DX1", f"s/{i}.svs", "train", 0) for i in range(3)]
    found = "\n".join(check(config_of(tmp_path, c=rows)))
    assert "patient_id is 'TCGA-AA-0000-01Z-00-DX1': it is a sample or slide barcode" in found


def test_ids_are_asked_about_where_an_encoder_is_trained_in_one_and_tested_in_the_other(
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
