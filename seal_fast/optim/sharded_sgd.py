"""`ShardedSGD`: `AnnealedSGD` among many processes, each of which keeps and updates its slice of the parameters.

Gradients are summed where they are needed (reduce-scatter), the slice is updated by the same kernel, and the weights
are put together again (all-gather). Source: ZeRO stage 1 (Rajbhandari et al., SC 2020, arXiv 1910.02054).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seal_fast.distributed.world import World
from seal_fast.kernels.annealed_sgd import annealed_sgd_
from seal_fast.optim.annealed_sgd import AnnealedSGD
from seal_fast.optim.collectives import kept_slice, own_slice
from seal_fast.optim.mapped import make_exchange


@dataclass
class Bucket:
    """What is exchanged at once: a stretch of the flat buffers, and this process's slice of it.

    Attributes:
        everyones: the stretch.
        own: this process's slice of it.
        kept: the same slice, in buffers that hold nothing but slices.
        table: the parameters within the slice, for the kernel.
        members: indices of the parameters in the stretch.
        missing: members whose gradients have not come yet.
        received: waits for the slice's gradients; None until they are sent for.
    """

    everyones: slice
    own: slice
    kept: slice
    table: Tensor
    members: list[int]
    missing: set[int]
    received: Callable[[], list[Tensor | None]] | None = None


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
        world.broadcast_(self._flat.buffer)
        self.exchange = make_exchange(world, self._flat, self._bf16)
        if self.exchange.bf16 is not None:
            self._bf16 = self.exchange.bf16
            for copy, view in zip(self._bf16_weights, self._flat.views(self._bf16), strict=True):
                copy.data = view
            self.refresh_bf16()
        world.barrier()  # from here on weights may change
        self._buckets = self._make_buckets()
        for bucket in self._buckets:
            for i in bucket.members:
                for leaf in (self._flat.params[i], *self._bf16_weights[i : i + 1]):
                    leaf.register_post_accumulate_grad_hook(self._arrival(bucket, i))

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update this process's slices and gather everyone's.

        Raises:
            RuntimeError: a parameter has no gradient or was moved, or `param_groups` was replaced.
        """
        if closure is not None:
            raise RuntimeError("ShardedSGD takes no closure: call backward() before step()")
        self._flat.check_in_place()
        self._check_groups()
        if missing := [i for bucket in self._buckets for i in bucket.missing if bucket.received is None]:
            raise RuntimeError(f"{self._flat.names[min(missing)]} has no gradient: every parameter must take part")
        weights = self._flat.buffer
        with torch.no_grad():
            gathered = []
            for bucket in self._buckets:
                assert bucket.received is not None
                annealed_sgd_(
                    weights[bucket.own],
                    self._momentum[bucket.kept],
                    bucket.received(),
                    bucket.table,
                    self.hyper,
                    grad_scale=getattr(self, "grad_scale", None),
                    found_inf=getattr(self, "found_inf", None),
                    ema=None if self._ema is None else self._ema[bucket.kept],
                    ema_decay=self._ema_decay,
                    bf16=None if self._bf16 is None else self._bf16[bucket.own],
                    norms=self.norms,
                    parts=self.exchange.parts,
                    backend=self.backend,
                )
                gathered.append(self.exchange.all_gather(bucket.everyones))
                bucket.received, bucket.missing = None, set(bucket.members)
            for wait in gathered:
                wait()
        torch.autograd.graph.increment_version(self._watched)

    @torch.no_grad()
    def overflow(self) -> Tensor:
        """Whether any process has a gradient that is not finite: float32, 0 or 1."""
        bad = (~self.exchange.finite()).float()
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
        for everyones, _, kept_here in self._slices():
            torch.distributed.all_gather_single(whole[everyones], kept[kept_here])
        return self._flat.copies(whole)

    def _set_by_name(self, kept: Tensor, state: Mapping[str, Tensor]) -> None:
        whole = torch.zeros_like(self._flat.buffer)
        self._flat.write(whole, state)
        kept.copy_(self._own(whole))

    def _slices(self) -> list[tuple[slice, slice, slice]]:
        """Of each bucket: its stretch of the flat buffer, our slice of that, and where we keep the slice."""
        (begin, end), *others = self._flat.regions
        stretches = [slice(begin, end)] + ([slice(others[0][0], others[-1][1])] if others else [])
        return [(stretch, own_slice(stretch, self.world), kept_slice(stretch, self.world)) for stretch in stretches]

    def _make_buckets(self) -> list[Bucket]:
        buckets = []
        for everyones, own, kept in self._slices():
            members = [i for i, at in enumerate(self._flat.begins) if everyones.start <= at < everyones.stop]
            buckets.append(Bucket(everyones, own, kept, self.exchange.table(everyones), members, set(members)))
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
            gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
            bucket.received = self.exchange.reduce_scatter(bucket.everyones, bucket.members, gradients)
            for leaf in leaves:
                leaf.grad = None

    def _leaf(self, index: int) -> Tensor:
        """The parameter or its bfloat16 copy, whichever the gradient came to."""
        parameter = self._flat.params[index]
        return parameter if parameter.grad is not None else self._bf16_weights[index]


class SharedScaler(torch.amp.GradScaler):
    """A gradient scaler whose infinities are everyone's; for `ShardedSGD`, whose gradients are gone by then."""

    def _unscale_grads_(self, optimizer: Any, *_: Any) -> dict[torch.device, Tensor]:
        bad = optimizer.overflow()
        return {bad.device: bad}
