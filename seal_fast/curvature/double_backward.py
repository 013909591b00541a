"""Hessian-vector products of any model by differentiating the graph of its gradient.

Pearlmutter 1994, in reverse mode twice: the product with v is the gradient of (gradient . v).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from seal_fast.models import BATCHNORMS

Loss = Callable[[Tensor, Any], Tensor]


@dataclass
class Tape:
    """The gradient of one batch's summed loss, with its graph; loss is the mean over the batch's `count` images.

    nbytes is the memory that the graph holds.
    """

    gradient: list[Tensor]
    loss: float
    count: int
    nbytes: int


class DoubleBackward:
    """Sums of Hessian-vector products over images, for any model and loss.

    Args:
        model: called on a batch's images, in eval mode. Its parameters must not change while the operator is in use.
        loss: (model(images), labels) to the batch's mean loss, twice differentiable.
        names: the parameters of the Hessian's block.
        batch_statistics: BatchNorm layers normalise by each batch's own statistics; running ones do not change.
    """

    name = "double backward"

    def __init__(self, model: nn.Module, loss: Loss, names: Sequence[str], batch_statistics: bool = False) -> None:
        self.model, self.loss, self.names = model, loss, list(names)
        self.batch_statistics = batch_statistics
        self.batched = True
        parameters = dict(model.named_parameters())
        self.leaves = {name: parameters[name].detach().requires_grad_() for name in self.names}
        self.sums = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in self.leaves.items()}

    def record(self, images: Any, labels: Any, accumulate: bool = True) -> Tape:
        """Build the gradient's graph on a batch; `accumulate` adds the gradient to the sum."""
        saved: dict[int, int] = {}

        def save(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        count = number_of(images)
        buffers = {name: b.clone() for name, b in self.model.named_buffers()} if self.batch_statistics else {}
        # Fused attention has no second derivative.
        with evaluating(self.model, self.batch_statistics), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
                loss = self.loss(functional_call(self.model, self.leaves | buffers, (images,)), labels)
                gradient = torch.autograd.grad(
                    loss * count, list(self.leaves.values()), create_graph=True, materialize_grads=True
                )
        if accumulate:
            for total, g in zip(self.sums.values(), gradient, strict=True):
                total += g.detach()
        return Tape(list(gradient), float(loss.detach()), count, sum(saved.values()))

    def gradient(self) -> dict[str, Tensor]:
        """The gradient of the loss summed over all recorded images, float64 by parameter name."""
        return dict(self.sums)

    def multiply(self, tapes: Iterable[Tape], direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Products with directions [m, ...] by parameter name (float64), summed over the tapes, float64."""
        vectors = [direction[name].to(leaf.dtype) for name, leaf in self.leaves.items()]
        sums = {name: torch.zeros_like(direction[name], dtype=torch.float64) for name in self.names}
        for tape in tapes:
            for total, product in zip(sums.values(), self._products(tape, vectors), strict=True):
                if product is not None:
                    total += product
        return sums

    def _products(self, tape: Tape, vectors: list[Tensor]) -> Sequence[Tensor | None]:
        """A batch's part of the products [m, ...]; None is zero."""
        pairs = zip(tape.gradient, vectors, strict=True)
        curved = [(g, v) for g, v in pairs if g.requires_grad]  # a linear parameter's gradient has no graph
        if not curved:
            return [None] * len(vectors)

        def differentiate(select: Callable[[Tensor], Tensor], batched: bool = False) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(
                [g for g, _ in curved],
                list(self.leaves.values()),
                [select(v) for _, v in curved],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )

        count = len(vectors[0])
        if self.batched and count > 1:
            try:
                return differentiate(lambda v: v, batched=True)
            except RuntimeError:  # vmap has no rule for one of the model's operations: one vector after the other
                self.batched = False
        parts = [differentiate(lambda v, i=i: v[i]) for i in range(count)]
        return [None if p[0] is None else torch.stack(p) for p in zip(*parts, strict=True)]


@contextlib.contextmanager
def evaluating(model: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Eval mode for the whole model, train mode for its BatchNorm if asked; all modes are restored at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = batch_statistics and isinstance(module, BATCHNORMS)
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def number_of(images: Any) -> int:
    """How many images a batch holds: the length of its first tensor."""
    while not isinstance(images, Tensor):
        images = next(iter(images.values() if isinstance(images, Mapping) else images))
    return len(images)
