"""Hessian-vector products of the ResNets by the R-operator: one tangent pass forward, one backward.

Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994): the derivative R{.} along a
direction is carried through the forward and the backward pass of the network. BatchNorm (eval mode) is folded into the
convolutions, all products share the activations and gradients at the point itself, and several directions go through
the network together, stacked as channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seal_fast.curvature.double_backward import Loss
from seal_fast.curvature.r_operator.folding import Folded, fold
from seal_fast.curvature.r_operator.passes import (
    Tape,
    add_,
    gradient_of_bias,
    pool_max,
    through_relu_,
    unpool_max,
    unpool_mean,
)
from seal_fast.curvature.r_operator.tangents import Tangents
from seal_fast.models import ResNet
from seal_fast.models.resnet import BasicBlock


class Block(NamedTuple):
    """A residual block: positions of its convolutions among the layers, and of the one on its shortcut."""

    main: list[int]
    shortcut: int | None


class ROperator:
    """Sums of Hessian-vector products over images, for a ResNet in eval mode and any loss of its logits.

    Args:
        model: the network; its parameters must not change while the operator is in use.
        loss: (logits [N, K], labels [N]) to the batch's mean loss, twice differentiable.
        names: the parameters of the Hessian's block, of directions and products.
    """

    name = "R-operator"

    def __init__(self, model: ResNet, loss: Loss, names: Sequence[str]) -> None:
        self.loss = loss
        modules = dict(model.named_modules())
        self.layers: list[Folded] = []
        self._typed_gradients: list[Tensor] = []  # of the folded weights, in the network's type

        def add(conv: str, norm: str | None) -> int:
            self.layers.append(fold(modules[conv], conv, norm and modules[norm], norm))  # type: ignore[arg-type]
            return len(self.layers) - 1

        add("conv1", "bn1")
        self.pooled = model.maxpool is not None
        self.blocks: list[Block] = []
        for name, block in model.blocks():
            count = 2 if isinstance(block, BasicBlock) else 3
            main = [add(f"{name}.conv{i + 1}", f"{name}.bn{i + 1}") for i in range(count)]
            down = getattr(block, "downsample", None) is not None
            self.blocks.append(Block(main, add(f"{name}.downsample.0", f"{name}.downsample.1") if down else None))
        add("fc", None)
        self._choose(names)

    def _choose(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.active = [any(n in self.names for n in layer.names) for layer in self.layers]

    def part(self, names: Sequence[str]) -> ROperator:
        """The products of some of the parameters, from the same tapes."""
        found = copy.copy(self)
        found._choose(names)
        return found

    def _forward(self, x: Any, conv: Callable[[int, Any], Any], pool: Callable[[Any], Any], relu: Callable) -> Any:
        """Carry x through the network up to the last maps: `conv(i, x)` is layer i, `relu(i, x)` the ReLU after it."""
        x = relu(0, pool(conv(0, x)))
        for main, shortcut in self.blocks:
            y = conv(main[0], x)
            for i in main[1:]:
                y = conv(i, relu(i - 1, y))
            x = relu(main[-1], add_(y, x if shortcut is None else conv(shortcut, x)))
        return x

    def _backward(
        self, delta: Tensor, tape: Tape, through: Callable[[int, Tensor], Tensor | None], m: int = 1, first: int = 0
    ) -> None:
        """Carry gradients at the features [N, m C] back to layer `first`.

        `through(i, delta)` takes the gradient at layer i's output and returns that at its input, None if i is `first`.
        """
        at: Tensor | None = unpool_mean(delta, tape.outputs[self.blocks[-1].main[-1]])
        for main, shortcut in reversed(self.blocks):
            assert at is not None
            at_output = at = through_relu_(at, tape.outputs[main[-1]], m)
            for i in reversed(main):
                at = through(i, at)
                if at is None:
                    break
                if i != main[0]:
                    at = through_relu_(at, tape.outputs[i - 1], m)
            other = at_output if shortcut is None else through(shortcut, at_output)
            if first >= main[0]:
                return
            at = add_(at, other)
        assert at is not None
        at = through_relu_(at, tape.outputs[0], m)
        through(0, at if tape.pool is None else unpool_max(at, tape.pool, tape.stem_shape, m))

    def record(self, images: Tensor, labels: Any, accumulate: bool = True) -> Tape:
        """Run the network on a batch and save what products need; `accumulate` adds its gradient to the sum."""
        inputs, outputs = [images] * len(self.layers), [images] * len(self.layers)
        stem_shape, indices = images.shape, None

        def conv(i: int, x: Tensor) -> Tensor:
            inputs[i] = x
            layer = self.layers[i]
            return layer.convolve(x, layer.weight, layer.bias)

        def pool(x: Tensor) -> Tensor:
            nonlocal stem_shape, indices
            stem_shape = x.shape
            if self.pooled:
                x, indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)
            return x

        def relu(i: int, x: Tensor) -> Tensor:
            outputs[i] = x.relu_()
            return x

        with torch.no_grad():
            fc, inputs[-1] = self.layers[-1], self._forward(images, conv, pool, relu).mean((2, 3))
            logits = F.linear(inputs[-1], fc.weight, fc.bias)
        logits.requires_grad_()
        with torch.enable_grad():
            loss = self.loss(logits, labels)
            (logit_gradient,) = torch.autograd.grad(loss * len(images), logits, create_graph=True)
        tape = Tape(inputs, outputs, [], indices, stem_shape, logits, logit_gradient, float(loss.detach()), len(images))
        if accumulate:
            self._typed_gradients = []
        tape.deltas = self._gradients(tape, logit_gradient.detach(), self._sums() if accumulate else None)
        return tape

    @torch.no_grad()
    def _gradients(self, tape: Tape, at_logits: Tensor, sums: Sequence[tuple[Tensor, Tensor]] | None) -> list[Tensor]:
        """The gradient at the output of each layer, from that at the logits [N, K].

        The gradients of folded weights and biases are added to `sums`, if given.
        """
        deltas = [at_logits] * len(self.layers)

        def add(i: int, weight: Tensor, bias: Tensor) -> None:
            assert sums is not None
            sums[i][0].add_(weight)
            sums[i][1].add_(bias)

        def through(i: int, delta: Tensor) -> Tensor | None:
            deltas[i] = delta
            layer, x = self.layers[i], tape.inputs[i]
            if sums is not None:
                add(i, layer.gradient_of_weight(delta, x, layer.weight), gradient_of_bias(delta))
            return layer.gradient_of_input(delta, layer.weight, x) if i > 0 else None

        if sums is not None:
            add(-1, at_logits.T @ tape.inputs[-1], at_logits.sum(0))
        self._backward(at_logits @ self.layers[-1].weight, tape, through)
        return deltas

    def gradient(self) -> dict[str, Tensor]:
        """The loss's gradient over all recorded batches, float64 by parameter name."""
        return self._unfolded(self._sums())

    def _sums(self) -> list[tuple[Tensor, Tensor]]:
        return [(layer.gradient_weight, layer.gradient_bias) for layer in self.layers]

    def outlying(self, tapes: Iterable[Tape], draw: torch.Generator) -> dict[str, Tensor]:
        """Sum over images of J^T A xi, float64 by parameter name.

        J is the logits' derivative by the parameters, A the loss's second derivative by the logits, and xi standard
        normal and the same for all images, so that the split into batches and over processes does not matter.
        """
        sums = [(torch.zeros_like(weight), torch.zeros_like(bias)) for weight, bias in self._sums()]
        xi = torch.randn(len(self.layers[-1].bias), generator=draw, dtype=torch.float64)
        for tape in tapes:
            along = xi.to(tape.logits).expand_as(tape.logits)
            (curved,) = torch.autograd.grad(tape.logit_gradient, tape.logits, along, retain_graph=True)
            self._gradients(tape, curved, sums)
        return self._unfolded(sums)

    def _unfolded(self, sums: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        gradients: dict[str, Tensor] = {}
        for layer, (weight, bias) in zip(self.layers, sums, strict=True):
            gradients |= {name: g[0] for name, g in layer.pull(weight[None], bias[None]).items()}
        return {name: gradients[name] for name in self.names}

    @torch.no_grad()
    def multiply(self, tapes: Iterable[Tape], direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Products with directions [m, ...] by parameter name (any type), summed over the tapes, by parameter name."""
        if not self._typed_gradients:
            self._typed_gradients = [layer.gradient_weight.to(layer.module.weight) for layer in self.layers]
        tangents = Tangents(self.layers, self._typed_gradients, self.active, self.names, direction)
        for tape in tapes:
            self._add_products(tape, tangents)
        return tangents.products()

    def _add_products(self, tape: Tape, tangents: Tangents) -> None:
        """Add a batch's part of the products."""
        m, first = tangents.count, self.active.index(True)
        moving: list[Tensor | None] = [None] * len(self.layers)  # R{x} of each layer's input, None for zero

        def conv(i: int, dot: Tensor | None) -> Tensor | None:
            moving[i] = dot
            return tangents.convolve(i, dot, tape.inputs[i])

        def pool(dot: Tensor | None) -> Tensor | None:
            return dot if dot is None or tape.pool is None else pool_max(dot, tape.pool, m)

        def relu(i: int, dot: Tensor | None) -> Tensor | None:
            return None if dot is None else through_relu_(dot, tape.outputs[i], m)

        def through(i: int, dot: Tensor) -> Tensor | None:
            return tangents.backward(i, dot, moving[i], tape.inputs[i], tape.deltas[i], i > first)

        dot = self._forward(None, conv, pool, relu)
        features = None if dot is None else dot.mean((2, 3)).unflatten(1, (m, -1)).transpose(0, 1)
        delta = tangents.head(features, tape)  # [m, N, features]
        if first < len(self.layers) - 1:
            self._backward(delta.transpose(0, 1).flatten(1), tape, through, m, first)
