"""`ShardedSGD`: `AnnealedSGD` among many processes, each of which keeps and updates its slice of the parameters.

Gradients are summed where they are needed (reduce-scatter), the slice is updated by the same kernel, and the weights
are put together again (all-gather). Source: ZeRO stage 1 (Rajbhandari et al., SC 2020, arXiv 1910.02054).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from seal_fast.collectives import Wait, make_exchange
from seal_fast.distributed import World
from seal_fast.kernels.annealed_sgd import annealed_sgd_, shard_table
from seal_fast.optim import AnnealedSGD


@dataclass
class Bucket:
    """What is exchanged at once: a stretch of the flat buffers, and this process's slice of it.

    Attributes:
        everyones: the stretch.
        own: this process's slice of it.
        kept: the same slice, in buffers that hold nothing but slices.
        table: the parameters within the slice, for the kernel.
        members: indices of the parameters in it.
        views: where each member's gradient goes.
        gradient: of the slice, summed over the processes.
        missing: members whose gradients have not come yet.
        received: waits for `gradient`; None until it is sent for.
    """

    everyones: slice
    own: slice
    kept: slice
    table: Tensor
    members: list[int]
    views: list[Tensor]
    gradient: Tensor
    missing: set[int] = field(default_factory=set)
    received: Wait | None = None


class ShardedSGD(AnnealedSGD):
    """`AnnealedSGD` over the processes of `world`; momentum and average exist for this process's slice only.

    There are two buckets: the first group, and all others. The others' gradients leave as soon as the last of them is
    there, while the backward pass goes on with the earlier layers. Every process must take the same steps. Gradients
    are summed, not averaged: weight the losses. `norms`, if asked for, are of this process's slice.

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
        self.exchange = make_exchange(world, self._flat.buffer)
        world.from_first(self._flat.buffer)
        if self._bf16 is not None:
            self.refresh_bf16()
        self._buckets = self._make_buckets()
        for bucket in self._buckets:
            for i in bucket.members:
                for leaf in (self._flat.params[i], *self._bf16_weights[i : i + 1]):
                    leaf.register_post_accumulate_grad_hook(self._arrival(bucket, i))

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update this process's slices and gather everyone's.

        Raises:
            RuntimeError: a parameter has no gradient or was moved, or a number in `param_groups` was replaced.
        """
        if closure is not None:
            raise RuntimeError("ShardedSGD takes no closure: call backward() before step()")
        self._flat.check_in_place()
        self._check_numbers_in_place()
        if missing := [i for bucket in self._buckets for i in bucket.missing if bucket.received is None]:
            raise RuntimeError(f"{self._flat.names[min(missing)]} has no gradient: every parameter must take part")
        weights = self._flat.buffer
        with torch.no_grad():
            gathered = []
            for bucket in self._buckets:
                self._receive(bucket)
                annealed_sgd_(
                    weights[bucket.own],
                    self._momentum[bucket.kept],
                    [bucket.gradient],
                    bucket.table,
                    self.hyper,
                    grad_scale=getattr(self, "grad_scale", None),
                    found_inf=getattr(self, "found_inf", None),
                    ema=None if self._ema is None else self._ema[bucket.kept],
                    ema_decay=self._ema_decay,
                    bf16=None if self._bf16 is None else self._bf16[bucket.own],
                    norms=self.norms,
                    backend=self.backend,
                )
                gathered.append(self.exchange.all_gather(weights, bucket.everyones))
                self._rearm(bucket)
            for bucket, wait in zip(self._buckets, gathered, strict=True):
                wait()
                if self._bf16 is not None:
                    begin, end = bucket.everyones.start, bucket.everyones.stop
                    for others in (slice(begin, bucket.own.start), slice(bucket.own.stop, end)):
                        self._bf16[others] = weights[others]
        torch.autograd.graph.increment_version(self._flat.params + self._bf16_weights)

    @torch.no_grad()
    def overflow(self) -> Tensor:
        """Whether any process has a gradient that is not finite: float32, 0 or 1."""
        for bucket in self._buckets:
            self._receive(bucket)
        bad = torch.stack([~torch.isfinite(bucket.gradient).all() for bucket in self._buckets]).any().float()
        torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        self.exchange.traffic.count(bad, 1)
        return bad

    def state_dict(self) -> dict[str, Any]:
        """Not offered: no process has the whole state.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a ShardedSGD's state lies on many processes: use momentum_state(), on all of them")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Not offered, see `state_dict`.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a ShardedSGD's state lies on many processes: use load_momentum_state(), on all of them")

    # --- slices ------------------------------------------------------------------------------------------------------

    def _own(self, buffer: Tensor) -> Tensor:
        return torch.cat([buffer[own] for _, own, _ in self._slices()])

    def _by_name(self, kept: Tensor) -> dict[str, Tensor]:
        whole = torch.zeros_like(self._flat.buffer)
        for everyones, own, kept_here in self._slices():
            whole[own] = kept[kept_here]
            self.exchange.all_gather(whole, everyones)()
        return self._flat.copies(whole)

    def _set_by_name(self, kept: Tensor, state: Mapping[str, Tensor]) -> None:
        whole = torch.zeros_like(self._flat.buffer)
        self._flat.write(whole, state)
        kept.copy_(self._own(whole))

    def _slices(self) -> list[tuple[slice, slice, slice]]:
        """Of each bucket: its stretch of the flat buffer, our slice of that, and where we keep the slice."""
        slices, kept = [], 0
        first_group, *others = self._flat.regions
        for begin, end in [first_group] + ([(others[0][0], others[-1][1])] if others else []):
            size = (end - begin) // self.shards
            first = begin + size * self.world.rank
            slices.append((slice(begin, end), slice(first, first + size), slice(kept, kept + size)))
            kept += size
        return slices

    def _make_buckets(self) -> list[Bucket]:
        views = self._flat.views(self.exchange.gradients)
        buckets = []
        for everyones, own, kept in self._slices():
            members = [i for i, at in enumerate(self._flat.begins) if everyones.start <= at < everyones.stop]
            table = shard_table(self._flat.segments, own.start, own.stop, flat_gradient=True)
            gradient = torch.empty_like(self._flat.buffer[own])
            mine = [views[i] for i in members]
            buckets.append(Bucket(everyones, own, kept, table, members, mine, gradient, set(members)))
        return buckets[::-1]  # the backward pass comes to the last layers first

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
        """Send what is complete, in the order that all processes keep."""
        for bucket in self._buckets:
            if bucket.received is not None:
                continue
            if bucket.missing:
                return
            leaves = [self._leaf(i) for i in bucket.members]
            torch._foreach_copy_(bucket.views, [leaf.grad for leaf in leaves])  # pyright: ignore
            for leaf in leaves:
                leaf.grad = None
            bucket.received = self.exchange.reduce_scatter(bucket.gradient, bucket.everyones)

    def _leaf(self, index: int) -> Tensor:
        """The parameter or its bfloat16 copy, whichever the gradient came to."""
        parameter = self._flat.params[index]
        return parameter if parameter.grad is not None else self._bf16_weights[index]

    def _receive(self, bucket: Bucket) -> None:
        assert bucket.received is not None
        bucket.received()
        bucket.received = _nothing

    def _rearm(self, bucket: Bucket) -> None:
        bucket.received, bucket.missing = None, set(bucket.members)


class SharedScaler(torch.amp.GradScaler):
    """A gradient scaler whose infinities are everyone's; for `ShardedSGD`, whose gradients are gone by then."""

    def _unscale_grads_(self, optimizer: Any, *_: Any) -> dict[torch.device, Tensor]:
        bad = optimizer.overflow()
        return {bad.device: bad}


def _nothing() -> None:
    pass
