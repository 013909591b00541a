"""The directions of a product: tangents of the folded weights, and the sums of the products over batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seal_fast.curvature.r_operator.folding import Folded
from seal_fast.curvature.r_operator.passes import Tape, add_, gradient_of_bias


class Tangents:
    """Folded directions of m vectors, and the sums of their products over batches.

    Args:
        gradients: the loss's, of each layer's folded weight, in the network's type.
        active: whether a layer has parameters in the Hessian's block.
        direction: [m, ...] by parameter name, of any type.
    """

    def __init__(
        self,
        layers: Sequence[Folded],
        gradients: Sequence[Tensor],
        active: Sequence[bool],
        names: Sequence[str],
        direction: Mapping[str, Tensor],
    ) -> None:
        self.layers, self.gradients, self.names = layers, gradients, names
        self.count = next(iter(direction.values())).shape[0]
        self.direction: dict[str, Tensor] = {}
        # Weight (of a convolution [m C, C', k, k], of the linear layer [m, K, features]) and bias [m, C]; None is zero.
        self.folded: list[tuple[Tensor, Tensor] | None] = [None] * len(layers)
        self.sums: list[list[Tensor]] = [[] for _ in layers]  # of weight and bias; empty before the first batch
        for i in (i for i, moves in enumerate(active) if moves):
            layer = layers[i]
            shapes = [layer.weight.shape, layer.bias.shape, layer.bias.shape]
            for name, shape in zip(layer.names, shapes, strict=False):
                given = direction.get(name)
                if given is None:  # not in the block
                    given = layer.bias.new_zeros(self.count, *shape)
                self.direction[name] = _typed(given, layer.weight.dtype)
            weight, bias = layer.push(self.direction)
            self.folded[i] = weight.flatten(0, 1) if weight.dim() == 5 else weight, bias

    def products(self) -> dict[str, Tensor]:
        """The Hessian's products [m, ...] by parameter name, in the network's type or wider."""
        result: dict[str, Tensor] = {}
        for layer, gradient, sums, moves in zip(self.layers, self.gradients, self.sums, self.folded, strict=True):
            if moves is not None:
                zeros = [g.new_zeros(self.count, *g.shape) for g in (layer.gradient_weight, layer.gradient_bias)]
                weight, bias = sums or zeros
                result |= layer.pull(weight, bias, gradient, self.direction)
        return {name: result[name] for name in self.names}

    def _add(self, i: int, *parts: Tensor) -> None:
        """Add a batch's part, of weight and bias, to a layer's sums, which become float64 at the second batch."""
        sums = self.sums[i]
        self.sums[i] = (
            [total.double().add_(part) for total, part in zip(sums, parts, strict=True)] if sums else [*parts]
        )

    def convolve(self, i: int, dot: Tensor | None, x: Tensor) -> Tensor | None:
        """R{W * x + b}, [N, m C', H', W'], from R{x} ([N, m C, H, W] or None for zero) and x."""
        layer, moves = self.layers[i], self.folded[i]
        carried = None if dot is None else layer.convolve(dot, self._repeated(i), groups=self.count)
        return carried if moves is None else add_(layer.convolve(x, moves[0], moves[1].flatten()), carried)

    def _repeated(self, i: int) -> Tensor:
        weight = self.layers[i].weight
        return weight if self.count == 1 else weight.repeat(self.count, 1, 1, 1)

    def backward(
        self, i: int, dot: Tensor, dot_x: Tensor | None, x: Tensor, delta: Tensor, wanted: bool
    ) -> Tensor | None:
        """Add R{gradient} of a convolution's weight and bias; return R{gradient} of its input if `wanted`."""
        layer, moves, m = self.layers[i], self.folded[i], self.count
        across = None
        if moves is not None:
            across = moves[0] if m == 1 else _across(moves[0], m)
            curved = layer.gradient_of_weight(dot, x, moves[0])
            curved = curved.to(torch.promote_types(curved.dtype, torch.float32)).unflatten(0, (m, -1))
            if dot_x is not None:
                curved += layer.gradient_of_weight(delta, dot_x, across).unflatten(1, (m, -1)).transpose(0, 1)
            self._add(i, curved, gradient_of_bias(dot).view(m, -1))
        if not wanted:
            return None
        back = layer.gradient_of_input(dot, self._repeated(i), x, m, groups=m)
        return back if across is None else back.add_(layer.gradient_of_input(delta, across, x, m))

    def head(self, dot: Tensor | None, tape: Tape) -> Tensor:
        """Forward and backward through the linear layer and the loss: R{gradient of the features}, [m, N, features]."""
        fc, x, delta, moves = self.layers[-1], tape.inputs[-1], tape.deltas[-1], self.folded[-1]
        dot_logits = x.new_zeros(self.count, *delta.shape)
        if dot is not None:
            dot_logits += dot @ fc.weight.T
        if moves is not None:
            dot_logits += x @ moves[0].transpose(1, 2) + moves[1][:, None]
        (dot_delta,) = torch.autograd.grad(
            tape.logit_gradient, tape.logits, dot_logits, retain_graph=True, is_grads_batched=True
        )
        back = dot_delta @ fc.weight
        if moves is not None:
            curved = dot_delta.transpose(1, 2) @ x
            if dot is not None:
                curved += delta.T @ dot
            self._add(-1, curved, dot_delta.sum(1))
            back += delta @ moves[0]
        return back


def _typed(direction: Tensor, dtype: torch.dtype) -> Tensor:
    """[m, ...] in a type; a convolution's [m, O, C, k, k] with each filter channels-last."""
    if direction.dim() != 5:
        return direction.to(dtype)
    flat = direction.flatten(0, 1).to(dtype, memory_format=torch.channels_last)
    return flat.unflatten(0, direction.shape[:2])


def _across(weight: Tensor, m: int) -> Tensor:
    """[m C, C', k, k] as [C, m C', k, k]: the directions stacked as inputs instead of outputs."""
    stacked = weight.unflatten(0, (m, -1)).transpose(0, 1).flatten(1, 2)
    return stacked.contiguous(memory_format=torch.channels_last)
