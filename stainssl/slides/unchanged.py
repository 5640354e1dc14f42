"""Detection of slides that were replaced since they were tiled, regardless of their time stamps.

A copy may have an older time stamp (`rsync -t`), so that nothing is recomputed. Its tiles would be
read at positions of the previous slide without an error.
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pandas as pd

from stainssl.errors import SlideError, Status
from stainssl.runtime.content import content_key
from stainssl.slides.hdf5_patch import file_of
from stainssl.slides.slide import Slide


@dataclass(frozen=True)
class SlideFingerprint:
    """Fingerprint of a slide file.

    Attributes:
        size_bytes: size of the file; 0 for a folder, and for an image in an HDF5 file.
        content: hash of the size and of blocks spread over the file; "" in these cases.
        levels: sizes of the levels as JSON.
    """

    size_bytes: int
    content: str
    levels: str

    @classmethod
    def of(cls, path: Path, slide: Slide) -> Self:
        """Compute the fingerprint of an open slide.

        Raises:
            OSError: the file cannot be read.
        """
        levels = json.dumps(list(slide.level_sizes_px))
        file = file_of(path)
        if not file.is_file() or file != Path(path):
            return cls(0, "", levels)
        try:
            key = content_key(file)
        except OSError as error:
            raise OSError(errno.EIO, "cannot be read again", str(file)) from error
        return cls(file.stat().st_size, key.hex(), levels)

    def require(self, path: Path, slide: Slide) -> None:
        """Check that an open slide has this fingerprint.

        Raises:
            SlideError: `changed`, with the difference.
            OSError: the file cannot be read.
        """
        now = SlideFingerprint.of(path, slide)
        if now == self:
            return
        said = {"levels": "levels", "size_bytes": "bytes", "content": "content"}
        key = next(key for key in said if getattr(now, key) != getattr(self, key))
        what = f"{said[key]} {getattr(now, key)}, not {getattr(self, key)}"
        raise SlideError(
            Status.CHANGED,
            f"{path} has changed since it was tiled ({what}): touch the file, and its part will be "
            "tiled again.",
        )


NOT_OPENED = SlideFingerprint(0, "", "[]")


def recorded(qc: pd.DataFrame) -> dict[str, SlideFingerprint]:
    """Slide → fingerprint when it was tiled, for the slides in a `qc` table that were opened."""
    if "content" not in qc:
        return {}
    columns = (qc[name] for name in ("slide_id", "size_bytes", "content", "levels"))
    return {
        str(slide): SlideFingerprint(int(size_bytes), str(content), str(levels))
        for slide, size_bytes, content, levels in zip(*columns, strict=True)
        if levels != NOT_OPENED.levels
    }
