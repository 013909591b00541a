"""`ModelEMA`: exponential moving averages of a network's weights and BatchNorm statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from seal_fast.kernels.torch_private import foreach_lerp_
from seal_fast.optim.annealed_sgd import AnnealedSGD


class ModelEMA:
    """Averages the floating-point buffers of `model`; its weights are averaged by the optimiser's own kernel.

    After every step `average = decay * average + (1 - decay) * value`, beginning with the values at construction. With
    decay 1 a step changes nothing: the average is what `average_in` makes of it. The optimiser is that of the model's
    parameters, built with the same `ema_decay`. With a `ShardedSGD` each process stores its shard of the weights'
    average, and all processes must call `state_dict` and `applied` together.
    """

    def __init__(self, model: nn.Module, optimizer: AnnealedSGD, decay: float) -> None:
        self.model, self.optimizer, self.decay = model, optimizer, decay
        self._buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
        self._averages = {name: b.clone() for name, b in self._buffers.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Average the buffers, after a step. No host sync."""
        if self.decay != 1:
            foreach_lerp_([*self._averages.values()], [*self._buffers.values()], 1 - self.decay)

    @torch.no_grad()
    def average_in(self, share: float) -> None:
        """Move weights' and buffers' averages by `share` of the way to the network's values; 1 copies them."""
        self.optimizer.average_in(share)
        foreach_lerp_([*self._averages.values()], [*self._buffers.values()], share)

    @torch.no_grad()
    def set_buffers(self, values: Mapping[str, Tensor]) -> None:
        """Replace the buffers' averages."""
        for name, average in self._averages.items():
            average.copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state dict with averages in place of weights and statistics; counters as the model has them."""
        return {**self.model.state_dict(), **self.optimizer.ema_state(), **self._averages}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Write what `state_dict` returned; ValueError if names or shapes are not those of the model."""
        names = [name for name, _ in self.model.named_parameters()]
        self.optimizer.load_ema_state({name: state[name] for name in names if name in state})
        for name, average in self._averages.items():
            average.copy_(state[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model holds the averages; afterwards its own weights and statistics again, to the bit."""
        values = {name: b.clone() for name, b in self._buffers.items()}
        with self.optimizer.averaged():
            try:
                self._write(self._averages)
                yield
            finally:
                self._write(values)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, buffer in self._buffers.items():
            buffer.copy_(values[name])
