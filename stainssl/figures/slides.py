"""Pictures of slides: what is tissue, where the tiles are, and a cohort at a glance."""

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

# Okabe and Ito's palette: told apart by color-blind readers, and none is a color of H&E.
OUTLINE, KEPT, DROPPED, INK = (
    (0, 114, 178),
    (0, 158, 115),
    (230, 159, 0),
    (240, 228, 66),
)
PANEL_PX = 480  # longest side of a panel's picture
MIN_SIDE_PX = 6  # of a tile that can be drawn as a square; smaller ones are shaded
CROSS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # px around the middle of a smaller tile
MAX_PICTURES = 40  # in a contact sheet
SCALE_BARS_MM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
TITLE_PX, TEXT_PX = 14, 12  # height of the words of a preview
MARGIN_PX, HEAD_PX, FOOT_PX = 10, 35, 55  # around its pictures
DPI = 100


def _shrink(thumbnail: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture with its longest side at `PANEL_PX`, and result px per thumbnail px."""
    scale = PANEL_PX / max(thumbnail.shape[:2])
    size_px = tuple(max(1, round(length * scale)) for length in thumbnail.shape[1::-1])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return cv2.resize(thumbnail, size_px, interpolation=way), scale


def outline(picture: np.ndarray, mask: np.ndarray, color: Sequence[int], width_px: int) -> None:
    """Draw the borders of a mask (bool, of any size) onto a picture (h, w, 3) uint8 of the same."""
    size_px = picture.shape[1::-1]
    large = cv2.resize(mask.astype(np.uint8), size_px, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, color, width_px, cv2.LINE_AA)


def shade(picture: np.ndarray, mask: np.ndarray, color: Sequence[int], share: float) -> None:
    """Mix `share` (0–1) of a color into a picture (h, w, 3) uint8 where a mask of it is."""
    size_px = picture.shape[1::-1]
    large = cv2.resize(mask.astype(np.uint8), size_px, interpolation=cv2.INTER_NEAREST) > 0
    picture[large] = (picture[large] * (1 - share) + np.array(color) * share).astype(np.uint8)


def _squares(picture: np.ndarray, boxes: np.ndarray, kept: np.ndarray) -> None:
    """Tiles onto a picture: dropped ones first, so that kept ones show where they overlap."""
    boxes = np.rint(boxes).astype(int)
    is_large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= MIN_SIDE_PX
    for one in (False, True):
        color, mine = (KEPT if one else DROPPED), kept == one
        for x0, y0, x1, y1 in boxes[mine & is_large].tolist():
            cv2.rectangle(picture, (x0 + 1, y0 + 1), (x1 - 1, y1 - 1), color, 1)
        small = boxes[mine & ~is_large]
        _dots(picture, (small[:, :2] + small[:, 2:]) // 2, color)


def _dots(picture: np.ndarray, centres: np.ndarray, color: Sequence[int]) -> None:
    """A small cross of a color at each of (n, 2) px, as far as it lies on the picture."""
    places = np.concatenate([centres + step for step in CROSS])
    inside = ((places >= 0) & (places < picture.shape[1::-1])).all(axis=1)
    picture[places[inside, 1], places[inside, 0]] = color


@lru_cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size_px)


def _scale_bar(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], width_px: int, um_per_px: float
) -> None:
    """A bar of a round length, at most a third of a picture wide, below its left corner."""
    most_mm = width_px * um_per_px / 1000 / 3
    length_mm = max((mm for mm in SCALE_BARS_MM if mm <= most_mm), default=None)
    if length_mm is None:
        return
    text = f"{length_mm:g} mm" if length_mm >= 1 else f"{length_mm * 1000:g} µm"
    x, y = corner
    draw.rectangle((x, y, x + round(length_mm * 1000 / um_per_px), y + 3), "black")
    draw.text((x, y + 6), text, "black", _font(TEXT_PX))


def _entries(kept: int, dropped: int, has_ink: bool) -> list[tuple[tuple[int, int, int], str]]:
    """Color and text of the legend's entries."""
    found = [(OUTLINE, "tissue"), (KEPT, f"{kept} tiles kept"), (DROPPED, f"{dropped} not kept")]
    return [*found, (INK, "ink")] if has_ink else found


def _legend(
    draw: ImageDraw.ImageDraw,
    right_px: int,
    y: int,
    entries: Sequence[tuple[tuple[int, int, int], str]],
) -> None:
    """The entries in a row that ends at `right_px` and is centred on `y`."""
    font, x = _font(TEXT_PX), right_px - _length(entries)
    for color, text in entries:
        draw.rectangle((x, y - 5, x + 10, y + 5), None, color, 2)
        draw.text((x + 16, y), text, "black", font, "lm")
        x += _length([(color, text)])


def _length(entries: Sequence[tuple[tuple[int, int, int], str]]) -> int:
    """Px that entries of the legend take."""
    return sum(32 + math.ceil(_font(TEXT_PX).getlength(text)) for _, text in entries)


def preview(
    thumbnail: np.ndarray,
    tissue: np.ndarray,
    pen: np.ndarray,
    mpp: float,
    tiles: pd.DataFrame,
    slide_mpp: float,
    origin_level0_px: tuple[int, int],
    title: str,
) -> Image.Image:
    """A slide beside its tissue mask and tiles.

    Drawn by Pillow: matplotlib takes as long for it as tiling takes for a small slide, and holds
    up other threads meanwhile.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        tissue, pen: (h, w) bool.
        mpp: µm/px of these.
        tiles: `x`, `y`, `side` (level-0 px), `kept`.
        slide_mpp: µm in a level-0 px.
        origin_level0_px: x and y of the thumbnail's corner.
        title: what is known of the slide: its name, status and pixel size.

    Returns:
        A picture some 1,000 px wide, or as wide as its words.
    """
    plain, scale = _shrink(thumbnail)
    marked = plain.copy()
    shade(marked, pen, INK, 0.6)
    corner = tiles[["x", "y"]].to_numpy(float) - np.array(origin_level0_px, float)
    boxes = np.hstack([corner, corner + tiles[["side"]].to_numpy(float)])
    kept = tiles["kept"].to_numpy(bool)
    _squares(marked, boxes * (slide_mpp / mpp * scale), kept)
    outline(marked, tissue, OUTLINE, 2)
    entries = _entries(int(kept.sum()), int((~kept).sum()), bool(pen.any()))
    return _framed((plain, marked), title, entries, mpp / scale)


def _framed(
    pictures: tuple[np.ndarray, np.ndarray],
    title: str,
    entries: Sequence[tuple[tuple[int, int, int], str]],
    um_per_px: float,
) -> Image.Image:
    """Two pictures of one size side by side, with words above and below."""
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
    """At most `most` of the names, evenly spread over their order."""
    if len(names) <= most:
        return names
    return [names[i] for i in np.linspace(0, len(names) - 1, most).round().astype(int)]


def overview(pictures: Mapping[str, np.ndarray | None], statuses: Mapping[str, str]) -> Figure:
    """A contact sheet of previews.

    Args:
        pictures: slide → (h, w, 3 or 4) picture; None: the slide shows its status alone.
        statuses: slide → status; those of all slides are counted in the title.

    Returns:
        The figure.
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
    """Write the contact sheet of a cohort's previews, at most `MAX_PICTURES` spread over it.

    Args:
        previews: slide → its preview. A usable slide whose file does not exist is not shown: of
            many patches some have one.
        statuses: slide → status.
        path: PNG to write.
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
