"""The stain that tiles are normalized to before given weights see them."""

from __future__ import annotations

import json
from pathlib import Path

from stainssl.encoders.tensors import first_line
from stainssl.errors import StainsslError
from stainssl.stain import StainProfile
from stainssl.stain.targets import profile_from_json


def standard(normalizer: str, file: Path | None) -> StainProfile:
    """A profile for every tile.

    Args:
        normalizer: by which tiles are normalized.
        file: a `stain.json`, or a `target.json`, whose mean of tiles is taken; None: the profile
            that was published with the normalizer.

    Raises:
        StainsslError: there is no such file, or it holds no profile of that normalizer.
    """
    if file is None:
        return StainProfile.reference(normalizer)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = profile_from_json(content.get("fallback", content))
    except FileNotFoundError:
        raise StainsslError(f"{file}: no such file of a stain profile.") from None
    except Exception as error:  # JSON, and arrays of another shape or family
        raise StainsslError(
            f"{file} holds no stain profile ({first_line(error)}): name a target.json or a "
            "stain.json."
        ) from error
    if found.method != normalizer or not bool(found.valid.all()):
        raise StainsslError(
            f"{file} holds a profile of {found.method}, and tiles are normalized by {normalizer}: "
            f"set normalizer: {found.method}, or name another file."
        )
    return found
