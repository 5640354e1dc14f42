"""Read errors are a fault of the slide (its status), or of the machine (OSError)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from stainssl.errors import SlideError, Status
from stainssl.slides.errors import (
    ENVIRONMENT_ERRNOS,
    environment_errno,
    present_file,
    require_file,
    translate_errors,
)


@pytest.mark.parametrize("number", sorted(ENVIRONMENT_ERRNOS))
def test_errors_of_the_machine_are_recognised_by_number_and_message(number: int) -> None:
    assert environment_errno(OSError(number, "x")) == number
    assert environment_errno(RuntimeError(f"Couldn't read: {os.strerror(number)}")) == number


def test_memory_errors_are_of_the_machine_and_others_of_the_slide() -> None:
    assert environment_errno(MemoryError()) == errno.ENOMEM
    assert environment_errno(OSError(errno.EINVAL, "x")) is None
    assert environment_errno(ValueError("Bogus marker length")) is None


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("Unsupported TIFF compression: 52479", Status.UNSUPPORTED),
        ("Short read of file", Status.TRUNCATED),
        ("image file is truncated (3 bytes not processed)", Status.TRUNCATED),
        ("Bogus marker length", Status.UNREADABLE),
    ],
)
def test_status_is_derived_from_the_message_of_a_library(
    tmp_path: Path, message: str, status: Status
) -> None:
    path = tmp_path / "slide.svs"
    path.write_bytes(b"x")
    with pytest.raises(SlideError) as caught, translate_errors(path, "reading"):
        raise RuntimeError(message)
    assert caught.value.status is status
    assert message in caught.value.detail


def test_a_slide_error_is_not_translated_again(tmp_path: Path) -> None:
    with pytest.raises(SlideError) as caught, translate_errors(tmp_path, "reading"):
        raise SlideError(Status.NO_MPP, "No pixel size.")
    assert caught.value.status is Status.NO_MPP


def test_a_file_missing_from_a_folder_with_other_files_is_missing(tmp_path: Path) -> None:
    (tmp_path / "other.svs").touch()
    with pytest.raises(SlideError) as caught:
        require_file(tmp_path / "gone.svs", tmp_path)
    assert caught.value.status is Status.MISSING
    with pytest.raises(SlideError):  # in a subfolder that was never downloaded
        require_file(tmp_path / "uuid" / "gone.svs", tmp_path)


def test_a_file_that_disappears_while_it_is_required_is_missing(tmp_path: Path) -> None:
    (tmp_path / "other.txt").touch()
    slide = tmp_path / "a.svs"
    slide.write_bytes(b"x")
    raised = pytest.raises(SlideError, match="disappeared while being read")
    with raised as caught, present_file(slide, tmp_path):
        slide.unlink()
        slide.read_bytes()
    assert caught.value.status is Status.MISSING


def test_another_missing_file_does_not_make_a_slide_missing(tmp_path: Path) -> None:
    slide = tmp_path / "a.svs"
    slide.write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="elsewhere"), present_file(slide, tmp_path):
        (tmp_path / "elsewhere").read_bytes()


@pytest.mark.parametrize("path", ["gone.svs", "mount/gone.svs"])
def test_a_missing_or_empty_root_raises_oserror(tmp_path: Path, path: str) -> None:
    with pytest.raises(OSError, match="mounted"):
        require_file(tmp_path / "root" / path, tmp_path / "root")
    (tmp_path / "root" / path).parent.mkdir(parents=True)
    with pytest.raises(OSError, match="mounted"):
        require_file(tmp_path / "root" / path, tmp_path / "root")


def test_an_empty_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").touch()
    with pytest.raises(SlideError) as caught:
        require_file(tmp_path / "empty.svs", tmp_path)
    assert caught.value.status is Status.UNREADABLE
    (tmp_path / "full.svs").write_bytes(b"x")
    require_file(tmp_path / "full.svs", tmp_path)
