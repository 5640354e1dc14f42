"""Caches for concurrent requests: open slides, each used by one thread, and recent values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Generic, TypeVar

from stainssl.slides.slide import Slide

Key = tuple[str, str]  # cohort, slide
V = TypeVar("V")


class SlidePool:
    """Pool of open slides; the least recently used idle slide is closed first.

    Args:
        open_slide: opens the slide of a key.
        most: number of idle slides kept open. Slides in use do not count.
    """

    def __init__(self, open_slide: Callable[[Key], Slide], most: int = 4) -> None:
        self._open, self._most = open_slide, most
        self._idle: OrderedDict[tuple[Key, int], Slide] = OrderedDict()
        self._lock, self._count = Lock(), 0

    @contextmanager
    def use(self, key: Key) -> Iterator[Slide]:
        """Borrow an open slide for this thread alone.

        Raises:
            SlideError, OSError: the slide cannot be opened.
        """
        slide = self._taken(key) or self._open(key)
        try:
            yield slide
        except BaseException:
            slide.close()  # after an error its state is unknown: not reused
            raise
        self._put_back(key, slide)

    def close(self) -> None:
        """Close the idle slides."""
        with self._lock:
            idle, self._idle = self._idle, OrderedDict()
        for slide in idle.values():
            slide.close()

    def _taken(self, key: Key) -> Slide | None:
        with self._lock:
            found = next((at for at in reversed(self._idle) if at[0] == key), None)
            return self._idle.pop(found) if found else None

    def _put_back(self, key: Key, slide: Slide) -> None:
        with self._lock:
            self._count += 1
            self._idle[key, self._count] = slide
            surplus = len(self._idle) - self._most
            old = [self._idle.popitem(last=False)[1] for _ in range(surplus)]
        for one in old:
            one.close()


class LRUCache(Generic[V]):
    """Thread-safe cache of the most recently used values, bounded by their total size.

    Args:
        most_bytes: limit of the sum of sizes, in the unit of `size`.
        size: size of a value: bytes, or 1 to limit the number of values.
    """

    def __init__(self, most_bytes: int, size: Callable[[V], int]) -> None:
        self._most, self._size, self._held = most_bytes, size, 0
        self._values: OrderedDict[object, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: object, make: Callable[[], V]) -> V:
        """Return the cached value of a key, or make and cache it. Exceptions are not cached."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        self._keep(key, value)
        return value

    def _keep(self, key: object, value: V) -> None:
        with self._lock:
            if key in self._values:  # another thread was faster
                return
            self._values[key] = value
            self._held += self._size(value)
            while self._held > self._most:
                self._held -= self._size(self._values.popitem(last=False)[1])
