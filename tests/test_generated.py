"""Generated files are up to date; no file contains an index address or a local path."""

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from tools.generated import ROOT, files


def differing_from_lock() -> list[str]:
    """Distributions in the lock that are not installed, or in another version."""
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.M)
    return [name for name, pin in pins if _version(name) != pin]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name).split("+")[0]  # e.g. torch 2.12.1+cpu
    except metadata.PackageNotFoundError:
        return None


@pytest.mark.skipif(bool(differing_from_lock()), reason="they are written by the lock's versions")
@pytest.mark.parametrize("path", list(files()), ids=str)
def test_generated_files_are_up_to_date(path: Path) -> None:
    assert (ROOT / path).read_text() == files()[path], "run `make lock`"


def test_no_file_contains_an_index_address_or_a_local_path() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not listed:
        pytest.skip("not a git clone")
    pattern = re.compile(r"index-url|find-links|file://|/root/|/home/\w+/|/work/")
    this = Path(__file__).relative_to(ROOT)
    texts = [p for p in map(Path, listed) if p.suffix not in {".png", ".svg"} and p != this]
    found = [
        str(path)
        for path in texts
        if (ROOT / path).exists() and pattern.search((ROOT / path).read_text(errors="replace"))
    ]
    assert [f for f in found if f != "Makefile"] == []
