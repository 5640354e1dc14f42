"""The synthetic cohort: H&E-like slides whose morphology, stain and labels are known.

Slides are drawn by a documented rule from a seed: tissue first, labels from the tissue, stain
last. Labels depend on morphology alone. At the training sites stain goes with the amount of
tumour, at the test sites against it, so that a model that reads color fails there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stainssl.demo.plan import PATIENTS, sheet

__all__ = ["PATIENTS", "make", "sheet"]


def make(
    root: Path,
    seed: int = 0,
    patients: Mapping[str, int] = PATIENTS,
    processes: int = 1,
    side_px: int = 3072,
) -> None:
    """Write the cohort under `root`: `slides.csv`, `slides/`, `truth/` and `demo.json`.

    Args:
        root: folder to make; whatever was there is replaced once all slides are written.
        seed: the only source of chance; the same seed gives the same bytes.
        patients: patients per site, e.g. `{"a": 10, "b": 10, "c": 12}`.
        processes: slides rendered at the same time.
        side_px: side of a slide in level-0 px of 0.5 µm; a multiple of 256.

    Raises:
        ValueError: `side_px` is no positive multiple of 256, or a site's name or count is bad.
    """
    from stainssl.demo.build import build

    build(Path(root), seed, patients, processes, side_px)
