"""Signals that ask a run to stop, and how its processes agree on stopping."""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seal_fast.distributed.world import World
from seal_fast.networks import code_flags
from seal_fast.training.checkpoint import Position

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Aim for the time between two exchanges: within a grace of 30 s it leaves room for a step and a checkpoint.
EXCHANGE_SECONDS = 5.0


@dataclass
class StopFlags:
    """Whether to stop or to checkpoint; all processes change their minds at the same `exchange`.

    log_every: steps between two exchanges. Several processes exchange earlier, at rank 0's pace, where these would take
    longer than `EXCHANGE_SECONDS` or checkpoint_seconds.
    """

    world: World
    log_every: int
    checkpoint_seconds: float

    def __post_init__(self) -> None:
        self.signal: int | None = None  # that came to this process
        self.stop: int | None = None  # that all processes obey
        self.due = False  # a checkpoint
        self.saved = self.exchanged = time.monotonic()
        self.interval = self.steps_left = self.log_every if self.world.size == 1 else 1

    def pending(self) -> bool:
        """Whether it is time for a checkpoint or a signal came; several processes go by the last exchange."""
        if self.world.size == 1:
            self.stop, self.due = self.signal, self.overdue()
        return self.due or self.stop is not None

    def overdue(self) -> bool:
        """Whether the last checkpoint is older than checkpoint_seconds."""
        return time.monotonic() - self.saved > self.checkpoint_seconds

    def exchange(self, counters: Tensor) -> list[float]:
        """The sums of counters over all processes; the flags travel with them, in one small tensor."""
        now, main = time.monotonic(), self.world.is_main
        pace = (now - self.exchanged) / max(self.interval - self.steps_left, 1)
        flags = [*(self.signal == number for number in STOP_SIGNALS), main and self.overdue(), main * pace]
        numbers = torch.cat([counters.cpu(), torch.tensor(flags, dtype=counters.dtype)])
        *sums, terminated, interrupted, hung_up, due, pace = self.world.sum(numbers).tolist()
        came = zip(STOP_SIGNALS, (terminated, interrupted, hung_up), strict=True)
        self.stop, self.due = next((number for number, count in came if count), None), due > 0
        seconds = min(EXCHANGE_SECONDS, self.checkpoint_seconds) if self.world.size > 1 else float("inf")
        self.interval = self.steps_left = max(1, int(min(self.log_every, seconds / max(pace, 1e-6))))
        self.exchanged = now
        return sums


class Interrupted(Exception):
    """A stop signal came; the step is finished and the checkpoint written."""

    on_all_ranks = True

    def __init__(self, number: int, position: Position, folder: Path, model: str) -> None:
        again = ["python", "-m", "seal_fast.train", "--out", str(folder), *code_flags(model)]
        super().__init__(
            f"stopped by {signal.Signals(number).name} before {position}, the checkpoint is written; "
            f"continue with: {shlex.join(again)}"
        )
        self.number = number


@contextmanager
def stop_signals(ask: Callable[[int], None]) -> Iterator[None]:
    """Pass stop signals to `ask`, which may not raise; a SIGINT after that raises KeyboardInterrupt.

    SIGHUP stays ignored if it is (nohup). Outside the main thread, where Python allows no handlers, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: object) -> None:
        ask(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    old = {n: signal.signal(n, handle) for n in STOP_SIGNALS if not (n == signal.SIGHUP and ignored)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
