"""Whether the head of a cluster still answers.

Ray would try for a minute, then end the program in its own words.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

PERIOD_SECONDS = 5.0
PATIENCE_SECONDS = 30.0


def answers(address: str, seconds: float) -> OSError | None:
    """Why nothing at `HOST:PORT` takes a connection within so long; None if something does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError as error:
        return error
    return None


@contextlib.contextmanager
def watched(
    address: str, lost: Callable[[], None], period: float = PERIOD_SECONDS, patience: float = PATIENCE_SECONDS
) -> Iterator[None]:
    """While this lasts, `lost` is called, on a thread of its own, once nothing has answered for `patience` seconds."""
    done = threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while not done.wait(period):
            if answers(address, period) is None:
                last = time.monotonic()
            elif time.monotonic() - last >= patience and not done.is_set():
                lost()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
