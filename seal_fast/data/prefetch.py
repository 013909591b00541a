"""Runs an iterator in a thread of its own, a few items ahead of its consumer."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.05
_END = StopIteration()


def prefetch(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Yield what `items` yields, in the same order, computed up to `depth` items ahead.

    An exception in `items` is raised here, in its place in the order. Closing this generator ends the thread.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: T | None, error: BaseException | None = None) -> None:
        while not stop.is_set():
            try:
                return ready.put((item, error), timeout=_POLL_SECONDS)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(None, _END)
        except BaseException as error:  # the consumer raises it
            put(None, error)

    def end() -> None:
        stop.set()
        thread.join()

    thread = threading.Thread(target=work, name="seal_fast-input", daemon=True)
    thread.start()
    atexit.register(end)  # an interpreter that exits while DALI still runs in a thread aborts
    try:
        while True:
            item, error = ready.get()
            if error is _END:
                return
            if error is not None:
                raise error
            yield item
    finally:
        atexit.unregister(end)
        end()
