"""Messages for files that are not slides, or only part of one."""

from __future__ import annotations

import pytest

from stainssl.errors import SlideError, Status
from stainssl.slides.readers import open_slide


def _refused(path):
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    return caught.value


@pytest.mark.parametrize(("content", "message"), [
    (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "name the one without '._'"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    (b"\n<!DOCTYPE html><html><body>Sign in", "web page, perhaps of a login"),
    (b"<HTML>", "web page"), (b"%PDF-1.7\n", "PDF"), (b"PK\x03\x04\x14", "zip archive: unpack"),
    (b"\x1f\x8b\x08", "gzip archive: unpack"), (b"no slide", "No reader recognises a.svs"),
])  # fmt: skip
def test_files_that_are_not_slides_are_identified(tmp_path, content, message):
    path = tmp_path / "a.svs"
    path.write_bytes(content + bytes(300))
    found = _refused(path)
    assert found.status is Status.UNSUPPORTED
    assert message in str(found)


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "a.svs").mkdir()
    assert "a.svs is a folder" in str(_refused(tmp_path / "a.svs"))


@pytest.mark.parametrize(("name", "folder"), [("a.mrxs", "a"), ("A.MRXS", "A"), ("b.vsi", "_b_")])
def test_a_slide_without_its_image_folder_is_refused(tmp_path, name, folder):
    path = tmp_path / name
    path.write_bytes(b"\xff\xd8\xff" + bytes(300))  # an MRXS is a small JPEG
    found = _refused(path)
    assert found.status is Status.UNREADABLE
    assert f"needs the folder {folder}/ with its images" in str(found)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "Slidedat.ini").touch()
    assert "needs the folder" not in str(_refused(path))
