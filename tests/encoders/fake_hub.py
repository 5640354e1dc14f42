"""A Hugging Face cache in a folder, with the layout of huggingface_hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants

COMMITS = ("0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98")


def cache(folder: Path, monkeypatch) -> Path:
    """An empty folder set as the cache of huggingface_hub; downloads are disabled."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder / "hub"


def put(
    folder: Path, repository: str, file: str, content: bytes, commit: str, ref: str = "main"
) -> Path:
    """Add a file of a repository as after downloading `commit`, which `ref` then points to."""
    own = folder / f"models--{repository.replace('/', '--')}"
    path = own / "snapshots" / commit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    (own / "refs").mkdir(exist_ok=True)
    (own / "refs" / ref).write_text(commit)
    return path
