"""Figures of slides: tissue mask and tiles of a slide, and contact sheet of a cohort."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from matplotlib import get_data_path
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image, ImageDraw, ImageFont

# Okabe & Ito 2008: distinguishable by color-blind readers, and unlike the colors of H&E.
OUTLINE, KEPT, DROPPED, INK = (
    (0, 114, 178),
    (0, 158, 115),
    (230, 159, 0),
    (240, 228, 66),
)
PANEL_PX = 480  # longest side of an image in a panel
MIN_SIDE_PX = 6  # smallest tile drawn as a square; smaller ones are drawn as crosses
CROSS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # px offsets from the centre of the tile
MAX_PICTURES = 40  # in a contact sheet
SCALE_BARS_MM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
TITLE_PX, TEXT_PX = 14, 12  # font sizes of a preview
MARGIN_PX, HEAD_PX, FOOT_PX = 10, 35, 55  # space around its images
DPI = 100


def _shrink(thumbnail: np.ndarray) -> tuple[np.ndarray, float]:
    """Resize an image to a longest side of `PANEL_PX`; return it and result px per source px."""
    scale = PANEL_PX / max(thumbnail.shape[:2])
    size_px = tuple(max(1, round(length * scale)) for length in thumbnail.shape[1::-1])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return cv2.resize(thumbnail, size_px, interpolation=way), scale


def outline(picture: np.ndarray, mask: np.ndarray, color: Sequence[int], width_px: int) -> None:
    """Draw the borders of a bool mask on an image (h, w, 3) uint8, in place.

    Args:
        picture: image to draw on.
        mask: mask of the same field of view, at any resolution.
        color: RGB, 0-255.
        width_px: line width.
    """
    size_px = picture.shape[1::-1]
    large = cv2.resize(mask.astype(np.uint8), size_px, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, color, width_px, cv2.LINE_AA)


def shade(picture: np.ndarray, mask: np.ndarray, color: Sequence[int], share: float) -> None:
    """Blend a color into an image (h, w, 3) uint8 inside a bool mask, in place.

    Args:
        picture: image to draw on.
        mask: mask of the same field of view, at any resolution.
        color: RGB, 0-255.
        share: weight of the color, 0-1.
    """
    size_px = picture.shape[1::-1]
    large = cv2.resize(mask.astype(np.uint8), size_px, interpolation=cv2.INTER_NEAREST) > 0
    picture[large] = (picture[large] * (1 - share) + np.array(color) * share).astype(np.uint8)


def _squares(picture: np.ndarray, boxes: np.ndarray, kept: np.ndarray) -> None:
    """Draw tiles on an image; dropped ones first, so that kept ones are on top."""
    boxes = np.rint(boxes).astype(int)
    is_large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= MIN_SIDE_PX
    for one in (False, True):
        color, mine = (KEPT if one else DROPPED), kept == one
        for x0, y0, x1, y1 in boxes[mine & is_large].tolist():
            cv2.rectangle(picture, (x0 + 1, y0 + 1), (x1 - 1, y1 - 1), color, 1)
        small = boxes[mine & ~is_large]
        _dots(picture, (small[:, :2] + small[:, 2:]) // 2, color)


def _dots(picture: np.ndarray, centres: np.ndarray, color: Sequence[int]) -> None:
    """Draw a small cross at each of the `centres` (n, 2) in px, clipped to the image."""
    places = np.concatenate([centres + step for step in CROSS])
    inside = ((places >= 0) & (places < picture.shape[1::-1])).all(axis=1)
    picture[places[inside, 1], places[inside, 0]] = color


@lru_cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size_px)


def _scale_bar(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], width_px: int, um_per_px: float
) -> None:
    """Draw a scale bar of a round length, at most a third of `width_px`, from `corner`."""
    most_mm = width_px * um_per_px / 1000 / 3
    length_mm = max((mm for mm in SCALE_BARS_MM if mm <= most_mm), default=None)
    if length_mm is None:
        return
    text = f"{length_mm:g} mm" if length_mm >= 1 else f"{length_mm * 1000:g} µm"
    x, y = corner
    draw.rectangle((x, y, x + round(length_mm * 1000 / um_per_px), y + 3), "black")
    draw.text((x, y + 6), text, "black", _font(TEXT_PX))


def _entries(kept: int, dropped: int, has_ink: bool) -> list[tuple[tuple[int, int, int], str]]:
    """Colors and texts of the legend."""
    found = [(OUTLINE, "tissue"), (KEPT, f"{kept} tiles kept"), (DROPPED, f"{dropped} not kept")]
    return [*found, (INK, "ink")] if has_ink else found


def _legend(
    draw: ImageDraw.ImageDraw,
    right_px: int,
    y: int,
    entries: Sequence[tuple[tuple[int, int, int], str]],
) -> None:
    """Draw the legend in a row that ends at `right_px` and is vertically centred on `y`."""
    font, x = _font(TEXT_PX), right_px - _length(entries)
    for color, text in entries:
        draw.rectangle((x, y - 5, x + 10, y + 5), None, color, 2)
        draw.text((x + 16, y), text, "black", font, "lm")
        x += _length([(color, text)])


def _length(entries: Sequence[tuple[tuple[int, int, int], str]]) -> int:
    """Width of legend entries in px."""
    return sum(32 + math.ceil(_font(TEXT_PX).getlength(text)) for _, text in entries)


def preview(
    thumbnail: np.ndarray,
    tissue: np.ndarray,
    ink: np.ndarray,
    mpp: float,
    tiles: pd.DataFrame,
    slide_mpp: float,
    origin_level0_px: tuple[int, int],
    title: str,
) -> Image.Image:
    """Draw a slide beside the same with its tissue mask and tiles.

    Pillow is used because matplotlib takes as long for this as the tiling of a small slide, and
    blocks other threads meanwhile.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        tissue, ink: (h, w) bool masks.
        mpp: µm/px of the thumbnail and the masks.
        tiles: `x`, `y`, `side` (level-0 px), `kept`.
        slide_mpp: µm/px of level 0.
        origin_level0_px: x and y of the thumbnail's top left corner.
        title: name, status and pixel size of the slide.

    Returns:
        An image about 1,000 px wide, or as wide as its text.
    """
    plain, scale = _shrink(thumbnail)
    marked = plain.copy()
    shade(marked, ink, INK, 0.6)
    corner = tiles[["x", "y"]].to_numpy(float) - np.array(origin_level0_px, float)
    boxes = np.hstack([corner, corner + tiles[["side"]].to_numpy(float)])
    kept = tiles["kept"].to_numpy(bool)
    _squares(marked, boxes * (slide_mpp / mpp * scale), kept)
    outline(marked, tissue, OUTLINE, 2)
    entries = _entries(int(kept.sum()), int((~kept).sum()), bool(ink.any()))
    return _framed((plain, marked), title, entries, mpp / scale)


def _framed(
    pictures: tuple[np.ndarray, np.ndarray],
    title: str,
    entries: Sequence[tuple[tuple[int, int, int], str]],
    um_per_px: float,
) -> Image.Image:
    """Two images of the same size side by side, with title, scale bar and legend."""
    (height, width), font = pictures[0].shape[:2], _font(TITLE_PX)
    words_px = max(math.ceil(font.getlength(title)), _length(entries))
    right = MARGIN_PX + max(2 * width + MARGIN_PX, words_px)
    canvas = Image.new("RGB", (right + MARGIN_PX, HEAD_PX + height + FOOT_PX), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN_PX, HEAD_PX // 2), title, "black", font, "lm")
    for left, picture in zip((MARGIN_PX, width + 2 * MARGIN_PX), pictures, strict=True):
        canvas.paste(Image.fromarray(picture), (left, HEAD_PX))
    _scale_bar(draw, (MARGIN_PX, HEAD_PX + height + 8), width, um_per_px)
    _legend(draw, right, canvas.height - 16, entries)
    return canvas


def _spread(names: list[str], most: int) -> list[str]:
    """At most `most` of the names, evenly spaced in their order."""
    if len(names) <= most:
        return names
    return [names[i] for i in np.linspace(0, len(names) - 1, most).round().astype(int)]


def overview(pictures: Mapping[str, np.ndarray | None], statuses: Mapping[str, str]) -> Figure:
    """Draw a contact sheet of previews.

    Args:
        pictures: slide → (h, w, 3 or 4) image, or None to show only the slide's status.
        statuses: status of every slide of the cohort, also counted in the title.
    """
    columns = min(4, max(1, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    figure = Figure(figsize=(3.6 * columns, 2.3 * rows + 0.6), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (name, picture) in zip(grid.flat, pictures.items(), strict=False):
        axes.set_title(f"{name}: {statuses[name]}", fontsize=9)
        if picture is not None:
            axes.imshow(picture)
        else:
            axes.text(0.5, 0.5, statuses[name], ha="center", va="center", fontsize=14)
    counts = pd.Series(list(statuses.values()), dtype=str).value_counts()
    found = ", ".join(f"{count} {status}" for status, count in counts.items())
    shown = f" ({len(pictures)} shown)" if len(pictures) < len(statuses) else ""
    figure.suptitle(f"Tissue and tiles of {len(statuses)} slides{shown}: {found}")
    return figure


def tissue_overview(previews: Mapping[str, Path], statuses: Mapping[str, str], path: Path) -> None:
    """Write a contact sheet of a cohort's previews, at most `MAX_PICTURES`, evenly spaced.

    Args:
        previews: slide → its preview. A usable slide without a preview is not shown, since only
            some patches have one.
        statuses: slide → status.
        path: PNG file to write.
    """
    folders = {file.parent for file in previews.values()}
    there = {file for folder in folders if folder.is_dir() for file in folder.iterdir()}
    drawn = {name: file for name, file in previews.items() if file in there}
    worth = [name for name, status in statuses.items() if name in drawn or status != "ok"]
    pictures = {
        name: imread(drawn[name]) if name in drawn else None
        for name in _spread(worth, MAX_PICTURES)
    }
    overview(pictures, statuses).savefig(path)
