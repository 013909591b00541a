"""The two exchanges of a sharded update, and what they cost: a reduce-scatter and an all-gather of flat tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from seal_fast.distributed import World
from seal_fast.mapped import common_memory

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


class Exchange:
    """Both exchanges over stretches of flat buffers, begun now and waited for later.

    A stretch consists of as many slices as there are processes, in the order of the ranks.

    Gloo's reduce-scatter is an all-reduce of everything (twice the bytes), and its all-gather goes round in a ring, so
    on the CPU both are one all-to-all, with the sum taken here, in the order of the ranks: the same every time.

    Args:
        world: the processes.
        like: a flat buffer [n] such as those that stretches will be of.

    Attributes:
        gradients: [n], what the reduce-scatter sums.
        traffic: so far.
    """

    def __init__(self, world: World, like: Tensor) -> None:
        self.world, self.traffic = world, Traffic()
        self.gradients = torch.zeros_like(like)
        self._scratch = torch.empty(0) if like.is_cuda else torch.empty_like(like)

    def reduce_scatter(self, own: Tensor, stretch: slice) -> Wait:
        """Sum a stretch of `gradients`; this process gets its slice of the sum.

        Args:
            own: receives the slice; it is there after the returned function was called.
            stretch: not to be written until then.
        """
        everyones, scratch = self.gradients[stretch], self._scratch[stretch]
        self.traffic.count(everyones, self.world.size)
        if everyones.is_cuda:
            work = dist.reduce_scatter_single(own, everyones, async_op=True)
            assert work is not None
            return work.wait
        work = dist.all_to_all_single(scratch, everyones, async_op=True)
        assert work is not None

        def wait() -> None:
            work.wait()
            torch.sum(scratch.view(self.world.size, -1), 0, out=own)

        return wait

    def all_gather(self, buffer: Tensor, stretch: slice) -> Wait:
        """Fill a stretch of `buffer` [n] with the slices that each process has of it in its own.

        The others' slices are there after the returned function was called. Begin no other exchange of the same
        stretch before that.
        """
        everyones, own = buffer[stretch], buffer[self.own(stretch)]
        self.traffic.count(everyones, self.world.size)
        if everyones.is_cuda:
            work = dist.all_gather_single(everyones, own, async_op=True)
        else:
            scratch = self._scratch[stretch]
            scratch.view(self.world.size, -1).copy_(own)
            work = dist.all_to_all_single(everyones, scratch, async_op=True)
        assert work is not None
        return work.wait

    def own(self, stretch: slice, rank: int | None = None) -> slice:
        """This process's slice of a stretch, or that of another."""
        size = (stretch.stop - stretch.start) // self.world.size
        first = stretch.start + size * (self.world.rank if rank is None else rank)
        return slice(first, first + size)


class MappedExchange(Exchange):
    """The same between processes of one machine, on the CPU: each reads what the others have in memory they all map.

    An exchange is then a barrier, after which every process fetches its share. Sockets would copy all of it four times
    over, on cores that have a network to train.

    Args:
        world: the processes.
        memory: of each process by rank, flat [n + n / W]: its gradients, and the slices it gives to others.
    """

    def __init__(self, world: World, memory: list[Tensor]) -> None:
        self.world, self.traffic = world, Traffic()
        count = len(memory[0]) * world.size // (world.size + 1)
        self._gradients = [part[:count] for part in memory]
        self._given = [part[count:] for part in memory]
        self.gradients = self._gradients[world.rank]
        self._being_read: set[int] = set()  # stretches given, by their begin, which a slower process may still fetch

    def reduce_scatter(self, own: Tensor, stretch: slice) -> Wait:
        """As for `Exchange`. All-gather the stretch before its gradients are written again: others may still read."""
        arrived = self._barrier()

        def wait() -> None:
            arrived()
            self._being_read.clear()  # everyone has come here
            first, second, *others = (gradients[self.own(stretch)] for gradients in self._gradients)
            torch.add(first, second, out=own)
            for other in others:
                own.add_(other)

        return wait

    def all_gather(self, buffer: Tensor, stretch: slice) -> Wait:
        """As for `Exchange`."""
        if stretch.start in self._being_read:
            self._barrier()()
            self._being_read.clear()
        self._being_read.add(stretch.start)
        share = slice(stretch.start // self.world.size, stretch.stop // self.world.size)
        self._given[self.world.rank][share].copy_(buffer[self.own(stretch)])
        arrived = self._barrier()

        def wait() -> None:
            arrived()
            for rank, given in enumerate(self._given):
                if rank != self.world.rank:
                    buffer[self.own(stretch, rank)].copy_(given[share])

        return wait

    def _barrier(self) -> Wait:
        self.traffic.collectives += 1
        work = dist.barrier(async_op=True)
        assert work is not None
        return work.wait


def make_exchange(world: World, like: Tensor) -> Exchange:
    """The exchange for flat buffers such as `like`: through common memory where all processes can have it."""
    if not like.is_cuda and world.local_size == world.size:
        memory = common_memory(world, like.numel() // world.size * (world.size + 1), like.dtype)
        if memory is not None:
            return MappedExchange(world, memory)
    return Exchange(world, like)
