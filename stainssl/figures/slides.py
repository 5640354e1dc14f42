"""Pictures of slides: what is tissue, where the tiles are, and a cohort at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D

# Okabe and Ito's palette: told apart by color-blind readers, and none is a color of H&E.
OUTLINE, KEPT, DROPPED, INK = (
    (0, 114, 178),
    (0, 158, 115),
    (230, 159, 0),
    (240, 228, 66),
)
PANEL_PX = 480  # longest side of a panel's picture
MIN_SIDE_PX = 6  # of a tile that can be drawn as a square; smaller ones are shaded
MAX_PICTURES = 40  # in a contact sheet
SCALE_BARS_MM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
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
    for one in (False, True):
        color = KEPT if one else DROPPED
        for x0, y0, x1, y1 in np.rint(boxes[kept == one]).astype(int).tolist():
            if min(x1 - x0, y1 - y0) >= MIN_SIDE_PX:
                cv2.rectangle(picture, (x0 + 1, y0 + 1), (x1 - 1, y1 - 1), color, 1)
            else:
                cv2.circle(picture, ((x0 + x1) // 2, (y0 + y1) // 2), 1, color, -1)


def _scale_bar(axes: Axes, shape: tuple[int, ...], um_per_px: float) -> None:
    """A bar of a round length, at most a third of the picture wide."""
    most_mm = shape[1] * um_per_px / 1000 / 3
    length_mm = max((mm for mm in SCALE_BARS_MM if mm <= most_mm), default=None)
    if length_mm is None:
        return
    text = f"{length_mm:g} mm" if length_mm >= 1 else f"{length_mm * 1000:g} µm"
    x0, y = 0.02 * shape[1], 1.03 * shape[0]
    axes.plot(
        [x0, x0 + length_mm * 1000 / um_per_px], [y, y], color="black", lw=3, clip_on=False,
        solid_capstyle="butt",
    )  # fmt: skip
    axes.text(x0, y + 0.02 * shape[0], text, va="top", fontsize=9)


def _rgb(color: Sequence[int]) -> tuple[float, float, float]:
    red, green, blue = (level / 255 for level in color)
    return red, green, blue


def _legend(figure: Figure, kept: int, dropped: int, has_ink: bool) -> None:
    def square(color: Sequence[int], label: str) -> Line2D:
        return Line2D([], [], ls="", marker="s", mfc="none", mec=_rgb(color), mew=2, label=label)

    entries = [
        Line2D([], [], color=_rgb(OUTLINE), lw=2, label="tissue"),
        square(KEPT, f"{kept} tiles kept"),
        square(DROPPED, f"{dropped} not kept"),
    ]
    if has_ink:
        entries.append(square(INK, "ink"))
    figure.legend(handles=entries, loc="lower right", ncols=len(entries), frameon=False, fontsize=9)


def preview(
    thumbnail: np.ndarray,
    tissue: np.ndarray,
    pen: np.ndarray,
    mpp: float,
    tiles: pd.DataFrame,
    slide_mpp: float,
    origin_level0_px: tuple[int, int],
    title: str,
) -> Figure:
    """A slide beside its tissue mask and tiles.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        tissue, pen: (h, w) bool.
        mpp: µm/px of these.
        tiles: `x`, `y`, `side` (level-0 px), `kept`.
        slide_mpp: µm in a level-0 px.
        origin_level0_px: x and y of the thumbnail's corner.
        title: what is known of the slide: its name, status and pixel size.

    Returns:
        A figure at most 1,000 px wide.
    """
    plain, scale = _shrink(thumbnail)
    marked = plain.copy()
    shade(marked, pen, INK, 0.6)
    corner = tiles[["x", "y"]].to_numpy(float) - np.array(origin_level0_px, float)
    boxes = np.hstack([corner, corner + tiles[["side"]].to_numpy(float)])
    _squares(marked, boxes * (slide_mpp / mpp * scale), tiles["kept"].to_numpy(bool))
    outline(marked, tissue, OUTLINE, 2)
    height, width = plain.shape[:2]
    figure = Figure(figsize=((2 * width + 30) / DPI, (height + 90) / DPI), dpi=DPI)
    for column, picture in enumerate((plain, marked)):
        left = (10 + column * (width + 10)) / (2 * width + 30)
        share = width / (2 * width + 30), height / (height + 90)
        axes = figure.add_axes((left, 55 / (height + 90), *share))
        axes.imshow(picture, interpolation="nearest")
        axes.set_axis_off()
        axes.autoscale(False)  # the bar below stretches no panel
        if column == 0:
            _scale_bar(axes, picture.shape, mpp / scale)
    figure.text(0.01, 0.985, title, va="top", fontsize=10)
    kept = int(tiles["kept"].sum())
    _legend(figure, kept, len(tiles) - kept, bool(pen.any()))
    return figure


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
