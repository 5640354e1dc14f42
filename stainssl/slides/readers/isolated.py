"""Slides read in a separate process, so that a crash or hang of a reader affects one slide only."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from stainssl.errors import SlideError, StainsslError, Status
from stainssl.runtime.children import end_with_parent
from stainssl.slides.slide import Slide

PATIENCE_S = 120.0  # timeout of one read; a region of 4 megapixels takes less than a second
START_S = 120.0  # timeout of opening, which may import a large library from a slow disk


@dataclass(frozen=True)
class Described:
    """Attributes of a `Slide`, sent between processes."""

    vendor: str
    level_sizes_px: list[tuple[int, int]]
    downsamples: list[float]
    bounds_level0_px: tuple[int, int, int, int]
    mpp_sources: dict[str, float]
    objective_power: float | None
    anisotropy: float

    @classmethod
    def of(cls, slide: Slide) -> Described:
        """Collect the attributes of an open slide."""
        return cls(
            slide.vendor, slide.level_sizes_px, slide.downsamples, slide.bounds_level0_px,
            slide.mpp_sources, slide.objective_power, slide.anisotropy,
        )  # fmt: skip


def _serve(path: Path, open_file: Callable[[Path], Slide], pipe: Connection) -> None:
    """Main function of the process: open the slide, then serve reads until the pipe is closed."""
    end_with_parent()  # a library that hangs would not notice a closed pipe
    with contextlib.suppress(EOFError, BrokenPipeError):
        try:
            slide = open_file(path)
        except (SlideError, StainsslError, OSError) as error:
            pipe.send(_portable(error))
            return
        pipe.send(Described.of(slide))
        while True:
            _serve_one(slide, pipe)


def _serve_one(slide: Slide, pipe: Connection) -> None:
    request = pipe.recv()
    try:
        image = np.ascontiguousarray(slide.read_region(*request))
    except (SlideError, OSError) as error:
        pipe.send(_portable(error))
        return
    pipe.send(image.shape)
    pipe.send_bytes(image.data.cast("B"))


def _portable(error: SlideError | StainsslError | OSError) -> tuple[str, object, str]:
    """Convert an error to plain values, since these exceptions cannot be unpickled."""
    if isinstance(error, SlideError):
        return "slide", error.status, error.detail
    if isinstance(error, StainsslError):
        return "user", None, str(error)
    return "machine", error.errno, str(error.strerror or error)


class IsolatedFile(Slide):
    """A slide opened in a separate process. See `stainssl.slides.slide.Slide`."""

    def __init__(self, path: Path, reader: str, open_file: Callable[[Path], Slide]) -> None:
        """Start the process and open the slide in it.

        Args:
            path: slide file.
            reader: name of the reader.
            open_file: function or class that opens the slide; picklable, i.e. defined in a module.

        Raises:
            SlideError: the slide cannot be opened, or its reader crashes or hangs.
            StainsslError: as raised by `open_file`.
            OSError: the disk or mount failed.
        """
        self.path, self.reader = path, reader
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(path, open_file, theirs), daemon=True, name=f"read {path.name}"
        )
        self._process.start()
        theirs.close()
        found = self._answer("opening", START_S)
        self.vendor, self.level_sizes_px = found.vendor, found.level_sizes_px
        self.downsamples, self.bounds_level0_px = found.downsamples, found.bounds_level0_px
        self.mpp_sources, self.objective_power = found.mpp_sources, found.objective_power
        self.anisotropy = found.anisotropy

    def _answer(self, doing: str, patience_s: float) -> Any:
        """Receive the next answer of the process; a reported error is raised."""
        try:
            if not self._pipe.poll(patience_s):
                self._give_up(f"{doing}: {self.reader} did not answer for {patience_s:g} s")
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._give_up(f"{doing}: {self.reader} ended its process")
        match answer:
            case ("slide", Status() as status, str(detail)):
                self.close()
                raise SlideError(status, detail)
            case ("user", None, str(sentence)):
                self.close()
                raise StainsslError(sentence)
            case ("machine", number, str(sentence)):
                self.close()
                raise OSError(number, sentence, str(self.path))
        return answer

    def _give_up(self, detail: str) -> NoReturn:
        self.close()
        raise SlideError(Status.UNREADABLE, f"{detail}.")

    def read_region(
        self, x_level0_px: int, y_level0_px: int, level: int, size_px: tuple[int, int]
    ) -> np.ndarray:
        """Read a rectangle of a level; see `Slide.read_region`."""
        where = f"reading level {level} at x {x_level0_px}, y {y_level0_px}"
        if self._process.exitcode is not None or self._pipe.closed:
            raise SlideError(Status.UNREADABLE, f"{where}: the slide is closed.")
        self._pipe.send((x_level0_px, y_level0_px, level, size_px))
        shape = self._answer(where, PATIENCE_S)
        return np.frombuffer(self._pipe.recv_bytes(), np.uint8).reshape(shape).copy()

    def close(self) -> None:
        """Kill the process."""
        self._pipe.close()
        self._process.kill()
        self._process.join()
