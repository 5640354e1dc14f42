"""Write TRIDENT's job folder (Zhang et al. 2025; github.com/mahmoodlab/TRIDENT, trident/IO.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stainssl.export.clam import create_resizable_dataset
from stainssl.export.slide import ExportedSlide
from stainssl.export.tables import Tables
from stainssl.stores.hdf5 import new_hdf5

FILES = "*/features_{encoder}/*.h5"  # of slides, as the tool reads them
UM_AT_1X = 10.0  # µm/px at 1x: TRIDENT's 20x is 0.5 µm/px


def magnification(mpp: float) -> int | float:
    """TRIDENT's magnification for a scale in µm/px: an integer if one is within 2 %."""
    exact = UM_AT_1X / mpp
    return round(exact) if abs(exact - round(exact)) <= 0.02 * exact else round(exact, 2)


def coords_folder(folder: Path, slide: ExportedSlide) -> Path:
    """TRIDENT's folder for a magnification, tile size and overlap."""
    mag = magnification(slide.tile_mpp)
    return folder / f"{mag}x_{slide.tile_px}px_{slide.overlap_px}px_overlap"


def write_slide(folder: Path, slide: ExportedSlide) -> None:
    """Write `{mag}x_{px}px_{overlap}px_overlap/features_{encoder}/{slide}.h5` and `…/patches/`.

    `features` is (N, D) float32. `coords` is (N, 2) int64, left and top in level-0 px, with the
    attributes that TRIDENT's `read_coords` and slide encoders need.
    """
    base = coords_folder(folder, slide)
    path = base / f"features_{slide.encoder}" / f"{slide.slide_id}.h5"
    with new_hdf5(path) as h5:
        features = create_resizable_dataset(h5, "features", slide.features.astype(np.float32))
        features.attrs.update({"name": slide.slide_id, "savetodir": str(path.parent)})
        create_resizable_dataset(h5, "coords", slide.xy_level0_px).attrs.update(
            _attributes(slide, base)
        )
    path = base / "patches" / f"{slide.slide_id}_patches.h5"
    with new_hdf5(path) as h5:
        create_resizable_dataset(h5, "coords", slide.xy_level0_px).attrs.update(
            _attributes(slide, base)
        )


def _attributes(slide: ExportedSlide, base: Path) -> dict[str, int | float | str]:
    return {
        "patch_size": slide.tile_px,
        "patch_size_level0": round(slide.side_level0_px),
        "level0_magnification": magnification(slide.level0_mpp),
        "target_magnification": magnification(slide.tile_mpp),
        "overlap": slide.overlap_px,
        "name": slide.slide_id,
        "savetodir": str(base / "patches"),
        "level0_width": slide.size_level0_px[0],
        "level0_height": slide.size_level0_px[1],
    }


def write_tables(folder: Path, tables: Tables) -> None:
    """Do nothing: TRIDENT has no table of labels."""
