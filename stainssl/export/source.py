"""Which feature files an encoder's `features` names; light, for checks before any job."""

from __future__ import annotations

from pathlib import Path

from stainssl.errors import StainsslError

FILES = {  # where a slide's file may be, below the folder that a user would name
    "clam": ("h5_files/{}.h5", "{}.h5", "pt_files/{}.pt", "{}.pt"),
    "trident": ("{}.h5",),
}


def source(text: str) -> tuple[str, Path]:
    """`clam:FOLDER` or `trident:FOLDER` → the tool and the folder.

    Raises:
        StainsslError: another tool, or the folder does not exist.
    """
    tool, _, folder = text.partition(":")
    if tool not in FILES or not folder:
        raise StainsslError(f"{text!r}: expected one of {', '.join(f'{t}:FOLDER' for t in FILES)}.")
    if not Path(folder).is_dir():
        raise StainsslError(f"{text}: the folder {folder} does not exist: is its disk mounted?")
    return tool, Path(folder)


def feature_files(text: str, slides: list[str]) -> dict[str, Path]:
    """Slide → its feature file, for the slides that have one.

    Args:
        text: `clam:FOLDER` or `trident:FOLDER`.

    Raises:
        StainsslError: as `source`.
    """
    tool, folder = source(text)
    found = ((slide, feature_file(tool, folder, slide)) for slide in slides)
    return {slide: file for slide, file in found if file is not None}


def feature_file(tool: str, folder: Path, slide_id: str) -> Path | None:
    """The file that holds a slide's features, where the folder has one."""
    files = (folder / name.format(slide_id) for name in FILES[tool])
    return next((path for path in files if path.is_file()), None)
