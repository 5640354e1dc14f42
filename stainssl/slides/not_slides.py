"""Messages for files that no reader can open: incomplete copies, and files that are not slides."""

from __future__ import annotations

from pathlib import Path

# First bytes, in lower case, of files that are found in place of slides, and what to do.
KINDS: tuple[tuple[bytes, str], ...] = (
    (b"\0\x05\x16\x07", "it is what macOS writes beside a file: name the one without '._'"),
    (b"version https://git-lfs", "it is a pointer of Git LFS: run git lfs pull"),
    (b"<!doctype html", "it is a web page, perhaps of a login that the download needed"),
    (b"<html", "it is a web page, perhaps of a login that the download needed"),
    (b"%pdf", "it is a PDF: export the slide itself"),
    (b"pk\x03\x04", "it is a zip archive: unpack it"),
    (b"\x1f\x8b", "it is a gzip archive: unpack it"),
    (b"7z\xbc\xaf", "it is a 7z archive: unpack it"),
)


def missing_companion(path: Path) -> str | None:
    """Return a message if the data folder of a slide is missing or incomplete, otherwise None.

    It checks formats that consist of a file and a folder: 3DHISTECH MRXS and Olympus VSI.
    """
    beside = {
        ".mrxs": path.with_suffix("") / "Slidedat.ini",
        ".vsi": path.with_name(f"_{path.stem}_"),
    }
    wanted = beside.get(path.suffix.lower())
    if wanted is None or not path.is_file() or wanted.exists():
        return None
    folder = wanted.parent if wanted.suffix else wanted
    return (
        f"{path.name} needs the folder {folder.name}/ with its images, which is missing beside it"
        " or incomplete: copy it, too."
    )


def what_it_is(path: Path) -> str:
    """Describe a file that no reader recognises, with what to do if known."""
    if path.is_dir():
        return f"{path.name} is a folder: give the slide file inside it."
    if not path.is_file():
        return f"{path.name} is not a file."
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if kind := next((said for first, said in KINDS if start.startswith(first)), ""):
        return f"{path.name} is not a slide: {kind}."
    return f"No reader recognises {path.name}: it is not a slide."
