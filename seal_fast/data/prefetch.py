"""Runs an iterator in a thread of its own, a few items ahead of its consumer."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def prefetch(items: Generator[T], depth: int = 3) -> Generator[T]:
    """Yield what `items` yields, in the same order, computed up to `depth` items ahead.

    An exception in `items` is raised here, in its place in the order. Closing this generator ends the thread. At the
    interpreter's exit the thread is waited for: one that still runs DALI would abort the process.
    """
    pool = ThreadPoolExecutor(1, "seal_fast-input")
    ready = deque(pool.submit(next, items, _END) for _ in range(depth))
    try:
        while (item := ready.popleft().result()) is not _END:
            ready.append(pool.submit(next, items, _END))
            yield item
    finally:
        for future in ready:
            future.cancel()
        with contextlib.suppress(RuntimeError):  # the interpreter exits, and the thread is gone
            pool.submit(items.close)  # in its own thread, whose CUDA stream it has set
        pool.shutdown()
