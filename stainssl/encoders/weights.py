"""Given weights as a config names them: which files they are, and whether these have changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

LOCAL, HUB, TIMM = "local-dir:", "hf-hub:", "timm:"
FILE = "@"  # ARCHITECTURE@FILE, RECIPE@FILE or RECIPE@FOLDER
SAMPLE_BYTES = 1 << 16  # of each place that a digest reads
SAMPLES = 16


def weight_files(weights: str) -> list[Path]:
    """The local files of given weights, sorted; none for names that a hub answers."""
    if weights.startswith((HUB, TIMM)):
        return []
    if FILE in weights and not weights.startswith(LOCAL):
        folder = Path(weights.split(FILE, 1)[1])
        if not folder.is_dir():
            return [folder]
    else:
        folder = Path(weights.removeprefix(LOCAL))
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file())


def identity(weights: str, input_size: int | None = None) -> str:
    """The name of given weights, a digest of their files where they are local, and their size.

    The digest is of each file's size and of sixteen samples of it, so that a file of gigabytes
    costs a megabyte of reading; a time stamp plays no part, since copying changes it.
    """
    digests = [_digest(path) for path in weight_files(weights) if path.is_file()]
    size = [f"at {input_size} px"] if input_size else []
    return " ".join([weights, *digests, *size])


def _digest(path: Path) -> str:
    size_bytes = path.stat().st_size
    found = hashlib.sha256(f"{path.name} {size_bytes}".encode())
    with path.open("rb") as file:
        for sample in range(SAMPLES):
            file.seek(max(0, size_bytes - SAMPLE_BYTES) * sample // (SAMPLES - 1))
            found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()[:16]
