"""Hessian-vector products of any model by differentiating the graph of its gradient.

Pearlmutter 1994, in reverse mode twice: the product with v is the gradient of (gradient . v).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

Loss = Callable[[Tensor, Any], Tensor]
BATCHNORM = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm


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

    def start(self, direction: Mapping[str, Tensor]) -> Tangents:
        """Directions [m, ...] by parameter name (float64); products are collected in the result."""
        typed = {name: direction[name].to(leaf.dtype) for name, leaf in self.leaves.items()}
        return Tangents(typed, {name: torch.zeros_like(direction[name], dtype=torch.float64) for name in self.names})

    def multiply(self, tape: Tape, tangents: Tangents) -> None:
        """Add a batch's part of the products."""
        pairs = zip(tape.gradient, tangents.direction.values(), strict=True)
        curved = [(g, v) for g, v in pairs if g.requires_grad]  # a linear parameter's gradient has no graph
        if not curved:
            return
        gradients, vectors = [g for g, _ in curved], [v for _, v in curved]
        if self.batched and len(vectors[0]) > 1:
            try:
                tangents.add(self._differentiate(gradients, vectors, batched=True))
                return
            except RuntimeError:  # vmap has no rule for one of the model's operations: one vector after the other
                self.batched = False
        parts = [self._differentiate(gradients, [v[i] for v in vectors]) for i in range(len(vectors[0]))]
        tangents.add([None if p[0] is None else torch.stack(p) for p in zip(*parts, strict=True)])

    def _differentiate(self, gradients: list[Tensor], vectors: list[Tensor], batched: bool = False) -> tuple:
        leaves = list(self.leaves.values())
        options = {"retain_graph": True, "allow_unused": True, "is_grads_batched": batched}
        return torch.autograd.grad(gradients, leaves, vectors, **options)


@dataclass
class Tangents:
    """Directions of m vectors by parameter name, and the float64 sums of their products."""

    direction: dict[str, Tensor]
    sums: dict[str, Tensor]

    def add(self, products: Sequence[Tensor | None]) -> None:
        """Add a batch's products, in the order of the names; None is zero."""
        for total, product in zip(self.sums.values(), products, strict=True):
            if product is not None:
                total += product

    def products(self) -> dict[str, Tensor]:
        """The Hessian's products [m, ...] by parameter name, float64."""
        return self.sums


@contextlib.contextmanager
def evaluating(model: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Eval mode for the whole model, train mode for its BatchNorm if asked; all modes are restored at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = batch_statistics and isinstance(module, BATCHNORM)
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def number_of(images: Any) -> int:
    """How many images a batch holds: the length of its first tensor."""
    while not isinstance(images, Tensor):
        images = next(iter(images.values() if isinstance(images, Mapping) else images))
    return len(images)
