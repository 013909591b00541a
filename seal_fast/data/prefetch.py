"""Runs an iterator in a thread of its own, a few items ahead of its consumer."""

from __future__ import annotations

import atexit
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def prefetch(items: Generator[T], depth: int = 3) -> Generator[T]:
    """Yield what `items` yields, in the same order, computed up to `depth` items ahead.

    An exception in `items` is raised here, in its place in the order. Closing this generator closes `items` and ends
    the thread.
    """
    pool = ThreadPoolExecutor(1, "seal_fast-input")
    ready = deque(pool.submit(next, items, _END) for _ in range(depth))

    def end() -> None:
        for future in ready:
            future.cancel()
        try:
            pool.submit(items.close)  # in its own thread, whose CUDA stream it has set
        except RuntimeError:  # the interpreter exits, and has ended the thread
            items.close()
        pool.shutdown()

    atexit.register(end)  # an interpreter that exits while DALI's pipeline is alive aborts or hangs
    try:
        while (item := ready.popleft().result()) is not _END:
            ready.append(pool.submit(next, items, _END))
            yield item
    finally:
        atexit.unregister(end)
        end()
