"""State by parameter name, over the flat buffers that `AnnealedSGD` updates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from seal_fast.kernels.annealed_sgd import FlatParameters
from seal_fast.kernels.torch_private import foreach_copy_, foreach_mul_


class FlatState(Optimizer):
    """What is kept beside the weights, and what may be done with both between steps."""

    _flat: FlatParameters
    _momentum: Tensor
    _ema: Tensor | None
    _bf16: Tensor | None
    _held: Tensor | None

    def reset_momentum(self, names: Iterable[str] | None = None) -> None:
        """Set momentum to zero, of all parameters or of those named, as a freshly built optimiser has it."""
        if names is None:
            self._momentum.zero_()
            return
        names, state = set(names), self.momentum_state()
        self.load_momentum_state({name: t.zero_() if name in names else t for name, t in state.items()})

    # --- held weights ------------------------------------------------------------------------------------------------

    @property
    def holds(self) -> bool:
        """Whether the optimiser was built with `hold`."""
        return self._held is not None

    @torch.no_grad()
    def hold(self, masks: Mapping[str, Tensor]) -> None:
        """From now on, elements whose mask is False get no gradient; their momentum is zeroed. {} releases all.

        An element that is zero thus stays zero, whatever its weight decay. Masks are bool, by parameter name; a
        parameter that is not named is free. RuntimeError without `hold`.
        """
        held = required(self._held, "hold=True").fill_(True)
        for name, view in zip(self._flat.names, self._flat.views(held), strict=True):
            if name in masks:
                view.copy_(masks[name])
        self._momentum.mul_(self._shard(held))

    def held_state(self) -> dict[str, Tensor]:
        """The masks by parameter name, as `hold` takes them; RuntimeError without `hold`."""
        return self._flat.copies(required(self._held, "hold=True"))

    def _mask(self, gradients: list[Tensor | None]) -> None:
        """Zero the gradients of held elements, in place."""
        if self._held is not None:
            pairs = [(g, m) for g, m in zip(gradients, self._flat.views(self._held), strict=True) if g is not None]
            foreach_mul_([g for g, _ in pairs], [m for _, m in pairs])

    # --- SAM ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def perturb(self, rho: float, adaptive: bool = False) -> None:
        """Move the weights p to p + e, where SAM or ASAM takes its gradient, and drop the gradients.

        e = rho * g / norm(g), or adaptive rho * p^2 * g / norm(abs(p) * g), with the norm over all parameters.
        """
        gradients = self._flat.gradients()
        self._mask(gradients)
        flat = torch.zeros_like(self._flat.buffer)
        pairs = [(v, g) for v, g in zip(self._flat.views(flat), gradients, strict=True) if g is not None]
        foreach_copy_([v for v, _ in pairs], [g for _, g in pairs])
        self._sum(flat)
        size = self._flat.buffer.abs() if adaptive else 1.0
        norm = (flat * size).norm()
        self._origin = self._flat.buffer.clone()
        self._overwrite(self._origin + flat * size * size * (rho / (norm + 1e-12)))
        self.zero_grad()

    def step_back(self) -> None:
        """Undo `perturb`, to the bit."""
        self._overwrite(self._origin)

    def _sum(self, flat: Tensor) -> None:
        """Add up what all processes have."""

    # --- averaged and bfloat16 weights -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters hold their averages within, afterwards their own bits; RuntimeError without `ema_decay`."""
        average = self._full(required(self._ema, "ema_decay=..."))
        weights = self._flat.buffer.clone()
        try:
            self._overwrite(average)
            yield
        finally:
            self._overwrite(weights)

    @torch.no_grad()
    def average_in(self, share: float) -> None:
        """Move the average by `share` of the way to the weights; RuntimeError without `ema_decay`."""
        required(self._ema, "ema_decay=...").lerp_(self._shard(self._flat.buffer), share)

    @torch.no_grad()
    def _overwrite(self, weights: Tensor) -> None:
        self._flat.buffer.copy_(weights)
        increment_version(self._flat.params)
        if self._bf16 is not None:
            self.refresh_bf16()

    def bf16_weights(self) -> dict[str, Tensor]:
        """The bfloat16 weights by parameter name, with the weights' strides; every step refreshes them.

        They are leaves: a forward pass may read them instead of the parameters (`torch.func.functional_call`), and a
        step uses the bfloat16 gradients that arrive there. A `GradScaler`, which float16 needs, does not see these.
        RuntimeError without `bf16_copy`.
        """
        required(self._bf16, "bf16_copy=True")
        return dict(zip(self._flat.names, self._flat.bf16_weights, strict=True))

    @torch.no_grad()
    def refresh_bf16(self) -> None:
        """Make the bfloat16 weights anew, after the weights were written by other means than a step."""
        required(self._bf16, "bf16_copy=True").copy_(self._flat.buffer)
        increment_version(self._flat.bf16_weights)

    def momentum_state(self) -> dict[str, Tensor]:
        """Momentum by parameter name: contiguous copies in the parameters' shapes."""
        return self._flat.copies(self._full(self._momentum))

    def load_momentum_state(self, state: Mapping[str, Tensor]) -> None:
        """Write momentum by parameter name, from tensors of any memory layout; ValueError for other names or shapes."""
        self._write(self._momentum, state)

    def ema_state(self) -> dict[str, Tensor]:
        """Averaged weights as `momentum_state` returns momentum; RuntimeError without `ema_decay`."""
        return self._flat.copies(self._full(required(self._ema, "ema_decay=...")))

    def load_ema_state(self, state: Mapping[str, Tensor]) -> None:
        """Write averaged weights, as `load_momentum_state` does momentum."""
        self._write(required(self._ema, "ema_decay=..."), state)

    def _shard(self, full: Tensor) -> Tensor:
        """The part of a flat buffer that this optimiser updates."""
        return full

    def _full(self, shard: Tensor) -> Tensor:
        """The flat buffer that a shard is a part of."""
        return shard

    def _write(self, buffer: Tensor, state: Mapping[str, Tensor]) -> None:
        self._flat.write(buffer, state)


def required(buffer: Tensor | None, argument: str) -> Tensor:
    """The buffer, or RuntimeError if the optimiser was built without it."""
    if buffer is None:
        raise RuntimeError(f"this optimiser does not keep that: build AnnealedSGD with {argument}")
    return buffer
