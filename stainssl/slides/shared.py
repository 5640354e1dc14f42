"""A slide that several threads read at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from stainssl.runtime.parallel import in_order
from stainssl.slides.readers import open_slide
from stainssl.slides.slide import Slide


class SharedSlide(Slide):
    """A slide open several times: as many threads read as it has handles, others wait.

    Args:
        handles: of one file, at least one; they are closed with it.
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
        """As `Slide.read_region`."""
        with self.lent() as handle:
            return handle.read_region(x_level0_px, y_level0_px, level, size_px)

    @contextmanager
    def lent(self) -> Iterator[Slide]:
        """A handle of one's own for a while; waits until one is free."""
        handle = self._free.get()
        try:
            yield handle
        finally:
            self._free.put(handle)

    def close(self) -> None:
        """Free the handles."""
        for handle in self._handles:
            handle.close()


def open_shared(path: Path, reader: str, readers: int) -> SharedSlide:
    """Open a slide `readers` times side by side, once at least.

    Raises:
        SlideError, StainsslError, OSError: as `open_slide`.
    """
    handles: list[Slide] = []
    count = max(1, readers)
    try:
        for _ in in_order(lambda _: handles.append(open_slide(path, reader)), range(count), count):
            pass
    except BaseException:
        for handle in handles:
            handle.close()
        raise
    return SharedSlide(handles)
