"""`Buffers`: the tensors that an update works on, and the checks that all backends rely on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seal_fast.kernels.annealed_sgd import plan
from seal_fast.kernels.annealed_sgd.layout import is_dense

# The columns of `Buffers.hyper`.
HYPERPARAMETERS: tuple[str, ...] = ("lr", "momentum", "weight_decay", "sign", "lr_multiplier")


@dataclass(frozen=True)
class Buffers:
    """A flat buffer of parameters, or any contiguous slice of one, and what belongs to it.

    Attributes:
        param: weights [n], float32 or float64.
        momentum: momentum [n], of param's type.
        segments: int64 [parameters, 5] on the CPU, from `segment_table` or `shard_table`. What lies between segments is
            never read or written.
        hyper: float64 [groups, 5] on param's device, columns as in `HYPERPARAMETERS`.
        ema: running average of the weights [n], of param's type. Needs `ema_decay`.
        ema_decay: float64 scalar.
        bf16: bfloat16 [n], receives the rounded new weights.
        norms: float64 [groups, 2], to which the squared norms of gradient (unscaled, before weight decay) and update
            are added.
    """

    param: Tensor
    momentum: Tensor
    segments: Tensor
    hyper: Tensor
    ema: Tensor | None = None
    ema_decay: Tensor | None = None
    bf16: Tensor | None = None
    norms: Tensor | None = None

    def check(self, grads: Sequence[Tensor | None], grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Raise ValueError, naming the argument, unless all tensors fit together; the kernels get raw addresses."""
        n, dtype, device = self.param.numel(), self.param.dtype, self.param.device
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"annealed_sgd_: param must be float32 or float64, not {dtype}")
        if (self.ema is None) != (self.ema_decay is None):
            raise ValueError("annealed_sgd_: give ema and ema_decay together, or neither")
        groups = self.hyper.shape[0]
        for name, shape, kind in (
            ("param", (n,), dtype),
            ("momentum", (n,), dtype),
            ("ema", (n,), dtype),
            ("bf16", (n,), torch.bfloat16),
            ("hyper", (groups, len(HYPERPARAMETERS)), torch.float64),
            ("norms", (groups, 2), torch.float64),
        ):
            t: Tensor | None = getattr(self, name)
            if t is not None and (t.shape, t.dtype, t.device, t.is_contiguous()) != (shape, kind, device, True):
                raise ValueError(
                    f"annealed_sgd_: {name} must be a contiguous {kind} tensor of shape {list(shape)} on {device}, "
                    f"not {t.dtype} {list(t.shape)} on {t.device}"
                )
        for name, t, kind in (
            ("grad_scale", grad_scale, torch.float32),
            ("found_inf", found_inf, torch.float32),
            ("ema_decay", self.ema_decay, torch.float64),
        ):
            if t is not None and (t.numel(), t.dtype, t.device) != (1, kind, device):
                raise ValueError(f"annealed_sgd_: {name} must be one {kind} number on {device}")
        self._check_gradients(grads, plan.elements_needed(self.segments, n, groups, len(grads)))

    def _check_gradients(self, grads: Sequence[Tensor | None], needed: Sequence[int]) -> None:
        param, given = self.param, [g for g in grads if g is not None]
        # A network has hundreds of gradients and this runs every step: ask about the whole list first.
        kinds = {g.dtype for g in given}
        if not kinds <= {param.dtype, torch.bfloat16} or not set(map(Tensor.get_device, given)) <= {param.get_device()}:
            actual = ", ".join(sorted({f"{g.dtype} on {g.device}" for g in given}))
            raise ValueError(
                f"annealed_sgd_: gradients must be {param.dtype} or bfloat16, on {param.device}; they are {actual}"
            )
        for index, (g, elements) in enumerate(zip(grads, needed, strict=True)):
            if g is not None and (g.numel() < elements or not (g.is_contiguous() or is_dense(g))):
                raise ValueError(
                    f"annealed_sgd_: gradient {index} must be dense, with at least {elements} elements; "
                    f"it has shape {list(g.shape)} and strides {list(g.stride())}"
                )
