"""Failures of a slide, the disk or the process while several slides are processed in parallel."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stainssl.config import Config, dump, parse
from stainssl.errors import StainsslError
from stainssl.runtime import parallel
from stainssl.slides import errors
from stainssl.slides.errors import translate_errors
from stainssl.slides.readers.patches import PatchFile
from stainssl.stages import run_stage
from stainssl.stores import atomic
from stainssl.stores.pixels import JpegSpool, _JpegWriter, open_pixels
from stainssl.stores.tiles import read_qc

SIZE, COUNT, THREADS = 64, 8, 3
NAMES = [f"t{number}" for number in range(COUNT)]
PART = ("c", "all-0000")
KILLED = f"""
import os, signal, sys
from pathlib import Path
from stainssl.config import load
from stainssl.runtime.parallel import set_job_threads
from stainssl.slides.readers.patches import PatchFile
from stainssl.stages import run_stage
read = PatchFile.read_region
def kill(slide, *words):
    if slide.path.name == "t4.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return read(slide, *words)
PatchFile.read_region = kill
set_job_threads({THREADS})
run_stage(sys.argv[1], load(Path(sys.argv[2])), *{PART!r})
"""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    parallel.set_job_threads(THREADS)
    yield
    parallel.set_job_threads(1)


@pytest.fixture
def config(tmp_path: Path, rng: np.random.Generator) -> Config:
    """More patches than threads, not tiled yet."""
    for name in NAMES:
        image = rng.integers(60, 220, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    rows = [{"slide_id": n, "patient_id": "p", "path": f"{n}.png"} for n in NAMES]
    pd.DataFrame(rows).to_csv(tmp_path / "sheet.csv", index=False)
    cohort = {"sheet": str(tmp_path / "sheet.csv"), "root": str(tmp_path), "kind": "patches"}
    return parse({
        "results": str(tmp_path / "results"), "slides": {"part_size": 100},
        "cohorts": {"c": cohort}, "tilings": {"default": {"mpp": 1.0, "size": SIZE}},
    })  # fmt: skip


def _files(config: Config) -> dict[str, bytes]:
    """Content of the result files, except qc, which has run times."""
    files = [path for path in config.results.rglob("*") if path.is_file()]
    return {
        str(p.relative_to(config.results)): p.read_bytes() for p in files if "qc" not in p.parts
    }


def _slide_ids(config: Config, stage: str) -> list[str]:
    """Slides for which a stage produced output."""
    paths = config.paths
    if stage == "pixels":
        return open_pixels(paths.pixels("c", "all-0000")).slide_id
    qc = read_qc(paths.qc("c", "all-0000"))
    return qc.loc[qc["status"] == "ok", "slide_id"].tolist()


@pytest.mark.parametrize("stage", ["tile", "pixels"])
def test_hanging_slides_do_not_affect_the_others(
    config: Config, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Two slides hang, so that two of three threads wait at the same time."""
    read, release = PatchFile.read_region, threading.Event()

    def hang(slide: PatchFile, *words: Any) -> np.ndarray:
        if slide.path.name in ("t1.png", "t2.png"):
            with translate_errors(slide.path, "reading"):
                release.wait()
        return read(slide, *words)

    if stage == "pixels":
        run_stage("tile", config, *PART)
    monkeypatch.setattr(PatchFile, "read_region", hang)
    monkeypatch.setattr(errors, "CALL_SECONDS", 3.0)
    run_stage(stage, config, *PART)
    release.set()
    assert _slide_ids(config, stage) == ["t0", *NAMES[3:]]


@pytest.mark.parametrize("place", [JpegSpool, _JpegWriter])
def test_a_full_disk_is_reported_and_leaves_no_files(
    config: Config, monkeypatch: pytest.MonkeyPatch, place: type
) -> None:
    """The disk fills while a slide is spooled, and while the store is written."""
    run_stage("tile", config, *PART)
    before = _files(config)
    append, added = place.append, []

    def full(self: Any, data: bytes) -> None:
        added.append(data)
        if len(added) > COUNT // 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, data)

    monkeypatch.setattr(place, "append", full)
    with pytest.raises(StainsslError, match=r"No space left on device.*GB free.*Free space"):
        run_stage("pixels", config, *PART)
    assert _files(config) == before
    monkeypatch.undo()
    run_stage("pixels", config, *PART)
    assert _slide_ids(config, "pixels") == NAMES


@pytest.mark.parametrize("stage", ["tile", "pixels"])
def test_a_part_killed_midway_is_recomputed_byte_for_byte(
    config: Config, tmp_path: Path, stage: str
) -> None:
    if stage == "pixels":
        run_stage("tile", config, *PART)
    before = _files(config)
    (tmp_path / "config.yaml").write_text(dump(config))
    command = [sys.executable, "-c", KILLED, stage, str(tmp_path / "config.yaml")]
    assert subprocess.run(command, check=False).returncode == -9
    whole = {name: data for name, data in _files(config).items() if "/." not in f"/{name}"}
    assert whole == before
    atomic.remove_leftovers.cache_clear()
    run_stage(stage, config, *PART)
    again = _files(config)
    run_stage(stage, config, *PART)
    assert _files(config) == again
    assert _slide_ids(config, stage) == NAMES
    assert not [name for name in again if "/." in f"/{name}"]
