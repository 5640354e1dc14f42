"""Everything the page can request, by name; the same for the server and for an export.

A name consists of a few path segments (`slide/clinic/a-001`). Each is looked up in the config and
its sheets, so that no part of a request becomes a file path.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

from stainssl.config import Config
from stainssl.errors import SlideError, StainsslError
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_rectangle, read_square
from stainssl.slides.slide import Slide
from stainssl.stores.pixels import decode, encode
from stainssl.view.benchmarks import Benchmarks
from stainssl.view.handles import Key, LRUCache, SlidePool
from stainssl.view.layers import SCALE, Layers, slide_geometry
from stainssl.view.limits import SlideLimits
from stainssl.view.neighbors import Neighbors
from stainssl.view.pyramid import Pyramid, read_overview, read_pyramid_picture
from stainssl.view.records import HIDDEN, Json, Records

if TYPE_CHECKING:
    from stainssl.view.restained import RestainedTiles

PICTURES_BYTES = 128 << 20  # of JPEGs in the cache
DATA_ITEMS = 64  # slides whose outlines are cached
THUMBNAIL_PX = 160
QUALITY = 85
FIELD_TILES = 4  # side of the field around a tile that is shown under other stains
OPENING = {"slide", "outlines", "stains"}  # data that require reading the slide's file
# Pictures that do not change during a run. Re-stained ones do: mean stains follow stored pixels.
CACHEABLE = ("picture", "thumbnail", "tile")
READ_ERRORS = (StainsslError, SlideError, OSError)
T = TypeVar("T")


class ViewerData:
    """Data and pictures of a config's cohorts and results.

    Args:
        config: see `Records`.
    """

    def __init__(self, config: Config) -> None:
        self.records = Records(config)
        self.layers = Layers(self.records)
        self.neighbors = Neighbors(self.records)
        self.benchmarks = Benchmarks(self.records)
        self.handles = SlidePool(self._open)
        self.limits = SlideLimits(config.slides.max_minutes)
        self._pictures: LRUCache[bytes] = LRUCache(PICTURES_BYTES, len)
        self._outlines: LRUCache[Json] = LRUCache(DATA_ITEMS, lambda _: 1)
        self._made: RestainedTiles | None = None
        self._lock = Lock()
        self._pyramids: LRUCache[Pyramid] = LRUCache(4096, lambda _: 1)
        # Kind → number of segments after it, and the function that takes them.
        self._data: dict[str, tuple[int, Callable[..., Json]]] = {
            "overview": (0, self._overview),
            "cohort": (1, self.records.cohort),
            "predictions": (2, self.records.predictions),
            "slide": (2, self._slide),
            "outlines": (2, self._outlined),
            "attention": (3, self.layers.attention),
            "probability": (3, self.layers.probability),
            "stain": (2, self.layers.stain),
            "neighbors": (4, self._neighbors),
            "stains": (3, self._stains),
            "benchmark": (1, self.benchmarks.table),
            "answer": (3, self.benchmarks.predictions),
            "plane": (1, self.benchmarks.umap),
        }
        self._jpegs: dict[str, tuple[int, Callable[..., bytes]]] = {
            "picture": (5, self._picture),
            "thumbnail": (2, self._thumbnail),
            "tile": (3, self._tile),
            "stained": (4, self._stained),
            "field": (4, self._field),
        }

    def data(self, kind: str, *segments: str) -> Json:
        """Return the JSON of a name, or `{"problem": message}` if a slide or result cannot be read.

        Raises:
            KeyError: unknown name.
        """
        count, make = self._data[kind]
        if len(segments) != count:
            raise KeyError(segments)
        try:
            return self._limited(make, segments) if kind in OPENING else make(*segments)
        except READ_ERRORS as error:
            return {"problem": str(error)}

    def picture(self, kind: str, *segments: str) -> bytes:
        """Return the picture of a name as the bytes of a JPEG.

        Raises:
            KeyError: unknown name.
            StainsslError, SlideError, OSError: the picture cannot be made.
        """
        count, make = self._jpegs[kind]
        if len(segments) != count:
            raise KeyError(segments)
        if kind not in CACHEABLE:
            return self._limited(make, segments)
        return self._pictures.get((kind, *segments), lambda: self._limited(make, segments))

    def _limited(self, make: Callable[..., T], segments: tuple[str, ...]) -> T:
        """Call `make(*segments)` within the time limit of the slide that `segments` begins with."""
        cohort, slide, *_ = segments
        path = Path(self.records.row(cohort, slide)["path"])
        return self.limits.within((cohort, slide), path, partial(make, *segments))

    def close(self) -> None:
        """Close the idle slides."""
        self.handles.close()

    def _open(self, key: Key) -> Slide:
        row = self.records.row(*key)
        is_patch = self.records.config.cohorts[key[0]].kind == "patches"
        reader = "patches" if is_patch else self.records.config.slides.reader
        return open_slide(Path(row["path"]), reader)

    def pyramid(self, cohort: str, slide: str) -> Pyramid:
        """Return the cached pyramid of a slide.

        Raises:
            KeyError: unknown cohort or slide.
            StainsslError, SlideError, OSError: the slide cannot be opened in time.
        """

        def made(cohort: str, slide: str) -> Pyramid:
            with self.handles.use((cohort, slide)) as opened:
                return Pyramid.of(opened)

        key = cohort, slide
        return self._pyramids.get(key, lambda: self._limited(made, key))

    def _slide(self, cohort: str, slide: str) -> Json:
        row = self.records.row(cohort, slide)
        problems: list[str] = []
        found: Json = {"cohort": cohort, "slide": slide, "geometry": None, "problems": problems}
        found["tiled"] = self.layers.tiles_path(cohort, slide).exists()
        sheet = {k: v for k, v in row.items() if k not in HIDDEN}
        found["sheet"] = {k: str(v) for k, v in sheet.items() if v == v and v != ""}
        found["encoders"] = self.records.encoders(cohort)
        found |= self._models(cohort)
        found["twins"] = [
            {"cohort": other, "slide": name, **self._models(other)}
            for other, name in self.records.same_slide_elsewhere(cohort, slide)
        ]
        try:
            with self.handles.use((cohort, slide)) as opened:
                found["geometry"] = slide_geometry(opened, row["mpp"])
        except READ_ERRORS as error:
            problems.append(f"The slide cannot be opened: {error}")
            return found
        try:
            found["remark"] = self.records.remark(cohort, slide)
        except READ_ERRORS as error:
            problems.append(str(error))
        pyramid = self.pyramid(cohort, slide)
        for name in ("tiles", "annotations") if found["tiled"] else ("annotations",):
            try:
                found[name] = getattr(self.layers, name)(cohort, slide, pyramid)
            except READ_ERRORS as error:
                problems.append(str(error))
        return found

    def _models(self, cohort: str) -> Json:
        """Models with results for a cohort: by slide (`answers`) and by tile (`tile_answers`)."""
        answers = [
            {"name": a.name, "title": a.title} for a in self.records.stored_predictions(cohort)
        ]
        return {"answers": answers, "tile_answers": list(self.records.tile_predictions(cohort))}

    def _neighbors(self, cohort: str, slide: str, encoder: str, tile: str) -> Json:
        return self.neighbors.of(cohort, slide, encoder, _number(tile))

    def _overview(self) -> Json:
        benchmarks = self.benchmarks.names()
        return {**self.records.overview(), "scale": SCALE, "benchmarks": benchmarks}

    def _stains(self, cohort: str, slide: str, tile: str) -> Json:
        return self._restained().of(cohort, slide, _number(tile))

    def _stained(self, cohort: str, slide: str, tile: str, stain: str) -> bytes:
        return encode(self._restained().picture(cohort, slide, _number(tile), stain), QUALITY)

    def _field(self, cohort: str, slide: str, tile: str, stain: str) -> bytes:
        image = self.read_tile(cohort, slide, _number(tile), FIELD_TILES)
        return encode(self._restained().under(cohort, image, stain), QUALITY)

    def _restained(self) -> RestainedTiles:
        # Imported here: torch takes seconds to import, and most pages do not need it.
        from stainssl.view.restained import RestainedTiles

        with self._lock:
            if self._made is None:
                self._made = RestainedTiles(self.records, self.neighbors, self.pixels_of)
            return self._made

    def _outlined(self, cohort: str, slide: str) -> Json:
        row = self.records.row(cohort, slide)

        def made() -> Json:
            with self.handles.use((cohort, slide)) as opened:
                return self.layers.outlines(opened, row["mpp"], cohort)

        return self._outlines.get((cohort, slide), made)

    def _picture(self, cohort: str, slide: str, level: str, column: str, row: str) -> bytes:
        at = _number(level), _number(column), _number(row)
        pyramid = self.pyramid(cohort, slide)
        if not pyramid.has(*at):
            raise KeyError(at)
        with self.handles.use((cohort, slide)) as opened:
            return encode(read_pyramid_picture(opened, pyramid, *at), QUALITY)

    def _thumbnail(self, cohort: str, slide: str) -> bytes:
        pyramid = self.pyramid(cohort, slide)
        with self.handles.use((cohort, slide)) as opened:
            overview = read_overview(opened, pyramid, 2 * THUMBNAIL_PX)
        scale = THUMBNAIL_PX / max(overview.shape[:2])
        size = [max(1, round(n * scale)) for n in overview.shape[1::-1]]
        small = cv2.resize(overview, size, interpolation=cv2.INTER_AREA) if scale < 1 else overview
        return encode(np.asarray(small, np.uint8), QUALITY)

    def _tile(self, cohort: str, slide: str, tile: str) -> bytes:
        """JPEG of a tile as encoders see it: the stored one, otherwise read and encoded alike."""
        try:
            pixels, rows = self.layers.pixels(cohort, slide)
            row = rows[pixels.tile[rows] == _number(tile)]
            if len(row) and (jpeg := pixels.jpegs(int(row[0]), int(row[0]) + 1)[0]):
                return jpeg
        except StainsslError:
            pass  # `pixels` has not run yet, or tiles are not stored
        return encode(self.read_tile(cohort, slide, _number(tile)))

    def pixels_of(self, cohort: str, slide: str, tile: int) -> np.ndarray:
        """Return a tile's pixels as encoders see them, after JPEG: (size, size, 3) uint8 RGB.

        Raises:
            KeyError: the slide has no such tile.
            StainsslError, SlideError, OSError: the slide is not tiled or cannot be read in time.
        """
        return decode(self.picture("tile", cohort, slide, str(tile)))

    def read_tile(self, cohort: str, slide: str, tile: int, tiles: int = 1) -> np.ndarray:
        """Read a tile, or the field around it, from the slide.

        Args:
            cohort, slide, tile: the tile, by its number in the tile table.
            tiles: side of the field in tiles; the field is shifted to lie inside the slide.

        Returns:
            (h, w, 3) uint8 RGB at the tiling's scale, smaller than `tiles` tiles per side only if
            the slide is.

        Raises:
            KeyError: the slide has no such tile.
            StainsslError: the slide is not tiled.
            SlideError, OSError: the slide cannot be read.
        """
        table = self.layers.tile_table(cohort, slide)
        found = table[table["tile"] == tile]
        if found.empty:
            raise KeyError(tile)
        row: Any = next(found.itertuples())
        size = self.records.config.tiling_of(cohort).size
        with self.handles.use((cohort, slide)) as opened:
            if tiles == 1:
                return read_square(opened, row.x, row.y, row.side, size)
            left, top, width, height = opened.bounds_level0_px
            x, wide = _around(row.x, row.side, tiles, left, width)
            y, high = _around(row.y, row.side, tiles, top, height)
            size_px = max(1, round(wide / row.side * size)), max(1, round(high / row.side * size))
            return read_rectangle(opened, x, y, (wide, high), size_px)


def _around(start: float, side: float, tiles: int, low: int, length: int) -> tuple[float, float]:
    """Start and length of a field of `tiles` tiles along one axis, inside the scanned area."""
    wanted = min(tiles * side, length)
    first = start - (tiles - 1) / 2 * side
    return min(max(first, low), low + length - wanted), wanted


def _number(word: str) -> int:
    if not word.isdecimal():
        raise KeyError(word)
    return int(word)
