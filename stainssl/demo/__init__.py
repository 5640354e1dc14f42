"""Synthetic cohort: H&E-like slides with known morphology, stain and labels.

Everything is drawn from a seed. Labels depend on the morphology alone; the stain is a confounder:
its strength increases with the share of tumour at training sites and decreases with it at test
sites, so that a model that relies on color fails there.
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
    """Write the cohort to `root`: `slides.csv`, `slides/`, `truth/` and `demo.json`.

    Args:
        root: output folder; an existing one is replaced once all slides are written.
        seed: the only source of randomness; the same seed gives the same bytes.
        patients: number of patients per site, e.g. `{"a": 10, "b": 10, "c": 12}`.
        processes: number of slides rendered in parallel.
        side_px: side of a slide in level-0 px (0.5 µm/px); a multiple of 256.

    Raises:
        ValueError: `side_px` is not a positive multiple of 256, or a site's name or number of
            patients is invalid.
    """
    from stainssl.demo.build import build

    build(Path(root), seed, patients, processes, side_px)
