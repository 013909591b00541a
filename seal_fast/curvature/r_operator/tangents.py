"""What the R-operator knows of its directions: the folded weights' tangents, and the products' sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seal_fast.curvature.r_operator.folding import Folded
from seal_fast.curvature.r_operator.passes import (
    Tape,
    convolve,
    gradient_of_bias,
    gradient_of_input,
    gradient_of_weight,
)


class Tangents:
    """Folded directions of m vectors, and the sums of their products over batches.

    Args:
        layers: of the network, folded.
        gradients: the loss's, of each layer's folded weight, in the network's type.
        active: whether a layer has parameters in the Hessian's block.
        names: of the parameters in the block.
        shapes: of all parameters.
        direction: [m, ...] by parameter name, of any type.
    """

    def __init__(
        self,
        layers: Sequence[Folded],
        gradients: Sequence[Tensor],
        active: Sequence[bool],
        names: Sequence[str],
        shapes: Mapping[str, torch.Size],
        direction: Mapping[str, Tensor],
    ) -> None:
        self.layers, self.gradients, self.names = layers, gradients, names
        self.count = m = next(iter(direction.values())).shape[0]
        self.direction: dict[str, Tensor] = {}
        self.weights: list[Tensor | None] = []  # of convolutions [m C, C', k, k], of the linear layer [m, K, features]
        self.biases: list[Tensor | None] = []  # [m, C]
        self.sums: list[list[Tensor] | None] = []  # of weight and bias; empty until there is something to add
        for layer, wanted in zip(layers, active, strict=True):
            if not wanted:
                for kept in (self.weights, self.biases, self.sums):
                    kept.append(None)
                continue
            for name in layer.names:
                given = direction.get(name)
                if given is None:  # not in the block, so it does not move
                    given = layer.gradient_bias.new_zeros(m, *shapes[name])
                self.direction[name] = _typed(given, layer.module.weight.dtype)
            weight, bias = layer.push(self.direction)
            if weight.dim() == 5:
                weight = weight.flatten(0, 1)
            self.weights.append(weight.to(layer.weight.dtype))
            self.biases.append(bias.to(layer.weight.dtype))
            self.sums.append([])

    def products(self) -> dict[str, Tensor]:
        """The Hessian's products [m, ...] by parameter name, in the network's type or wider."""
        found: dict[str, Tensor] = {}
        for layer, gradient, sums in zip(self.layers, self.gradients, self.sums, strict=True):
            if sums is not None:
                weight, bias = sums or self._zeros(layer)  # an empty list: no batch came
                found |= layer.pull(weight, bias, gradient, self.direction)
        return {name: found[name] for name in self.names}

    def _add(self, i: int, weight: Tensor, bias: Tensor) -> None:
        """Add a batch's part to a layer's sums, which from the second batch on are float64."""
        sums = self.sums[i]
        assert sums is not None
        if not sums:
            sums += [weight, bias]
            return
        if sums[0].dtype != torch.float64:
            sums[:] = [total.double() for total in sums]
        for total, part in zip(sums, (weight, bias), strict=True):
            total += part

    def _zeros(self, layer: Folded) -> list[Tensor]:
        return [g.new_zeros(self.count, *g.shape) for g in (layer.gradient_weight, layer.gradient_bias)]

    def convolve(self, i: int, dot: Tensor | None, x: Tensor) -> Tensor | None:
        """R{W * x + b}, [N, m C', H', W'], from R{x} ([N, m C, H, W] or None for zero) and x."""
        weight, bias = self.weights[i], self.biases[i]
        if weight is None or bias is None:
            return None if dot is None else self._carry(i, dot)
        found = convolve(x, weight, bias.flatten(), self.layers[i].conv)
        return found if dot is None else found.add_(self._carry(i, dot))

    def _carry(self, i: int, dot: Tensor) -> Tensor:
        return convolve(dot, self._repeated(i), None, self.layers[i].conv, groups=self.count)

    def _repeated(self, i: int) -> Tensor:
        weight = self.layers[i].weight
        return weight if self.count == 1 else weight.repeat(self.count, 1, 1, 1)

    def backward(
        self, i: int, dot: Tensor, dot_x: Tensor | None, x: Tensor, delta: Tensor, wanted: bool
    ) -> Tensor | None:
        """Add R{gradient} of a convolution's weight and bias; return R{gradient} of its input if `wanted`."""
        weight, m, conv = self.weights[i], self.count, self.layers[i].conv
        across = weight if weight is None or m == 1 else _across(weight, m)
        if weight is not None and across is not None:
            found = _wide(gradient_of_weight(dot, x, weight, conv)).unflatten(0, (m, -1))
            if dot_x is not None:
                found += gradient_of_weight(delta, dot_x, across, conv).unflatten(1, (m, -1)).transpose(0, 1)
            self._add(i, found, gradient_of_bias(dot).view(m, -1))
        if not wanted:
            return None
        back = gradient_of_input(dot, self._repeated(i), x, conv, m, groups=m)
        return back if across is None else back.add_(gradient_of_input(delta, across, x, conv, m))

    def head(self, dot: Tensor | None, tape: Tape) -> Tensor:
        """Through the linear layer and the loss and back: R{gradient of the features}, [m, N, features]."""
        fc, x, delta = self.layers[-1], tape.inputs[-1], tape.deltas[-1]
        weight, bias = self.weights[-1], self.biases[-1]
        dot_logits = x.new_zeros(self.count, *delta.shape)
        if dot is not None:
            dot_logits += dot @ fc.weight.T
        if weight is not None and bias is not None:
            dot_logits += x @ weight.transpose(1, 2) + bias[:, None]
        (dot_delta,) = torch.autograd.grad(
            tape.logit_gradient, tape.logits, dot_logits, retain_graph=True, is_grads_batched=True
        )
        back = dot_delta @ fc.weight
        if weight is not None:
            found = dot_delta.transpose(1, 2) @ x
            if dot is not None:
                found += delta.T @ dot
            self._add(-1, found, dot_delta.sum(1))
            back += delta @ weight
        return back


def _typed(direction: Tensor, dtype: torch.dtype) -> Tensor:
    """[m, ...] in a type; a convolution's [m, O, C, k, k] with each filter channels-last."""
    if direction.dim() != 5:
        return direction.to(dtype)
    flat = direction.flatten(0, 1).to(dtype, memory_format=torch.channels_last)
    return flat.unflatten(0, direction.shape[:2])


def _across(weight: Tensor, m: int) -> Tensor:
    """[m C, C', k, k] as [C, m C', k, k]: the directions beside each other as inputs instead of outputs."""
    beside = weight.unflatten(0, (m, -1)).transpose(0, 1).flatten(1, 2)
    return beside.contiguous(memory_format=torch.channels_last)


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
