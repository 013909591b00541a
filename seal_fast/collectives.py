"""The two exchanges of a sharded update, and what they cost: a reduce-scatter and an all-gather of flat tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

Wait = Callable[[], object]


@dataclass
class Traffic:
    """What this process has started so far: collectives, and bytes it had to send for them."""

    collectives: int = 0
    bytes: int = 0

    def count(self, tensor: Tensor, processes: int) -> None:
        """A collective over a flat tensor: each process sends all of it but its own slice."""
        self.collectives += 1
        self.bytes += tensor.numel() * tensor.element_size() * (processes - 1) // processes


@dataclass
class Exchange:
    """Both exchanges, begun now and waited for later.

    Gloo's reduce-scatter is an all-reduce of everything (twice the bytes), and its all-gather goes round in a ring, so
    on the CPU both are one all-to-all, with the sum taken here, in the order of the ranks: the same every time.
    """

    processes: int
    traffic: Traffic = field(default_factory=Traffic)

    def reduce_scatter(self, own: Tensor, everyones: Tensor, scratch: Tensor | None) -> Wait:
        """Sum `everyones` [n] over the processes; this one gets its slice of the sum into `own` [n / processes].

        Args:
            own: receives the slice; it is there after the returned function was called.
            everyones: not to be written until then.
            scratch: [n], on the CPU.
        """
        self.traffic.count(everyones, self.processes)
        if everyones.is_cuda:
            work = dist.reduce_scatter_single(own, everyones, async_op=True)
            assert work is not None
            return work.wait
        assert scratch is not None
        work = dist.all_to_all_single(scratch, everyones, async_op=True)
        assert work is not None

        def wait() -> None:
            work.wait()
            torch.sum(scratch.view(self.processes, -1), 0, out=own)

        return wait

    def all_gather(self, everyones: Tensor, own: Tensor, scratch: Tensor) -> Wait:
        """Fill `everyones` [n] with the slices `own` [n / processes] of all processes, in the order of the ranks.

        Args:
            everyones: complete after the returned function was called.
            own: may be this process's slice of `everyones`.
            scratch: [n].
        """
        self.traffic.count(everyones, self.processes)
        if everyones.is_cuda:
            work = dist.all_gather_single(everyones, own, async_op=True)
        else:
            scratch.view(self.processes, -1).copy_(own)
            work = dist.all_to_all_single(everyones, scratch, async_op=True)
        assert work is not None
        return work.wait
