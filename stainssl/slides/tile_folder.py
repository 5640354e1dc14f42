"""A folder of tile images: which files are tiles, and what the folders that they lie in say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.errors import SlideError, StainsslError
from stainssl.slides.readers.patches import open_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
SITE, PATIENT, LABEL, IGNORED = LEVELS = ("site", "patient", "label", "-")
COLUMNS = {SITE: "site", PATIENT: "patient_id", LABEL: "label"}
NAMED = 5  # examples in a message


@dataclass(frozen=True)
class TileFolder:
    """The tiles of a folder.

    Attributes:
        root: the folder.
        table: a row a tile: `path` (relative to the root), `name` (the same without the site's
            folder), `site`, `patient_id`, `label`; "" where the folders do not say. In order of
            the paths.
        levels: what the levels of sub-folders were taken as.
        others: files that are no image by their ending → how many.
    """

    root: Path
    table: pd.DataFrame
    levels: tuple[str, ...]
    others: Counter[str]


def find_tiles(
    root: Path, levels: Sequence[str] | None = None, without: Sequence[Path] = ()
) -> TileFolder:
    """The image files of a folder and its sub-folders; hidden ones are passed over.

    Args:
        root: the folder.
        levels: what each level of sub-folders is, of `LEVELS`; deeper ones say nothing. None: the
            first is the site, if there are sub-folders.
        without: files that are no tiles: the results, where they are written among them.

    Raises:
        StainsslError: there is no such folder, or no image in it; a file lies less deep than the
            levels; a level is unknown or named twice.
    """
    if not root.is_dir():
        raise StainsslError(f"{root}: this folder of tiles does not exist.")
    _check_levels(levels or ())
    results = {path.absolute() for path in without}
    shown = (p for p in sorted(root.rglob("*")) if _is_shown(p, root))
    files = [path.relative_to(root) for path in shown if path.absolute() not in results]
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    endings = Counter(path.suffix.lower() or "no ending" for path in files)
    others = Counter({ending: n for ending, n in endings.items() if ending not in SUFFIXES})
    if not paths:
        found = ", ".join(f"{n} {ending}" for ending, n in others.most_common(NAMED)) or "no file"
        raise StainsslError(
            f"{root}: no tiles found ({found}). Tiles are image files ({', '.join(SUFFIXES)}), in "
            "the folder or in sub-folders."
        )
    if levels is None:
        levels = [SITE] if all(len(path.parts) > 1 for path in paths) else []
    _check_depth(root, paths, levels)
    return TileFolder(root, _table(paths, levels), tuple(levels), others)


def _is_shown(path: Path, root: Path) -> bool:
    return path.is_file() and not any(p.startswith(".") for p in path.relative_to(root).parts)


def _check_levels(levels: Sequence[str]) -> None:
    if unknown := [level for level in levels if level not in LEVELS]:
        raise StainsslError(
            f"--folders: {unknown[0]!r} is not one of {', '.join(LEVELS)}: name the levels of"
            " sub-folders, such as site/patient."
        )
    named = [level for level in levels if level != IGNORED]
    if len(set(named)) < len(named):
        raise StainsslError("--folders: a level is named twice.")


def _check_depth(root: Path, paths: Sequence[Path], levels: Sequence[str]) -> None:
    """Refuse tiles that lie less deep than the levels that are said."""
    if short := [path for path in paths if len(path.parts) <= len(levels)]:
        raise StainsslError(
            f"--folders {'/'.join(levels)}: {len(short)} of {len(paths)} tiles of {root} are not"
            f" in {len(levels)} levels of sub-folders: {_some(short)}. Move them, or name fewer"
            " levels."
        )


def _table(paths: Sequence[Path], levels: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame({"path": [path.as_posix() for path in paths]})
    site = levels.index(SITE) if SITE in levels else len(levels)
    parts = [path.parts for path in paths]
    table["name"] = ["/".join([*p[:site], *p[site + (SITE in levels) :]]) for p in parts]
    for place, level in enumerate(levels):
        if level != IGNORED:
            table[COLUMNS[level]] = [p[place] for p in parts]
    for column in COLUMNS.values():
        if column not in table:
            table[column] = ""
    return table


def _some(paths: Sequence[object]) -> str:
    more = ", …" if len(paths) > NAMED else ""
    return ", ".join(map(str, paths[:NAMED])) + more


def read_tile(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an image file.

    Raises:
        SlideError: it cannot be read as one.
    """
    image = open_file(path)
    width, height = image.level_sizes_px[0]
    return image.read_region(0, 0, 0, (width, height))


def check_tiles(root: Path, paths: Sequence[str]) -> tuple[int, dict[str, str]]:
    """Open every tile once: their size, and which of them cannot be read.

    Args:
        root: their folder.
        paths: relative to it.

    Returns:
        Side in px, and path → reason of those that cannot be read.

    Raises:
        StainsslError: none can be read; they are of several sizes, or not square.
    """
    sizes: dict[tuple[int, int], list[str]] = {}
    unread: dict[str, str] = {}
    for path in paths:
        try:
            height, width = read_tile(root / path).shape[:2]
        except SlideError as error:
            unread[path] = error.detail
        else:
            sizes.setdefault((width, height), []).append(path)
    if not sizes:
        first = next(iter(unread.items()), ("", "no tile"))
        raise StainsslError(
            f"{root}: none of {len(paths)} tiles can be read; {first[0]}: {first[1]}"
        )
    return _one_side(root, sizes), unread


def _one_side(root: Path, sizes: dict[tuple[int, int], list[str]]) -> int:
    if len(sizes) > 1:
        found = sorted(sizes.items(), key=lambda item: -len(item[1]))
        told = "; ".join(f"{w}×{h} px: {len(of)}, such as {of[0]}" for (w, h), of in found[:NAMED])
        raise StainsslError(
            f"{root}: tiles have {len(sizes)} sizes ({told}). Resized to the network's input, they "
            "would differ in scale: use tiles of one size."
        )
    [(width, height)] = sizes
    if width != height:
        raise StainsslError(
            f"{root}: tiles are {width}×{height} px. Networks need squares: crop them first."
        )
    return width
