"""Slides that several threads read at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from stainssl.runtime.parallel import parallel_map
from stainssl.slides.readers import open_slide
from stainssl.slides.slide import Slide


class SharedSlide(Slide):
    """A slide opened several times, once for each thread that reads at the same time.

    Args:
        handles: open slides of one file, at least one; closed together with this one.
    """

    def __init__(self, handles: Sequence[Slide]) -> None:
        for name in Slide.__annotations__:
            setattr(self, name, getattr(handles[0], name))
        self.readers = len(handles)
        self._handles = handles
        self._free: SimpleQueue[Slide] = SimpleQueue()
        for handle in handles:
            self._free.put(handle)

    def read_region(
        self, x_level0_px: int, y_level0_px: int, level: int, size_px: tuple[int, int]
    ) -> np.ndarray:
        """Read a rectangle with the next free handle; see `Slide.read_region`."""
        with self.lent() as handle:
            return handle.read_region(x_level0_px, y_level0_px, level, size_px)

    @contextmanager
    def lent(self) -> Iterator[Slide]:
        """Context manager that yields a handle for exclusive use; waits until one is free."""
        handle = self._free.get()
        try:
            yield handle
        finally:
            self._free.put(handle)

    def close(self) -> None:
        """Close all handles."""
        for handle in self._handles:
            handle.close()


def open_shared(path: Path, reader: str, readers: int) -> SharedSlide:
    """Open a slide for several threads.

    Args:
        path: slide file.
        reader: `auto` or a key of `READERS`.
        readers: number of handles, opened in parallel; at least one is opened.

    Raises:
        SlideError, StainsslError, OSError: as `open_slide`.
    """
    handles: list[Slide] = []
    count = max(1, readers)
    try:
        for _ in parallel_map(
            lambda _: handles.append(open_slide(path, reader)), range(count), count
        ):
            pass
    except BaseException:
        for handle in handles:
            handle.close()
        raise
    return SharedSlide(handles)
