"""Stain profiles that tiles are normalized to as preprocessing of pretrained weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stainssl.encoders.tensors import first_line
from stainssl.errors import StainsslError
from stainssl.stain import StainProfile
from stainssl.stain.targets import profile_from_json


def stain_profile(normalizer: str, file: Path | None) -> StainProfile:
    """Load one stain profile.

    Args:
        normalizer: method of the stain normalization.
        file: a `stain.json`, or a `target.json`, whose mean profile is taken; None: the profile
            published with the normalizer.

    Raises:
        StainsslError: the file does not exist, or has no valid profile of the normalizer.
    """
    if file is None:
        return StainProfile.reference(normalizer)
    return _read(normalizer, file, lambda content: [content.get("fallback", content)])[0]


def stain_profiles(normalizer: str, files: Sequence[Path | None]) -> StainProfile:
    """Load the profiles of several files as one batch of K.

    Args:
        normalizer: method of the stain normalization.
        files: as `file` of `stain_profile`, but a `target.json` gives all profiles that it chose.

    Raises:
        StainsslError: as `stain_profile`.
    """
    found = [
        StainProfile.reference(normalizer).batched()
        if file is None
        else _read(normalizer, file, _chosen)
        for file in files
    ]
    return StainProfile.cat(found)


def _chosen(content: dict[str, Any]) -> list[Any]:
    """The profiles that a target chose, or its mean if it chose none; else the profile itself."""
    chosen = [one["profile"] for one in content.get("candidates", [])]
    return chosen or [content.get("fallback", content)]


def _read(
    normalizer: str, file: Path, parts: Callable[[dict[str, Any]], list[Any]]
) -> StainProfile:
    """The profiles in a file as a batch; `parts` selects them from its content."""
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
