"""Between steps, the processes of a run agree whether to stop or to checkpoint: all after the same step."""

from __future__ import annotations

import time
from dataclasses import dataclass

from seal_fast.distributed.world import World

# How long a signal may wait for the others to hear of it.
SECONDS = 1.0


@dataclass
class Pulse:
    """Asks the others about once a second; how many steps that is they agree on too. One process asks nobody.

    seconds: how long at most between two questions.
    """

    world: World
    seconds: float = SECONDS
    steps: int = 1
    left: int = 1
    asked: float = 0.0

    def __call__(self, stop: int | None, due: bool, now: bool = False) -> tuple[int | None, bool]:
        """What all are to do, which is the same on every process.

        Args:
            stop: the signal that this process got.
            due: whether this process thinks that it is time for a checkpoint; the first one's opinion counts.
            now: ask now.

        Returns:
            The signal that any process got, and whether to checkpoint.
        """
        if self.world.size == 1:
            return stop, due
        self.left -= 1
        if self.left > 0 and not now:
            return None, False
        clock = time.monotonic()
        pace = (clock - self.asked) / max(self.steps - self.left, 1) if self.asked else self.seconds
        stop_any, due_first, slowest = self.world.max(stop or 0, due and self.world.is_main, pace)
        self.asked = clock
        self.steps = self.left = max(1, min(int(self.seconds / max(slowest, 1e-6)), 1000))
        return int(stop_any) or None, bool(due_first)
