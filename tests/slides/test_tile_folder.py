"""Sites, patients and labels from the subfolders of a tile folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stainssl.errors import StainsslError
from stainssl.slides.tile_folder import check_tiles, find_tiles, read_tile


def _write_tiles(folder: Path, *names: str, size: tuple[int, int] = (16, 16)) -> None:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 10 * i, 150)).save(path)


def test_subfolders_are_sites_unless_levels_are_given(tmp_path):
    _write_tiles(tmp_path, "a/p1/x.png", "b/p2/x.JPG", "b/p2/y.tif")
    found = find_tiles(tmp_path)
    assert found.levels == ("site",)
    assert found.table["site"].tolist() == ["a", "b", "b"]
    assert found.table["name"].tolist() == ["p1/x.png", "p2/x.JPG", "p2/y.tif"]
    assert set(found.table["patient_id"]) == {""}
    table = find_tiles(tmp_path, ["label", "patient"]).table
    assert table["label"].tolist() == ["a", "b", "b"]
    assert table["patient_id"].tolist() == ["p1", "p2", "p2"]
    assert set(table["site"]) == {""}
    assert table["name"].tolist() == table["path"].tolist()
    table = find_tiles(tmp_path, ["-", "site"]).table
    assert table["site"].tolist() == ["p1", "p2", "p2"]
    assert table["name"].tolist() == ["a/x.png", "b/x.JPG", "b/y.tif"]


def test_a_folder_without_subfolders_has_no_sites(tmp_path):
    _write_tiles(tmp_path, "x.png", "y.png", ".cache/z.png")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "README").write_text("")
    found = find_tiles(tmp_path)
    assert found.table["path"].tolist() == ["x.png", "y.png"]
    assert set(found.table["site"]) == {""}
    assert found.others == {".txt": 1, "no ending": 1}


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (["site", "patient"], "2 of 3 tiles of .* are not in 2 levels of sub-folders: a/x.png"),
        (["scanner"], "'scanner' is not one of site, patient, label, -"),
        (["site", "site"], "named twice"),
    ],
)
def test_levels_that_do_not_fit_the_folder_are_refused(tmp_path, levels, message):
    _write_tiles(tmp_path, "a/x.png", "b/x.png", "a/p1/y.png")
    with pytest.raises(StainsslError, match=message):
        find_tiles(tmp_path, levels)


def test_tiles_beside_subfolders_have_no_site(tmp_path):
    _write_tiles(tmp_path, "x.png", "a/y.png")
    assert set(find_tiles(tmp_path).table["site"]) == {""}


def test_a_folder_without_tiles_is_refused_with_its_contents(tmp_path):
    with pytest.raises(StainsslError, match=r"no tiles found \(no file\)"):
        find_tiles(tmp_path)
    (tmp_path / "slide.svs").write_text("")
    with pytest.raises(StainsslError, match=r"no tiles found \(1 \.svs\)"):
        find_tiles(tmp_path)
    with pytest.raises(StainsslError, match="does not exist"):
        find_tiles(tmp_path / "none")


def test_a_tile_is_read_as_rgb_whatever_its_mode(tmp_path):
    Image.new("L", (16, 16), 77).save(tmp_path / "grey.tif")
    assert np.array_equal(read_tile(tmp_path / "grey.tif"), np.full((16, 16, 3), 77))


def test_tiles_of_several_sizes_or_not_square_are_refused(tmp_path):
    _write_tiles(tmp_path, "a.png", "b.png")
    _write_tiles(tmp_path, "c.png", size=(32, 32))
    with pytest.raises(StainsslError, match=r"2 sizes \(16×16 px: 2, such as a.png; 32×32 px: 1"):
        check_tiles(tmp_path, ["a.png", "b.png", "c.png"])
    _write_tiles(tmp_path, "d.png", size=(32, 16))
    with pytest.raises(StainsslError, match=r"32×16 px\. Networks need squares"):
        check_tiles(tmp_path, ["d.png"])


def test_a_broken_tile_is_left_out(tmp_path):
    _write_tiles(tmp_path, "a.png", "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    side, unread = check_tiles(tmp_path, ["a.png", "b.png"])
    assert side == 16
    assert list(unread) == ["b.png"]
    with pytest.raises(StainsslError, match=r"none of 1 tiles can be read; b\.png: "):
        check_tiles(tmp_path, ["b.png"])
