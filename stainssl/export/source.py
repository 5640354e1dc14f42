"""Find the files that an encoder's key `features` refers to, without reading them.

Imports neither torch nor h5py, so that configs can be checked before any job.
"""

from __future__ import annotations

from pathlib import Path

from stainssl.errors import StainsslError

FILES = {  # possible paths of a slide's file in the folder given by the user
    "clam": ("h5_files/{}.h5", "{}.h5", "pt_files/{}.pt", "{}.pt"),
    "trident": ("{}.h5",),
}


def source(text: str) -> tuple[str, Path]:
    """Split `clam:FOLDER` or `trident:FOLDER` into the tool and the folder.

    Raises:
        StainsslError: the tool is unknown, or the folder does not exist.
    """
    tool, _, folder = text.partition(":")
    if tool not in FILES or not folder:
        raise StainsslError(f"{text!r}: expected one of {', '.join(f'{t}:FOLDER' for t in FILES)}.")
    if not Path(folder).is_dir():
        raise StainsslError(f"{text}: the folder {folder} does not exist: is its disk mounted?")
    return tool, Path(folder)


def feature_files(text: str, slides: list[str]) -> dict[str, Path]:
    """Find the feature file of each slide that has one (slide → file).

    Args:
        text: `clam:FOLDER` or `trident:FOLDER`.
        slides: names of the slides.

    Raises:
        StainsslError: see `source`.
    """
    tool, folder = source(text)
    found = ((slide, feature_file(tool, folder, slide)) for slide in slides)
    return {slide: file for slide, file in found if file is not None}


def feature_file(tool: str, folder: Path, slide_id: str) -> Path | None:
    """Find a slide's feature file; None if the folder has none."""
    files = (folder / name.format(slide_id) for name in FILES[tool])
    return next((path for path in files if path.is_file()), None)
