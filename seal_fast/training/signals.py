"""SIGTERM and SIGINT: a polite stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from seal_fast.training.checkpoint import Position


class Interrupted(Exception):
    """SIGTERM or SIGINT came; the step is finished and the checkpoint written."""

    def __init__(self, number: int, position: Position, folder: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} before {position}, the checkpoint is written; "
            f"continue with: python -m seal_fast.train --out {folder}"
        )
        self.number = number


@contextmanager
def stop_signals(ask: Callable[[int], None]) -> Iterator[None]:
    """Hand SIGTERM and SIGINT to `ask`, which may not raise; a second SIGINT stops at once."""

    def handle(number: int, _frame: object) -> None:
        ask(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
