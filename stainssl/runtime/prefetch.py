"""Compute the next items of an iterator in a thread while the current one is used."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import Full, Queue
from typing import TypeVar

T = TypeVar("T")


class _End:
    """Marks the end of the items, with the exception that ended them, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetched(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield the items in order, with up to `depth` of them waiting in a queue filled by a thread.

    This is faster if computing an item reads files or releases the interpreter lock, as JPEG
    decoding does. The thread ends with the items, or when this iterator is closed.

    Raises:
        Exception: any exception raised by `items`, when that item's turn comes.
    """
    queue: Queue[T | _End] = Queue(depth)
    stop = threading.Event()

    def put(item: T | _End) -> None:
        while not stop.is_set():
            try:
                queue.put(item, timeout=0.1)
                return
            except Full:
                continue

    def fill() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
        except BaseException as raised:
            error = raised
        put(_End(error))

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        while not isinstance(item := queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        thread.join()
