"""Write STAMP's feature files and tables.

El Nahhas et al. 2024; github.com/KatherLab/STAMP, 2.x.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stainssl.export.clam import create_resizable_dataset
from stainssl.export.slide import ExportedSlide
from stainssl.export.tables import Tables
from stainssl.stores.atomic import replacing
from stainssl.stores.hdf5 import new_hdf5

FILES = "features/*.h5"  # of slides, as the tool reads them
LAYOUT = "2.1.0"  # version of STAMP with this layout; STAMP refuses files of newer versions


def write_slide(folder: Path, slide: ExportedSlide) -> None:
    """Write `features/{slide}.h5`.

    `feats` is (N, D), of the dtype of `slide.features`; `coords` is (N, 2) float32, left and top
    in µm.
    """
    path = folder / "features" / f"{slide.slide_id}.h5"
    with new_hdf5(path) as h5:
        create_resizable_dataset(h5, "feats", slide.features)
        create_resizable_dataset(
            h5, "coords", (slide.xy_level0_px * slide.level0_mpp).astype(np.float32)
        )
        h5.attrs.update({
            "stamp_version": LAYOUT, "extractor": slide.encoder, "unit": "um",
            "tile_size_um": slide.tile_px * slide.tile_mpp, "tile_size_px": slide.tile_px,
            "code_hash": "stainssl", "feat_type": "tile",
        })  # fmt: skip


def write_tables(folder: Path, tables: Tables) -> None:
    """Write `slide.csv` (`PATIENT`, `FILENAME`) and `clini.csv` (`PATIENT`, labels)."""
    files = tables.slides["slide_id"] + ".h5"
    slides = pd.DataFrame({"PATIENT": tables.slides["patient_id"], "FILENAME": files})
    with replacing(folder / "slide.csv") as made:
        slides.to_csv(made, index=False)
    with replacing(folder / "clini.csv") as made:
        tables.patients.rename(columns={"patient_id": "PATIENT"}).to_csv(made, index=False)
