"""A pipe by which workers tell the sweep on their machine that a trial has something to report.

Ray brings the report itself, but Tune looks for one ten times a second, which takes 2 % of a core from the trials.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path

IDLE_SECONDS = 5.0  # between two looks without news
REMOTE_SECONDS = 0.4  # the same, with workers on other machines, whose word does not reach this one


class Pipe:
    """The end that listens.

    Args:
        path: of the pipe, which is made anew.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        self._end = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # for writing too, or it would be at its end at once

    def wait(self, seconds: float) -> bool:
        """Whether news came within so long."""
        if not select.select([self._end], [], [], seconds)[0]:
            return False
        os.read(self._end, 65536)
        return True

    def close(self) -> None:
        """Listen no more."""
        os.close(self._end)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[Pipe]:
    """A pipe while this lasts."""
    pipe = Pipe(path)
    try:
        yield pipe
    finally:
        pipe.close()
        path.unlink(missing_ok=True)


def tell(path: Path) -> None:
    """Say that there is something to report; nothing happens where nobody listens, as on another machine."""
    with contextlib.suppress(OSError):
        end = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(end, b".")
        finally:
            os.close(end)
