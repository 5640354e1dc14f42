"""All that the page asks for, by name: the same for the server and for an export.

A name is a few segments of a path (`slide/clinic/a-001`); each is looked up among what config and
sheets hold, so that nothing of a request becomes a path.
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
from stainssl.view.handles import Handles, Key, Recent
from stainssl.view.layers import SCALE, Layers, slide_geometry
from stainssl.view.limits import SlideLimits
from stainssl.view.neighbors import Neighbors
from stainssl.view.pyramid import Pyramid, read_overview, read_pyramid_picture
from stainssl.view.records import HIDDEN, Json, Records

if TYPE_CHECKING:
    from stainssl.view.restained import Restained

PICTURES_BYTES = 128 << 20  # of encoded pictures that are kept
DATA_ITEMS = 64  # of what was computed of slides that is kept
THUMBNAIL_PX = 160
QUALITY = 85
FIELD_TILES = 4  # side of the field around a tile that is shown under other stains
OPENING = {"slide", "outlines", "stains"}  # the data for which a slide's file is read
# Pictures that a run does not change; other stains are of what has been read so far.
LASTING = ("picture", "thumbnail", "tile")
FAULTS = (StainsslError, SlideError, OSError)
T = TypeVar("T")


class Contents:
    """What a config's cohorts and results have to show.

    Args:
        config: see `Records`.
    """

    def __init__(self, config: Config) -> None:
        self.records = Records(config)
        self.layers = Layers(self.records)
        self.neighbors = Neighbors(self.records)
        self.benchmarks = Benchmarks(self.records)
        self.handles = Handles(self._open)
        self.limits = SlideLimits(config.slides.max_minutes)
        self._pictures: Recent[bytes] = Recent(PICTURES_BYTES, len)
        self._outlines: Recent[Json] = Recent(DATA_ITEMS, lambda _: 1)
        self._made: Restained | None = None
        self._lock = Lock()
        self._pyramids: Recent[Pyramid] = Recent(4096, lambda _: 1)
        # How many segments follow the first, and what answers.
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
            "answer": (3, self.benchmarks.answer),
            "plane": (1, self.benchmarks.plane),
        }
        self._jpegs: dict[str, tuple[int, Callable[..., bytes]]] = {
            "picture": (5, self._picture),
            "thumbnail": (2, self._thumbnail),
            "tile": (3, self._tile),
            "stained": (4, self._stained),
            "field": (4, self._field),
        }

    def data(self, kind: str, *segments: str) -> Json:
        """The JSON of a name; `{"problem": sentence}` where the slide or the results fail.

        Raises:
            KeyError: nothing has that name.
        """
        count, answer = self._data[kind]
        if len(segments) != count:
            raise KeyError(segments)
        try:
            return self._limited(answer, segments) if kind in OPENING else answer(*segments)
        except FAULTS as error:
            return {"problem": str(error)}

    def picture(self, kind: str, *segments: str) -> bytes:
        """A JPEG.

        Raises:
            KeyError: nothing has that name.
            StainsslError, SlideError, OSError: it cannot be made.
        """
        count, make = self._jpegs[kind]
        if len(segments) != count:
            raise KeyError(segments)
        if kind not in LASTING:
            return self._limited(make, segments)
        return self._pictures.get((kind, *segments), lambda: self._limited(make, segments))

    def _limited(self, make: Callable[..., T], segments: tuple[str, ...]) -> T:
        """`make(*segments)`, the first two of which name a slide, in the time that it may take."""
        cohort, slide, *_ = segments
        path = Path(self.records.row(cohort, slide)["path"])
        return self.limits.within((cohort, slide), path, partial(make, *segments))

    def close(self) -> None:
        """Close the slides that are open."""
        self.handles.close()

    def _open(self, key: Key) -> Slide:
        row = self.records.row(*key)
        is_patch = self.records.config.cohorts[key[0]].kind == "patches"
        reader = "patches" if is_patch else self.records.config.slides.reader
        return open_slide(Path(row["path"]), reader)

    def pyramid(self, cohort: str, slide: str) -> Pyramid:
        """The pyramid of a slide, whose file is opened for it once."""

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
            for other, name in self.records.twins(cohort, slide)
        ]
        try:
            with self.handles.use((cohort, slide)) as opened:
                found["geometry"] = slide_geometry(opened, row["mpp"])
        except FAULTS as error:
            problems.append(f"The slide cannot be opened: {error}")
            return found
        pyramid = self.pyramid(cohort, slide)
        for name in ("tiles", "annotations") if found["tiled"] else ("annotations",):
            try:
                found[name] = getattr(self.layers, name)(cohort, slide, pyramid)
            except FAULTS as error:
                problems.append(str(error))
        return found

    def _models(self, cohort: str) -> Json:
        """The models whose answers about a cohort's slides and tiles are there."""
        answers = [{"name": a.name, "title": a.title} for a in self.records.answers(cohort)]
        return {"answers": answers, "tile_answers": list(self.records.tile_answers(cohort))}

    def _neighbors(self, cohort: str, slide: str, encoder: str, tile: str) -> Json:
        return self.neighbors.of(cohort, slide, encoder, _number(tile))

    def _overview(self) -> Json:
        benchmarks = self.benchmarks.names()
        return {**self.records.overview(), "scale": SCALE, "benchmarks": benchmarks}

    def _stains(self, cohort: str, slide: str, tile: str) -> Json:
        # Imported late: torch takes seconds, and most pages need none of it.
        return self._restained().of(cohort, slide, _number(tile))

    def _stained(self, cohort: str, slide: str, tile: str, stain: str) -> bytes:
        return encode(self._restained().picture(cohort, slide, _number(tile), stain), QUALITY)

    def _field(self, cohort: str, slide: str, tile: str, stain: str) -> bytes:
        image = self.read_tile(cohort, slide, _number(tile), FIELD_TILES)
        return encode(self._restained().under(cohort, image, stain), QUALITY)

    def _restained(self) -> Restained:
        from stainssl.view.restained import Restained

        with self._lock:
            if self._made is None:
                self._made = Restained(self.records, self.neighbors, self.pixels_of)
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
        """A tile as it was encoded, or read from the slide where no pixels are there."""
        try:
            pixels, rows = self.layers.pixels(cohort, slide)
            row = rows[pixels.tile[rows] == _number(tile)]
            if len(row) and (jpeg := pixels.jpegs(int(row[0]), int(row[0]) + 1)[0]):
                return jpeg
        except StainsslError:
            pass  # before `pixels` has run, or after its store was removed
        return encode(self.read_tile(cohort, slide, _number(tile)), QUALITY)

    def pixels_of(self, cohort: str, slide: str, tile: int) -> np.ndarray:
        """A tile's pixels, (size, size, 3) uint8, as encoders saw them; raises as `read_tile`."""
        return decode(self.picture("tile", cohort, slide, str(tile)))

    def read_tile(self, cohort: str, slide: str, tile: int, tiles: int = 1) -> np.ndarray:
        """A tile's pixels read from the slide, or a field of several around it.

        Args:
            tiles: side of the field in tiles; it is moved into the slide where it reaches out.

        Returns:
            (h, w, 3) uint8, less than `tiles` tiles a side where the slide is.

        Raises:
            KeyError: the slide has no such tile.
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
    """Start and length of `tiles` sides around a tile of one axis, inside what was scanned."""
    wanted = min(tiles * side, length)
    first = start - (tiles - 1) / 2 * side
    return min(max(first, low), low + length - wanted), wanted


def _number(word: str) -> int:
    if not word.isdecimal():
        raise KeyError(word)
    return int(word)
