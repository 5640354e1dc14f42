"""Pixels are read back as they were written, in any order."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from stainssl.errors import StainsslError
from stainssl.stores import pixels as store
from stainssl.stores.pixels import JpegSpool, SlidePixels, decode, encode, open_pixels, write_pixels

SIZE = 16


def _slide(name: str, n: int, rng: np.random.Generator) -> SlidePixels:
    images = rng.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)
    return SlidePixels(
        slide_id=name,
        tile=np.arange(n, dtype=np.int32) * 2,
        jpeg=[encode(image) for image in images],
        profiles={"macenko": {"matrix": rng.random((n, 2, 3)), "valid": np.ones(n, bool)}},
        pooled={"macenko": {"matrix": rng.random((2, 3)), "valid": np.array(True)}},
    )


@pytest.fixture
def slides(rng: np.random.Generator) -> list[SlidePixels]:
    return [_slide("a", 5, rng), _slide("nothing", 0, rng), _slide("b", 3, rng)]


def _write(path: Path, slides: list[SlidePixels]) -> store.Pixels:
    write_pixels(path, slides, size_px=SIZE, mpp=0.5, settings={"size": SIZE})
    return open_pixels(path)


def test_written_slides_are_read_back(tmp_path: Path, slides: list[SlidePixels]) -> None:
    back = _write(tmp_path / "p.zarr", slides)
    assert back.slide_id == ["a", "b"]
    assert back.slide.tolist() == [0] * 5 + [1] * 3
    assert back.tile.tolist() == [0, 2, 4, 6, 8, 0, 2, 4]
    assert back.jpegs(4, 7) == [list(slides[0].jpeg)[4], *list(slides[2].jpeg)[:2]]
    assert back.profile("macenko")["matrix"].shape == (8, 2, 3)
    assert np.array_equal(
        back.pooled("macenko")["matrix"][1], slides[2].pooled["macenko"]["matrix"]
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=12))
def test_images_are_in_the_order_requested(
    tmp_path_factory: pytest.TempPathFactory, index: list[int]
):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("p") / "p.zarr"
    slides = [_slide("a", 5, rng), _slide("b", 3, rng)]
    back = _write(path, slides)
    jpegs = [*slides[0].jpeg, *slides[1].jpeg]
    images = back.images(np.array(index, dtype=np.int64))
    assert images.shape == (len(index), SIZE, SIZE, 3)
    for image, row in zip(images, index, strict=True):
        assert np.array_equal(image, decode(jpegs[row]))


def test_many_tiles_of_a_slide_are_spooled_to_a_file(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SPOOL_BYTES", 1000)
    jpeg = [encode(image) for image in rng.integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8)]
    spool = JpegSpool()
    for one in jpeg:
        spool.append(one)
    back = _write(tmp_path / "p.zarr", [SlidePixels("a", np.arange(20, dtype=np.int32), spool)])
    assert back.jpegs(0, 20) == jpeg


def test_a_part_without_tiles_is_a_valid_store(tmp_path: Path) -> None:
    back = _write(tmp_path / "p.zarr", [])
    assert len(back) == 0
    assert back.jpegs(0, 0) == []
    assert back.profile("macenko") == {}


def test_the_number_of_shards_is_that_of_their_size(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CHUNK_BYTES", 256)
    monkeypatch.setattr(store, "SHARD_BYTES", 1024)
    slide = _slide("a", 40, rng)
    back = _write(tmp_path / "p.zarr", [slide])
    assert back.jpegs(0, 40) == slide.jpeg
    files = [p for p in (tmp_path / "p.zarr" / "jpeg" / "c").iterdir() if p.is_file()]
    assert len(files) == -(-sum(map(len, slide.jpeg)) // 1024)


def test_a_store_is_hardly_larger_than_its_jpegs(tmp_path: Path, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    jpeg = [encode(image)] * 300
    slide = SlidePixels("a", np.arange(300, dtype=np.int32), jpeg)
    _write(tmp_path / "p.zarr", [slide])
    bytes_on_disk = sum(p.stat().st_size for p in (tmp_path / "p.zarr").rglob("*") if p.is_file())
    assert bytes_on_disk <= 1.05 * sum(map(len, jpeg))


def test_an_incomplete_store_and_another_schema_are_refused(
    tmp_path: Path, slides: list[SlidePixels]
) -> None:
    with pytest.raises(StainsslError, match="is missing"):
        open_pixels(tmp_path / "none.zarr")
    zarr.create_group(tmp_path / "half.zarr")
    with pytest.raises(StainsslError, match="Delete it"):
        open_pixels(tmp_path / "half.zarr")
    _write(tmp_path / "p.zarr", slides)
    zarr.open_group(tmp_path / "p.zarr").attrs["schema"] = 99
    with pytest.raises(StainsslError, match="schema 99"):
        open_pixels(tmp_path / "p.zarr")


def test_bytes_that_are_not_a_jpeg_are_an_error() -> None:
    for data in (b"", b"nothing", b"\xff\xd8\xff"):
        with pytest.raises(ValueError, match="not a JPEG"):
            decode(data)
