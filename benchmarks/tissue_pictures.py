"""Picture of the masks of tissue and ink on overviews of real slides.

    python benchmarks/tissue_pictures.py REAL_DATA OUT.jpg

The overviews have no µm/px; 16 µm/px is assumed, which is close for whole slides of this size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from stainssl.figures.slides import INK, OUTLINE, outline, shade
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_thumbnail
from stainssl.slides.tissue import tissue_map

CELL_PX, COLUMNS, MPP = 230, 6, 16.0
SLIDES = {"CMU-1-Small-Region.svs": 0.499, "tcga-cr-7395-01a-01-ts1.svs": 0.5}


def marked(image: np.ndarray, mpp: float) -> np.ndarray:
    """Outline tissue and shade ink on an image, resized to a longer side of `CELL_PX`."""
    found = tissue_map(image, mpp)
    scale = CELL_PX / max(image.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    shade(small, found.ink, INK, 0.6)
    outline(small, found.tissue, OUTLINE, 1)
    return small


def pictures(real_data: Path) -> dict[str, np.ndarray]:
    """Name → marked overview, for the thumbnails and the two real slides."""
    found = {}
    for path in sorted((real_data / "thumbnails").glob("*.[jp][pn]g")):
        slide = open_slide(path, "patches")
        image = slide.read_region(0, 0, 0, slide.level_sizes_px[0])
        found[path.stem] = marked(image, MPP)
    for name, mpp in SLIDES.items():
        slide = open_slide(real_data / "slides" / name)
        found[Path(name).stem] = marked(read_thumbnail(slide, 8.0, mpp), 8.0)
    return found


def sheet(found: dict[str, np.ndarray]) -> Image.Image:
    """All pictures on one sheet with their names."""
    rows = -(-len(found) // COLUMNS)
    out = Image.new("RGB", (COLUMNS * (CELL_PX + 8), rows * (CELL_PX + 24)), "white")
    draw = ImageDraw.Draw(out)
    for number, (name, picture) in enumerate(found.items()):
        x, y = number % COLUMNS * (CELL_PX + 8) + 4, number // COLUMNS * (CELL_PX + 24) + 4
        draw.text((x, y), name[:36], "black")
        out.paste(Image.fromarray(picture), (x, y + 14))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real_data", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    sheet(pictures(options.real_data)).save(options.out, quality=70)


if __name__ == "__main__":
    main()
