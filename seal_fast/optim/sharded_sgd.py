"""`ShardedSGD`: `AnnealedSGD` among many processes, each of which stores and updates its shard of the parameters.

Gradients are summed by shard (reduce-scatter), the same kernel updates the shard, and the weights are put together
again (all-gather). Source: ZeRO stage 1 (Rajbhandari et al., SC 2020, arXiv 1910.02054).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version

from seal_fast.distributed.world import World
from seal_fast.kernels.annealed_sgd import Buffers, shard_table
from seal_fast.kernels.torch_private import foreach_copy_
from seal_fast.optim.annealed_sgd import AnnealedSGD


@dataclass
class Bucket:
    """What is exchanged at once.

    Attributes:
        region: of the flat buffers; it consists of one shard for each process, in the order of the ranks.
        shard: this process's.
        local_shard: the same, in buffers that hold nothing but this process's shards.
        members: indices of the parameters in the region.
        missing: members whose gradients have not come yet.
        buffers: the shard, for the kernel.
        reduced: the running reduce-scatter of the gradients; None before it begins.
    """

    region: slice
    shard: slice
    local_shard: slice
    members: list[int]
    missing: set[int]
    buffers: Buffers
    reduced: Any = None


class ShardedSGD(AnnealedSGD):
    """`AnnealedSGD` over the processes of `world`; momentum and average exist for this process's shard only.

    There are two buckets: the first group, and all others. The reduce-scatter of the others begins when the last of
    their gradients is there, while the backward pass goes on with the earlier layers. Every process must take the same
    steps. Gradients are summed, not averaged: weight the losses. `norms`, if asked for, are of this process's shard.

    Set `sending` to False before the backward pass of every part of a step but the last: gradients then add up.

    Args:
        params: as for `AnnealedSGD`; equal on all processes.
        lr: as there.
        world: the processes.
        **options: as there.
    """

    def __init__(self, params: Iterable[Any], lr: Tensor, *, world: World, **options: Any) -> None:
        self.world = world
        self.shards = world.size
        super().__init__(params, lr, **options)
        world.broadcast_(self._flat.buffer)
        self._overwrite(self._flat.buffer)
        if self._ema is not None:
            self._ema.copy_(self._shard(self._flat.buffer))
        self._gradients = torch.zeros_like(self._flat.buffer)
        self._gradient_views = self._flat.views(self._gradients)
        self._summed = torch.zeros_like(self._momentum)
        self._buckets = [self._bucket(*slices) for slices in self._slices()[::-1]]  # as the backward pass comes to them
        for bucket in self._buckets:
            for i in bucket.members:
                for leaf in (self._flat.params[i], *self._flat.bf16_weights[i : i + 1]):
                    leaf.register_post_accumulate_grad_hook(self._arrival(bucket, i))

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update this process's shards and gather everyone's.

        Raises RuntimeError if a parameter has no gradient or was moved, or a number in `param_groups` was replaced.
        """
        if closure is not None:
            raise RuntimeError("ShardedSGD takes no closure: call backward() before step()")
        self._flat.check_in_place()
        self._check_groups()
        if missing := [i for bucket in self._buckets for i in bucket.missing if bucket.reduced is None]:
            raise RuntimeError(f"{self._flat.names[min(missing)]} has no gradient: every parameter must take part")
        weights, gathered = self._flat.buffer, []
        with torch.no_grad():
            for bucket in self._buckets:
                bucket.reduced.wait()
                if self._held is not None:
                    self._summed[bucket.local_shard] *= self._held[bucket.shard]
                self._update(bucket.buffers, [self._summed[bucket.local_shard]])
                gathered.append(dist.all_gather_single(weights[bucket.region], weights[bucket.shard], async_op=True))
                bucket.reduced, bucket.missing = None, set(bucket.members)
            for bucket, work in zip(self._buckets, gathered, strict=True):
                work.wait()
                if self._bf16 is not None:
                    self._bf16[bucket.region] = weights[bucket.region]
        increment_version([*self._flat.params, *self._flat.bf16_weights])

    @torch.no_grad()
    def overflow(self) -> Tensor:
        """Whether any process has a gradient that is not finite: float32, 0 or 1."""
        bad = torch.stack([~torch.isfinite(view).all() for view in self._gradient_views]).any().float()
        dist.all_reduce(bad, dist.ReduceOp.MAX)
        return bad

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(
            "a ShardedSGD cannot be copied, pickled, saved or loaded whole, because its state lies on many processes: "
            "use momentum_state() and load_momentum_state(), on all of them"
        )

    state_dict = load_state_dict = __reduce__ = _refuse

    # --- shards ------------------------------------------------------------------------------------------------------

    def _slices(self) -> list[tuple[slice, slice, slice]]:
        """Of each bucket the region, the shard and the local shard."""
        first, *others = self._flat.regions
        slices, rank, size = [], self.world.rank, self.world.size
        for begin, end in [first, *([(others[0][0], others[-1][1])] if others else [])]:
            length = (end - begin) // size
            shard = slice(begin + length * rank, begin + length * (rank + 1))
            slices.append((slice(begin, end), shard, slice(begin // size, end // size)))
        return slices

    def _shard(self, full: Tensor) -> Tensor:
        return torch.cat([full[shard] for _, shard, _ in self._slices()])

    def _full(self, shard: Tensor) -> Tensor:
        full = torch.zeros_like(self._flat.buffer)
        for region, _, local_shard in self._slices():
            dist.all_gather_single(full[region], shard[local_shard])
        return full

    def _write(self, buffer: Tensor, state: Mapping[str, Tensor]) -> None:
        full = torch.zeros_like(self._flat.buffer)
        self._flat.write(full, state)
        buffer.copy_(self._shard(full))

    def _bucket(self, region: slice, shard: slice, local_shard: slice) -> Bucket:
        members = [i for i, begin in enumerate(self._flat.begins) if region.start <= begin < region.stop]
        buffers = replace(
            self._buffers,
            param=self._flat.buffer[shard],
            momentum=self._momentum[local_shard],
            segments=shard_table(self._flat.segments, shard.start, shard.stop),
            ema=None if self._ema is None or self._buffers.ema is None else self._ema[local_shard],
            bf16=None,  # written whole, when the weights are
        )
        return Bucket(region, shard, local_shard, members, set(members), buffers)

    def _sum(self, flat: Tensor) -> None:
        dist.all_reduce(flat)

    # --- gradients ---------------------------------------------------------------------------------------------------

    def _arrival(self, bucket: Bucket, index: int) -> Callable[[Tensor], None]:
        def arrived(_leaf: Tensor) -> None:
            if self.sending:
                bucket.missing.discard(index)
                if not bucket.missing:
                    self._send()

        return arrived

    @torch.no_grad()
    def _send(self) -> None:
        """Begin to reduce what is complete, in the order that all processes keep."""
        for bucket in self._buckets:
            if bucket.reduced is not None:
                continue
            if bucket.missing:
                return
            gradients = [self._flat.gradient(i) for i in bucket.members]
            foreach_copy_([self._gradient_views[i] for i in bucket.members], gradients)  # type: ignore[arg-type]
            bucket.reduced = dist.reduce_scatter_single(
                self._summed[bucket.local_shard], self._gradients[bucket.region], async_op=True
            )
            for i in bucket.members:
                for leaf in (self._flat.params[i], *self._flat.bf16_weights[i : i + 1]):
                    leaf.grad = None


class SharedScaler(torch.amp.GradScaler):
    """A gradient scaler that sees the infinities of all processes; `ShardedSGD` has sent the gradients by then."""

    def _unscale_grads_(self, optimizer: Any, *_: Any) -> dict[torch.device, Tensor]:
        bad = optimizer.overflow()
        return {bad.device: bad}
