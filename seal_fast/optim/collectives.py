"""The two exchanges of a sharded update, and what they cost: gradients summed by slice, weights put together again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from seal_fast.distributed.world import World
from seal_fast.kernels.annealed_sgd import FlatParameters, shard_table
from seal_fast.kernels.torch_private import foreach_copy_


@dataclass
class Traffic:
    """What this process has started so far: collectives, and bytes it had to send for them."""

    collectives: int = 0
    bytes: int = 0

    def count(self, tensor: Tensor, processes: int) -> None:
        """A collective over a flat tensor: each process sends all of it but its own slice."""
        self.collectives += 1
        self.bytes += tensor.numel() * tensor.element_size() * (processes - 1) // processes


class Exchange:
    """Both exchanges over stretches of the flat buffers, begun now and waited for later.

    A stretch consists of as many slices as there are processes, in the order of the ranks.

    Gloo's reduce-scatter is an all-reduce of everything (twice the bytes), and its all-gather goes round in a ring, so
    on the CPU both are one all-to-all, with the sum taken here, in the order of the ranks: the same every time.

    Args:
        world: the processes.
        flat: the weights, of which each process updates its slices.
        bf16: a bfloat16 copy of them, if there is one.

    Attributes:
        parts: how many summands a gradient has when `annealed_sgd_` is given it.
        bf16: where the copy now lies.
        traffic: so far.
    """

    parts = 1

    def __init__(self, world: World, flat: FlatParameters, bf16: Tensor | None) -> None:
        self.world, self.flat, self.bf16, self.traffic = world, flat, bf16, Traffic()
        self._gradients = torch.zeros_like(flat.buffer)
        self._views = flat.views(self._gradients)
        self._sums = torch.empty_like(self._gradients[: len(self._gradients) // world.size])
        self._scratch = torch.empty(0) if self._gradients.is_cuda else torch.empty_like(self._gradients)

    def table(self, stretch: slice) -> Tensor:
        """The parameters in this process's slice of a stretch, for `annealed_sgd_`."""
        own = own_slice(stretch, self.world)
        return shard_table(self.flat.segments, own.start, own.stop, flat_gradient=True)

    def reduce_scatter(
        self, stretch: slice, members: list[int], gradients: list[Tensor]
    ) -> Callable[[], list[Tensor | None]]:
        """Sum the gradients of a stretch, for each process in its slice.

        Args:
            stretch: not to be sent again before its weights were gathered.
            members: indices of the parameters in it, of all.
            gradients: of those; copied.

        Returns:
            What waits for the slice, and returns the gradients that `annealed_sgd_` wants beside `table(stretch)`.
        """
        foreach_copy_([self._views[i] for i in members], gradients)
        everyones, own, scratch = (
            self._gradients[stretch],
            self._sums[kept_slice(stretch, self.world)],
            self._scratch[stretch],
        )
        self.traffic.count(everyones, self.world.size)
        if everyones.is_cuda:
            work = dist.reduce_scatter_single(own, everyones, async_op=True)
        else:
            work = dist.all_to_all_single(scratch, everyones, async_op=True)
        assert work is not None

        def wait() -> list[Tensor | None]:
            work.wait()
            if not everyones.is_cuda:
                torch.sum(scratch.view(self.world.size, -1), 0, out=own)
            return [own]

        return wait

    def all_gather(self, stretch: slice) -> Callable[[], None]:
        """Put a stretch of the weights together from the slices that each process has updated.

        Returns:
            What waits for the others' slices.
        """
        weights, mine = self.flat.buffer, own_slice(stretch, self.world)
        everyones = weights[stretch]
        self.traffic.count(everyones, self.world.size)
        if everyones.is_cuda:
            work = dist.all_gather_single(everyones, weights[mine], async_op=True)
        else:
            scratch = self._scratch[stretch]
            scratch.view(self.world.size, -1).copy_(weights[mine])
            work = dist.all_to_all_single(everyones, scratch, async_op=True)
        assert work is not None

        def wait() -> None:
            work.wait()
            if self.bf16 is not None:
                for others in (slice(stretch.start, mine.start), slice(mine.stop, stretch.stop)):
                    self.bf16[others] = weights[others]

        return wait

    def finite(self) -> Tensor:
        """Whether all gradients that this process has sent are finite: bool, on the device."""
        return torch.stack([torch.isfinite(view).all() for view in self._views]).all()


def own_slice(stretch: slice, world: World) -> slice:
    """This process's slice of a stretch."""
    size = (stretch.stop - stretch.start) // world.size
    first = stretch.start + size * world.rank
    return slice(first, first + size)


def kept_slice(stretch: slice, world: World) -> slice:
    """The same slice, in buffers that hold nothing but this process's slices."""
    return slice(stretch.start // world.size, stretch.stop // world.size)
