"""A cache of the hub in a folder, laid out as huggingface_hub lays it out."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants

COMMITS = ("0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98")


def cache(folder: Path, monkeypatch) -> Path:
    """An empty cache that huggingface_hub takes for this machine's; nothing is downloaded."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder / "hub"


def put(
    folder: Path, repository: str, file: str, content: bytes, commit: str, ref: str = "main"
) -> Path:
    """A file of a repository as it is after a download of a commit, to which `ref` points then."""
    own = folder / f"models--{repository.replace('/', '--')}"
    path = own / "snapshots" / commit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    (own / "refs").mkdir(exist_ok=True)
    (own / "refs" / ref).write_text(commit)
    return path
