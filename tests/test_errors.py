"""Messages when a disk or a library fails."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from stainssl.config import parse
from stainssl.errors import MAX_DETAIL, SlideError, StainsslError, Status, disk_sentence
from stainssl.stages import folds, run_stage


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_with_folder_and_free_space(tmp_path: Path, number: int) -> None:
    message = disk_sentence(OSError(number, "as the library says"), tmp_path / "results" / "deep")
    assert f"{tmp_path}: " in message
    assert "GB free" in message
    assert "run again" in message
    assert "\n" not in message


def test_a_read_only_disk_is_not_reported_as_full(tmp_path: Path) -> None:
    message = disk_sentence(OSError(errno.EROFS, "as the library says"), tmp_path / "results")
    assert f"Read-only file system: {tmp_path}. " in message
    assert "GB free" not in message


def test_a_stage_with_a_full_disk_ends_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folds, "run", full)
    config = parse({
        "results": str(tmp_path / "results"), "cohorts": {"d": {"demo": {}}},
        "tasks": {"t": {"level": "patient", "label": "her2", "cohorts": ["d"],
                        "split": {"kind": "sheet"}}},
    })  # fmt: skip
    with pytest.raises(StainsslError, match=r"No space left on device\. .* GB free"):
        run_stage("folds", config, "t")


def test_other_errors_are_not_disk_errors(tmp_path: Path) -> None:
    assert disk_sentence(FileNotFoundError(errno.ENOENT, "gone", "x"), tmp_path) == ""


def test_the_message_of_a_library_is_one_line_of_limited_length() -> None:
    error = SlideError(Status.UNREADABLE, "in a.cpp:\n  line 1\n\tline 2  \n" + "x" * 1000)
    assert error.detail.startswith("in a.cpp: line 1 line 2 xxx")
    assert len(error.detail) == MAX_DETAIL
    assert SlideError(Status.EMPTY, "No tissue.").detail == "No tissue."
