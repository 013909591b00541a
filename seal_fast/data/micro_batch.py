"""How an epoch's positions are cut into steps, a step into parts, and a part among processes. Pure arithmetic.

A step is `batch_size` consecutive positions however many processes there are; order, augmentation and learning rate are
functions of the position, so the same seed is the same training on any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from seal_fast.utils.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Which process this is, of how many, and in how many parts each computes its share of a step."""

    rank: int = 0
    processes: int = 1
    parts: int = 1

    def of(self, batch_size: int) -> int:
        """Images of a full step that this process computes at once.

        Raises:
            UsageError: the batch cannot be shared equally.
        """
        pieces = self.processes * self.parts
        if batch_size % pieces or (pieces > 1 and batch_size < 2 * pieces):
            among = " and ".join(
                text
                for text, many in (
                    (f"{self.processes} processes", self.processes > 1),
                    (f"--accumulate {self.parts}", self.parts > 1),
                )
                if many
            )
            raise UsageError(
                f"--batch-size {batch_size} cannot be shared equally, two images or more each, by {among}: "
                f"choose a multiple of {pieces} from {2 * pieces} on"
            )
        return batch_size // pieces

    def slice(self, start: int, stop: int) -> tuple[int, int]:
        """This process's part of a range of positions; all processes' parts follow each other and cover it."""
        count = stop - start
        return start + count * self.rank // self.processes, start + count * (self.rank + 1) // self.processes


@dataclass(frozen=True)
class MicroBatch:
    """What a process computes at once.

    Attributes:
        start: first position in the epoch's order.
        stop: past the last one.
        weight: what its images' mean loss counts in the step's; over all parts and processes these add up to 1.
        shared: whether the other processes compute the rest of this part. False: every process computes all of it,
            because it is too small to cut, or there is one process only.
        counted: whether its images belong into this process's counters.
        last: whether it ends a step.
    """

    start: int = 0
    stop: int = 0
    weight: float = 1.0
    shared: bool = False
    counted: bool = True
    last: bool = True


def shard_step(start: int, stop: int, share: Shard) -> list[MicroBatch]:
    """A step's positions as parts for one process.

    A last, smaller batch that leaves a process fewer than two images is computed whole by every process, and counted by
    the first: BatchNorm learns nothing of one image.
    """
    count = stop - start
    parts = share.parts if count >= 2 * share.parts else 1
    bounds = [start + count * part // parts for part in range(parts + 1)]
    cuts = []
    for low, high in zip(bounds, bounds[1:], strict=False):
        last = high == stop
        if share.processes > 1 and high - low >= 2 * share.processes:
            own = share.slice(low, high)
            cuts.append(MicroBatch(*own, (own[1] - own[0]) / count, shared=True, last=last))
        else:
            weight = (high - low) / count / share.processes
            cuts.append(MicroBatch(low, high, weight, counted=share.rank == 0, last=last))
    return cuts
