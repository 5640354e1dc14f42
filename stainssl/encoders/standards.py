"""The stain, or stains, that tiles are normalized to before given weights see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    return _read(normalizer, file, lambda content: [content.get("fallback", content)])[0]


def standards(normalizer: str, files: Sequence[Path | None]) -> StainProfile:
    """All profiles of some files: K of them, where a `target.json` has those that it chose.

    Args:
        normalizer: by which tiles are normalized.
        files: as `standard` takes them.

    Raises:
        StainsslError: as `standard`.
    """
    found = [
        StainProfile.reference(normalizer).batched()
        if file is None
        else _read(normalizer, file, _chosen)
        for file in files
    ]
    return StainProfile.cat(found)


def _chosen(content: dict[str, Any]) -> list[Any]:
    """The stains that a target chose; its mean where it chose none; else the profile itself."""
    chosen = [one["profile"] for one in content.get("candidates", [])]
    return chosen or [content.get("fallback", content)]


def _read(
    normalizer: str, file: Path, parts: Callable[[dict[str, Any]], list[Any]]
) -> StainProfile:
    """Profiles of a file as a batch, of those parts of its content that hold some."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = StainProfile.cat([profile_from_json(one) for one in parts(content)])
    except FileNotFoundError:
        raise StainsslError(f"{file}: no such stain profile.") from None
    except Exception as error:  # JSON, and arrays of another shape or family
        raise StainsslError(
            f"{file} has no stain profile ({first_line(error)}): give a target.json or a "
            "stain.json."
        ) from error
    if found.method != normalizer or not bool(found.valid.all()):
        raise StainsslError(
            f"{file} has a {found.method} profile, but tiles are normalized by {normalizer}: "
            f"set normalizer: {found.method}, or give another file."
        )
    return found
