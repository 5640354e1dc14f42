"""Accuracy of the detection of tissue, ink and blur on the synthetic cohort with known truth.

    OMP_NUM_THREADS=1 python benchmarks/tissue.py DEMO [--out tissue.json]

DEMO is the folder written by `stainssl demo`. Areas are compared at the resolution of the truth,
8 µm/px. Pixels under ink, where the truth about tissue is unknown, are only used for ink. Blur is
evaluated on tiles with at least half tissue and little ink. A tile is out of focus if at least half
of it is, and in focus if none of it is out of focus.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stainssl.config import Tiling
from stainssl.errors import SlideError
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_thumbnail
from stainssl.slides.tiling import TileLimits, area_shares, grid, tile_table
from stainssl.slides.tissue import MASKERS, TissueMap, segment_tissue

MPP = 8.0
DEMO_MPP = 0.5
AIMS = {
    "tissue IoU, mean": ("at least", 0.92),
    "tissue IoU, worst": ("at least", 0.80),
    "ink called tissue": ("at most", 0.03),
    "out of focus flagged": ("at least", 0.90),
    "in focus flagged": ("at most", 0.05),
    "fat kept": ("at least", 0.80),
}


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks, 1 if both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def tiles_of(slide: Any, tissue: TissueMap, truth: dict[str, np.ndarray]) -> pd.DataFrame:
    """The tiles of a slide with `true_NAME`, the share of each tile in each true mask."""
    tiling = Tiling()
    squares = grid(slide.bounds_level0_px, DEMO_MPP, tiling.mpp, tiling.size)
    limits = TileLimits(tiling.min_tissue, **tiling.filters.model_dump())
    tiles = tile_table(slide, DEMO_MPP, squares, tissue, limits)
    corner = tiles[["x", "y"]].to_numpy() * (DEMO_MPP / MPP)
    boxes = np.hstack([corner, corner + tiles[["side"]].to_numpy() * (DEMO_MPP / MPP)])
    shares = {f"true_{name}": area_shares(truth[name], boxes) for name in truth}
    return tiles.assign(**shares)


def measure(path: Path, truth_file: Path, masker: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """Results of the masks of one slide, and its tiles."""
    truth = {name: mask.astype(bool) for name, mask in np.load(truth_file).items()}
    with open_slide(path) as slide:
        thumbnail = read_thumbnail(slide, MPP, DEMO_MPP)
        found = segment_tissue(thumbnail, MPP, masker)
        tiles = tiles_of(slide, found, truth)
    pen, fat = truth["pen"], truth["fat"] & ~truth["pen"]
    row = {
        "slide": path.stem,
        "iou": iou(found.tissue & ~pen, truth["tissue"] & ~pen),
        "pen_px": int(pen.sum()),
        "pen_as_tissue_px": int((found.tissue & pen).sum()),
        "fat_px": int(fat.sum()),
        "fat_kept_px": int((found.tissue & fat).sum()),
    }
    return row, tiles.assign(slide=path.stem)


def summary(slides: pd.DataFrame, tiles: pd.DataFrame) -> dict[str, float]:
    """Results over all slides, including those in `AIMS`."""
    seen = tiles[(tiles["tissue"] >= 0.5) & (tiles["pen"] <= 0.1)]
    blurred = seen["true_out_of_focus"] >= 0.5
    sharp = seen["true_out_of_focus"] == 0
    flagged = seen["reason"] == "blur"
    total = slides.sum(numeric_only=True)
    tissue = slides[slides["fat_px"] > 0] if len(slides) else slides
    return {
        "slides": len(slides),
        "tissue IoU, mean": float(slides["iou"].mean()),
        "tissue IoU, worst": float(slides["iou"].min()),
        "ink called tissue": total["pen_as_tissue_px"] / max(total["pen_px"], 1),
        "out of focus flagged": float(flagged[blurred].mean()),
        "in focus flagged": float(flagged[sharp].mean()),
        "fat kept": total["fat_kept_px"] / max(total["fat_px"], 1),
        "fat kept, worst slide": float((tissue["fat_kept_px"] / tissue["fat_px"]).min()),
    }


def evaluate(demo: Path, masker: str) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame]:
    """Summary, a table of slides and a table of tiles, for the slides that can be read."""
    rows, frames = [], []
    for path in sorted((demo / "slides").glob("*.svs")):
        try:
            row, tiles = measure(path, demo / "truth" / f"{path.stem}.npz", masker)
        except SlideError:
            continue  # the cohort's truncated slide
        rows.append(row)
        frames.append(tiles)
    slides, tiles = pd.DataFrame(rows), pd.concat(frames, ignore_index=True)
    return summary(slides, tiles), slides, tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, default=Path("tissue.json"))
    options = parser.parse_args()
    found = {masker: evaluate(options.demo, masker)[0] for masker in ("stain", *MASKERS)}
    print(pd.DataFrame(found).round(3).to_string())
    for name, (way, aim) in AIMS.items():
        value = found["stain"][name]
        met = value >= aim if way == "at least" else value <= aim
        print(f"{name}: {value:.3f}, {way} {aim}: {'met' if met else 'NOT MET'}")
    options.out.write_text(json.dumps({"by_masker": found, "aims": AIMS}, indent=1))


if __name__ == "__main__":
    main()
