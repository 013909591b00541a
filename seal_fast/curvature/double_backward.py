"""Hessian-vector products of any model by differentiating its gradient: the graph of the gradient is the tape.

Pearlmutter 1994 in reverse mode twice: R{gradient} along v is the gradient of (gradient . v).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Tape:
    """The gradient of one batch's summed loss, with its graph; nbytes is what the graph keeps alive."""

    gradient: list[Tensor]
    loss: float
    count: int
    nbytes: int


class DoubleBackward:
    """Sums of Hessian-vector products over images, for any model and loss.

    Args:
        model: called on a batch's images. Its parameters must not change while the operator is in use, and do not.
        loss: (model(images), labels) to the batch's mean loss, twice differentiable.
        names: the parameters of the Hessian's block.
        batch_statistics: BatchNorm layers normalise by each batch's own statistics; running ones are left alone.
    """

    name = "double backward"

    def __init__(self, model: nn.Module, loss: Loss, names: Sequence[str], batch_statistics: bool = False) -> None:
        self.model, self.loss, self.names = model, loss, list(names)
        self.norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.batch_statistics = batch_statistics
        self.batched = True
        parameters = dict(model.named_parameters())
        self.leaves = {name: parameters[name].detach().requires_grad_() for name in self.names}
        self.sums = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in self.leaves.items()}

    def record(self, images: Tensor, labels: Tensor, accumulate: bool = True) -> Tape:
        """Build the gradient's graph on a batch; `accumulate` adds the gradient to the sum."""
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        modes = [norm.training for norm in self.norms]
        buffers = {name: b.clone() for name, b in self.model.named_buffers()} if self.batch_statistics else {}
        try:
            for norm in self.norms:
                norm.train(self.batch_statistics)
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = self.loss(functional_call(self.model, self.leaves | buffers, (images,)), labels)
                gradient = torch.autograd.grad(
                    loss * len(labels), list(self.leaves.values()), create_graph=True, materialize_grads=True
                )
        finally:
            for norm, mode in zip(self.norms, modes, strict=True):
                norm.train(mode)
        if accumulate:
            for total, g in zip(self.sums.values(), gradient, strict=True):
                total += g.detach()
        return Tape(list(gradient), float(loss.detach()), len(labels), sum(kept.values()))

    def gradient(self) -> dict[str, Tensor]:
        """The gradient of the loss summed over all recorded images, float64 by parameter name."""
        return dict(self.sums)

    def start(self, direction: Mapping[str, Tensor]) -> Tangents:
        """Directions [m, ...] by parameter name (float64); products are collected in what it returns."""
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
                self._add(tangents, self._differentiate(gradients, vectors, batched=True))
                return
            except RuntimeError:  # vmap has no rule for one of the model's operations: one vector after the other
                self.batched = False
        parts = [self._differentiate(gradients, [v[i] for v in vectors]) for i in range(len(vectors[0]))]
        self._add(tangents, [None if p[0] is None else torch.stack(p) for p in zip(*parts, strict=True)])  # type: ignore[arg-type]

    def _differentiate(self, gradients: list[Tensor], vectors: list[Tensor], batched: bool = False) -> tuple:
        leaves = list(self.leaves.values())
        options = {"retain_graph": True, "allow_unused": True, "is_grads_batched": batched}
        return torch.autograd.grad(gradients, leaves, vectors, **options)

    @staticmethod
    def _add(tangents: Tangents, products: Sequence[Tensor | None]) -> None:
        for total, product in zip(tangents.sums.values(), products, strict=True):
            if product is not None:
                total += product


@dataclass
class Tangents:
    """Directions of m vectors by parameter name, and the float64 sums of their products."""

    direction: dict[str, Tensor]
    sums: dict[str, Tensor]

    def products(self) -> dict[str, Tensor]:
        """The Hessian's products [m, ...] by parameter name, float64."""
        return self.sums
