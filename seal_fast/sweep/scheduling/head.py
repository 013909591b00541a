"""Whether Ray still lives: its head, and its process on the machine of the sweep itself.

Without a head Ray would try for a minute, then end the program in its own words; without the process, wait for ever.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

PERIOD_SECONDS = 10.0
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
    address: str,
    here: Callable[[], bool],
    lost: Callable[[str], None],
    period: float = PERIOD_SECONDS,
    patience: float = PATIENCE_SECONDS,
) -> Iterator[None]:
    """While this lasts, `lost` is called, on a thread of its own and once, with what was lost.

    Args:
        address: of the head, which is lost once nothing has answered there for `patience` seconds.
        here: whether Ray's process on this machine is known to the head as living; asked while the head answers.
        lost: is told.
        period: seconds between two looks.
        patience: see above.
    """
    done = threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while not done.wait(period):
            if answers(address, period) is None:
                last = time.monotonic()
                if here():
                    continue
                what = "its process on this machine (raylet)"
            elif time.monotonic() - last >= patience:
                what = f"its head (no answer for {patience:.0f} s)"
            else:
                continue
            if not done.is_set():
                lost(what)
            return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
