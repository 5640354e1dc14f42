"""`import`: write the embeddings of a part from feature files of CLAM or TRIDENT."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stainssl.errors import SlideError, StainsslError
from stainssl.export.read import Features, read_slide
from stainssl.export.source import source
from stainssl.stores.embeddings import write_embeddings

log = logging.getLogger(__name__)


def run(text: str, slides: list[str], encoder: str, path: Path) -> None:
    """Write the embeddings of some slides from feature files.

    Slides without a file, or with a damaged one, are left out with a warning. If no slide has a
    file, the store is empty.

    Args:
        text: `clam:FOLDER` or `trident:FOLDER`.
        slides: names of the slides.
        encoder: name of the encoder, recorded in the store.
        path: output store.

    Raises:
        StainsslError: the folder does not exist, or the dimension of the features differs between
            slides.
    """
    tool, folder = source(text)
    found = dict(_found(slides, tool, folder))
    _write(path, found, {"encoder": encoder, "source": text})
    log.info("%s: %d of %d slides imported from %s", path.stem, len(found), len(slides), text)


def _found(slides: list[str], tool: str, folder: Path) -> Iterator[tuple[str, Features]]:
    for slide in slides:
        try:
            features = read_slide(tool, folder, slide)
        except SlideError as error:
            log.warning("%s: left out: %s", slide, error.detail)
            continue
        if features is None:
            log.warning("%s: left out: %s has no feature file for it", slide, folder)
        else:
            yield slide, features


def _write(path: Path, found: dict[str, Features], settings: dict[str, str]) -> None:
    widths = {slide: one.features.shape[1] for slide, one in found.items()}
    if len(set(widths.values())) > 1:
        first = {width: slide for slide, width in reversed(widths.items())}
        told = ", ".join(f"{width} ({slide})" for width, slide in sorted(first.items()))
        raise StainsslError(f"{settings['source']}: features have several dimensions: {told}.")
    counts = [len(one.features) for one in found.values()]
    xy = np.concatenate([np.empty((0, 2), np.int64), *(f.xy_level0_px for f in found.values())])
    write_embeddings(
        path,
        slide_id=list(found),
        counts=counts,
        dim=max(widths.values(), default=0),
        blocks=(_half(slide, one) for slide, one in found.items()),
        tile=np.concatenate([np.arange(n, dtype=np.int32) for n in (0, *counts)]),
        x=xy[:, 0],
        y=xy[:, 1],
        settings=settings,
    )


def _half(slide: str, one: Features) -> np.ndarray:
    """Convert to (N, D) float16; embeddings that overflow become NaN, as in `embed`."""
    with np.errstate(over="ignore"):
        half = one.features.astype(np.float16)
    bad = np.logical_not(np.isfinite(half).all(axis=1))
    half[bad] = np.nan
    if bad.any():
        log.warning("%s: %d of %d embeddings overflow float16", slide, bad.sum(), len(half))
    return half
