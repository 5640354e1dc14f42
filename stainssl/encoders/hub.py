"""What of the hub is in this machine's cache, and which commit of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

COMMIT = re.compile("[0-9a-f]{40}")
FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")  # timm's names


def cached(repository: str, files: Iterable[str], revision: str | None = None) -> Path | None:
    """The first of some files of a repository that is in the cache of this machine.

    Args:
        repository: OWNER/NAME.
        revision: a commit, tag or branch; None: `main`, as it was when last asked for.
    """
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, file, revision=revision) for file in files)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def commit_of(file: Path) -> str | None:
    """The commit of a file in the cache, whose layout is `snapshots/COMMIT/FILE`."""
    folders = file.parts
    return folders[folders.index("snapshots") + 1] if "snapshots" in folders[:-2] else None


def commit(repository: str, files: Iterable[str], revision: str | None = None) -> str | None:
    """The commit at which a repository's weights are in the cache; None: they are not."""
    if revision and COMMIT.fullmatch(revision):
        return revision
    file = cached(repository, files, revision)
    return commit_of(file) if file else None


def has_token() -> bool:
    """Whether this machine has a token of the hub, without which nothing gated is downloaded."""
    from huggingface_hub import get_token

    return get_token() is not None


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids downloads."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
