"""Given weights as a config names them: which files they are, and whether these have changed."""

from __future__ import annotations

from pathlib import Path

from stainssl.runtime.content import content_key

LOCAL, HUB, TIMM = "local-dir:", "hf-hub:", "timm:"
FILE = "@"  # ARCHITECTURE@FILE, RECIPE@FILE or RECIPE@FOLDER
STANDARD = "stain.json"  # in a model's folder: the stain that its tiles are normalized to
SAMPLES = 16  # blocks of a file by which weights are told from others


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

    The digest is `content_key` of sixteen blocks, so that a file of gigabytes costs a megabyte of
    reading; a time stamp plays no part, since copying changes it.
    """
    files = [path for path in weight_files(weights) if path.is_file()]
    digests = [f"{path.name} {content_key(path, SAMPLES).hex()[:16]}" for path in files]
    size = [f"at {input_size} px"] if input_size else []
    return " ".join([weights, *digests, *size])
