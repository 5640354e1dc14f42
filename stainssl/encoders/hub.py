"""Weights in the local cache of the Hugging Face Hub, and their commits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

COMMIT = re.compile("[0-9a-f]{40}")
FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")  # timm's names


def cached(repository: str, files: Iterable[str], revision: str | None = None) -> Path | None:
    """Path of the first of a repository's files that is in the local cache; None if none is.

    Args:
        repository: OWNER/NAME.
        files: file names in the repository.
        revision: commit, tag or branch; None: `main` as it was when last requested.
    """
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, file, revision=revision) for file in files)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def commit_of(file: Path) -> str | None:
    """Commit of a cached file, from its path `…/snapshots/COMMIT/FILE`; None for other paths."""
    folders = file.parts
    return folders[folders.index("snapshots") + 1] if "snapshots" in folders[:-2] else None


def commit(repository: str, files: Iterable[str], revision: str | None = None) -> str | None:
    """Commit of a repository's cached weights; None if they are not cached.

    A `revision` that is a commit is returned as it is, cached or not.
    """
    if revision and COMMIT.fullmatch(revision):
        return revision
    file = cached(repository, files, revision)
    return commit_of(file) if file else None


def has_token() -> bool:
    """Whether this machine has a hub token, which downloads of gated weights need."""
    from huggingface_hub import get_token

    return get_token() is not None


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` disables downloads."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
