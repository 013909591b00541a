"""Processes of one machine that train one set of weights, in memory that all of them map.

The memory leaves no file behind, however the processes end.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from seal_fast.distributed.world import World
from seal_fast.kernels.annealed_sgd import FlatParameters, shard_table
from seal_fast.optim.collectives import Exchange, Traffic, own_slice

FOLDER = "/dev/shm"
APART = 17 * 64  # bytes between buffers, so that they do not meet in the cache (seal_fast.kernels.pages)


class MappedExchange(Exchange):
    """`Exchange` without sending anything: weights exist once, and every process reads the others' gradients.

    A process lays its gradients down as autograd made them, and adds everyone's up while it updates its slices of the
    common weights. Two barriers a step, around the updates, see to it that nobody writes what another one still reads.
    Sockets would copy all of it four times over, on cores that have a network to train.

    Who writes weights by other means does so on all processes, with the same numbers and each number once, and after
    `World.barrier()` where others might not be through with what was there.

    Args:
        world: the processes.
        flat: the weights; they move.
        bf16: a bfloat16 copy of them, if there is one; it moves too.
        memory: of each process by rank, uint8; as many as `needed`.
    """

    def __init__(self, world: World, flat: FlatParameters, bf16: Tensor | None, memory: list[Tensor]) -> None:
        self.world, self.flat, self.traffic, self.parts = world, flat, Traffic(), world.size
        size = _bytes(flat.buffer)
        self._memory = [part[APART * rank :][:size] for rank, part in enumerate(memory)]
        common = memory[0][size + APART * world.size :]
        flat.move(common[:size].view(flat.buffer.dtype))
        self.bf16 = None if bf16 is None else common[size + APART :].view(torch.bfloat16).copy_(bf16)
        self._gradients: list[list[Tensor | None]] = [[None] * len(flat.params) for _ in memory]
        self._laid = self._updated = False  # gradients, weights: whether since the last barrier

    @staticmethod
    def needed(world: World, flat: FlatParameters, bf16: Tensor | None) -> list[int]:
        """Bytes that each process is to share: its gradients, and the first one the weights and their copy too."""
        size = _bytes(flat.buffer)
        weights = APART * world.size + size + (0 if bf16 is None else APART + _bytes(bf16))
        return [size + (APART * rank if rank else weights) for rank in range(world.size)]

    def table(self, stretch: slice) -> Tensor:
        """As for `Exchange`."""
        own = own_slice(stretch, self.world)
        return shard_table(self.flat.segments, own.start, own.stop)

    def reduce_scatter(
        self, stretch: slice, members: list[int], gradients: list[Tensor]
    ) -> Callable[[], list[Tensor | None]]:
        """As for `Exchange`; wait for no stretch before all are sent."""
        own = self._gradients[self.world.rank]
        for i, gradient in zip(members, gradients, strict=True):
            there = own[i]
            if there is None or there.dtype != gradient.dtype:
                for memory, views in zip(self._memory, self._gradients, strict=True):
                    views[i] = self._place(memory, i, gradient.dtype)
        torch._foreach_copy_([own[i] for i in members], gradients)  # pyright: ignore
        self._laid = True

        def wait() -> list[Tensor | None]:
            if self._laid:
                self._barrier()
            self._laid = False
            return [view for views in self._gradients for view in views]

        return wait

    def all_gather(self, stretch: slice) -> Callable[[], None]:
        """As for `Exchange`; wait for no stretch before all are updated."""
        self._updated = True

        def wait() -> None:
            if self._updated:
                self._barrier()
            self._updated = False

        return wait

    def finite(self) -> Tensor:
        """As for `Exchange`."""
        own = self._gradients[self.world.rank]
        return torch.stack([torch.isfinite(view).all() for view in own if view is not None]).all()

    def _place(self, memory: Tensor, index: int, dtype: torch.dtype) -> Tensor:
        """Where a process lays the gradient of one parameter, of the parameter's shape and strides."""
        parameter = self.flat.params[index]
        begin = self.flat.begins[index] * parameter.element_size()
        there = memory[begin : begin + parameter.numel() * dtype.itemsize].view(dtype)
        return there.as_strided(parameter.shape, parameter.stride())

    def _barrier(self) -> None:
        self.traffic.collectives += 1
        dist.barrier()


def make_exchange(world: World, flat: FlatParameters, bf16: Tensor | None = None) -> Exchange:
    """The exchange for these weights: through common memory where all processes can have it."""
    if not flat.buffer.is_cuda and world.local_size == world.size:
        memory = common_memory(world, MappedExchange.needed(world, flat, bf16))
        if memory is not None:
            return MappedExchange(world, flat, bf16, memory)
    return Exchange(world, flat, bf16)


def common_memory(world: World, sizes: Sequence[int]) -> list[Tensor] | None:
    """Zeros, uint8, of each process, by rank; all of them can read and write all.

    Args:
        world: the processes, on one machine.
        sizes: bytes of each.

    Returns:
        None, on all processes, where the machine cannot give one of them so much memory to share.
    """
    own, path = None, ""
    try:
        handle, path = tempfile.mkstemp(prefix="seal_fast-", dir=FOLDER)
        try:
            os.posix_fallocate(handle, 0, sizes[world.rank])  # now, for later it would be a bus error
        finally:
            os.close(handle)
        own = path
    except OSError:
        pass
    try:
        paths = world.all_gather_object(own or "")
        mapped = None
        if all(paths):
            files = zip(paths, sizes, strict=True)
            mapped = [torch.from_file(other, shared=True, size=size, dtype=torch.uint8) for other, size in files]
        world.all_gather_object("")  # all have opened all
        return mapped
    finally:
        if path:
            Path(path).unlink(missing_ok=True)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
