"""Folders of tile images, whose sub-folders may be sites, patients or labels."""

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
NAMED = 5  # examples per message


@dataclass(frozen=True)
class TileFolder:
    """The tiles of a folder.

    Attributes:
        root: the folder.
        table: one row per tile, in order of the paths: `path` (relative to `root`), `name` (the
            path without the site's folder), `site`, `patient_id`, `label`; "" if unknown.
        levels: meaning of the levels of sub-folders, of `LEVELS`.
        others: suffix of other files → number of files.
    """

    root: Path
    table: pd.DataFrame
    levels: tuple[str, ...]
    others: Counter[str]


def find_tiles(
    root: Path, levels: Sequence[str] | None = None, without: Sequence[Path] = ()
) -> TileFolder:
    """Find the image files in a folder and its sub-folders, except hidden ones.

    Args:
        root: the folder.
        levels: meaning of each level of sub-folders, of `LEVELS`; deeper levels are ignored. By
            default, the first level is the site if all tiles are in sub-folders.
        without: files to leave out, e.g. results written to the same folder.

    Raises:
        StainsslError: the folder is missing or has no images, a tile is in fewer levels of
            sub-folders than given, or a level is unknown or given twice.
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
    """Refuse tiles that are in fewer levels of sub-folders than given."""
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
    """Read an image file: (H, W, 3) uint8 RGB.

    Raises:
        SlideError: the file is not an image that can be read.
        OSError: the disk or mount failed.
    """
    image = open_file(path)
    width, height = image.level_sizes_px[0]
    return image.read_region(0, 0, 0, (width, height))


def check_tiles(root: Path, paths: Sequence[str]) -> tuple[int, dict[str, str]]:
    """Read every tile once, to check that they are square and of one size.

    Args:
        root: folder of the tiles.
        paths: paths relative to `root`.

    Returns:
        Side of the tiles in px, and path → reason for tiles that cannot be read.

    Raises:
        StainsslError: no tile can be read, or the tiles have several sizes or are not square.
        OSError: the disk or mount failed.
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
