"""Runs an iterator in a thread of its own, a few items ahead of whoever consumes it."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.05


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Yields what `items` yields, in the same order, computed up to `depth` items ahead.

    An exception in `items` is raised here, in its place in the order. Closing this generator ends the thread.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:  # handed to the consumer, who raises it
            put((None, error))

    def end() -> None:
        stop.set()
        thread.join()

    thread = threading.Thread(target=work, name="seal_fast-input", daemon=True)
    thread.start()
    atexit.register(end)  # an interpreter that goes while DALI still runs in a thread aborts
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        atexit.unregister(end)
        end()
