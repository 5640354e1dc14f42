"""Write the synthetic cohort: slides, ground truth, sheet, and a record of the settings."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2

import stainssl
from stainssl.demo.plan import SlidePlan, plan, sheet
from stainssl.demo.render import render
from stainssl.demo.scene import MPP, draw_scene
from stainssl.demo.svs import write_svs
from stainssl.demo.truth import write_truth
from stainssl.runtime.children import end_with_parent
from stainssl.stores.atomic import replacing

log = logging.getLogger(__name__)

Written = tuple[str, int, float]  # slide_id, bytes, seconds

SCHEMA = 1
MAGNIFICATION = 20
TRUNCATED_AT = 0.6  # share of the file that is kept


def _write_slide(root: Path, seed: int, side_px: int, slide: SlidePlan) -> Written:
    """Render and write one slide with its ground truth; return its id, bytes and seconds."""
    cv2.setNumThreads(1)
    start = time.perf_counter()
    scene = draw_scene(slide, seed, side_px)
    path = root / "slides" / f"{slide.slide_id}.svs"
    no_scale = slide.fault == "no-mpp"
    write_svs(
        path,
        render(scene, slide, seed),
        quality=slide.site_parameters.jpeg_quality,
        mpp=None if no_scale else MPP,
        magnification=None if no_scale else MAGNIFICATION,
    )
    if slide.fault == "truncated":
        os.truncate(path, int(path.stat().st_size * TRUNCATED_AT))
    write_truth(root / "truth", scene, slide, seed)
    return slide.slide_id, path.stat().st_size, time.perf_counter() - start


def _record(seed: int, patients: Mapping[str, int], side_px: int, slides: list[SlidePlan]) -> str:
    """Content of `demo.json`: settings of the cohort, and fault and artefact of each slide."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "version": stainssl.__version__,
            "seed": seed,
            "patients": dict(sorted(patients.items())),
            "side_px": side_px,
            "mpp": MPP,
            "slides": {
                s.slide_id: {
                    "fault": s.fault,
                    "artefact": s.artefact,
                    "tumour_share": round(s.tumour_share, 4),
                    **s.site_parameters.as_dict(),
                }
                for s in slides
            },
        },
        indent=1,
    )


def _each(
    write: Callable[[SlidePlan], Written], slides: list[SlidePlan], processes: int
) -> Iterator[Written]:
    """Yield the results of `write` for all slides, in order; in parallel if `processes` > 1."""
    if processes <= 1:
        yield from map(write, slides)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, context, initializer=end_with_parent, initargs=(os.getpid(),)
    ) as pool:
        yield from pool.map(write, slides)


def build(root: Path, seed: int, patients: Mapping[str, int], processes: int, side_px: int) -> None:
    """Write the cohort; see `stainssl.demo.make`."""
    slides = plan(seed, patients)
    with replacing(root) as made:
        for folder in ("slides", "truth"):
            (made / folder).mkdir(parents=True)
        sheet(seed, patients).to_csv(made / "slides.csv", index=False)
        write = partial(_write_slide, made, seed, side_px)
        for i, (slide_id, size, seconds) in enumerate(_each(write, slides, processes), start=1):
            log.info("%d of %d: %s, %.1f MB, %.1f s", i, len(slides), slide_id, size / 1e6, seconds)
        (made / "demo.json").write_text(_record(seed, patients, side_px, slides), encoding="utf-8")
