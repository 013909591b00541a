"""How an epoch's positions are divided into steps, micro-batches and processes. Pure arithmetic.

A step is `batch_size` consecutive positions however many processes there are; order, augmentation and learning rate are
functions of the position, so the same seed is the same training on any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from seal_fast.utils.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Which process this is, of how many, and in how many parts each computes its images of a step."""

    rank: int = 0
    processes: int = 1
    parts: int = 1

    def micro_batch_size(self, batch_size: int) -> int:
        """Images of a full step that this process computes at once.

        Raises:
            UsageError: the batch cannot be divided equally.
        """
        pieces = self.processes * self.parts
        if batch_size % pieces or (pieces > 1 and batch_size < 2 * pieces):
            raise UsageError(
                f"--batch-size {batch_size} cannot be divided equally among {self.processes} processes with "
                f"--accumulate {self.parts}: choose a multiple of {pieces} from {2 * pieces} on"
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
        weight: of its images' mean loss in the step's; over all parts and processes these add up to 1.
        shared: whether the other processes compute the rest of this part. False: every process computes all of it,
            because it is too small to divide, or there is one process only.
        counted: whether its images go into this process's counters.
        last: whether it ends a step.
    """

    start: int = 0
    stop: int = 0
    weight: float = 1.0
    shared: bool = False
    counted: bool = True
    last: bool = True


def shard_step(start: int, stop: int, shard: Shard) -> list[MicroBatch]:
    """A step's positions as micro-batches of one process.

    A last, smaller batch that leaves a process fewer than two images is computed whole by every process, and counted by
    the first: BatchNorm learns nothing of one image.
    """
    count = stop - start
    parts = shard.parts if count >= 2 * shard.parts else 1
    bounds = [start + count * part // parts for part in range(parts + 1)]
    micro_batches = []
    for low, high in zip(bounds, bounds[1:], strict=False):
        shared = shard.processes > 1 and high - low >= 2 * shard.processes
        first, end = shard.slice(low, high) if shared else (low, high)
        weight = (end - first) / count / (1 if shared else shard.processes)
        micro_batches.append(MicroBatch(first, end, weight, shared, shared or shard.rank == 0, high == stop))
    return micro_batches
