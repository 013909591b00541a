"""What the R-operator knows of its directions: the folded weights' tangents, and the products' sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.analysis.hessian.folding import Folded
from seal_fast.analysis.hessian.passes import Tape, gradient_of_input, gradient_of_weight


class Tangents:
    """Folded directions of m vectors, and the float64 sums of their products.

    Args:
        layers: of the network, folded.
        active: whether a layer has parameters in the Hessian's block.
        names: of the parameters in the block.
        shapes: of all parameters.
        direction: [m, ...] by parameter name, float64.
    """

    def __init__(
        self,
        layers: Sequence[Folded],
        active: Sequence[bool],
        names: Sequence[str],
        shapes: Mapping[str, torch.Size],
        direction: Mapping[str, Tensor],
    ) -> None:
        self.layers, self.names = layers, names
        self.count = m = next(iter(direction.values())).shape[0]
        self.direction: dict[str, Tensor] = {}
        self.weights: list[Tensor | None] = []
        self.biases: list[Tensor | None] = []
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
                self.direction[name] = given.double()
            weight, bias = layer.push(self.direction)
            self.weights.append(weight.to(layer.weight.dtype))
            self.biases.append(bias.to(layer.weight.dtype))
            self.sums.append([])

    def products(self) -> dict[str, Tensor]:
        """The Hessian's products [m, ...] by parameter name, float64."""
        found: dict[str, Tensor] = {}
        for layer, sums in zip(self.layers, self.sums, strict=True):
            if sums is not None:
                weight, bias = sums or self._zeros(layer)  # an empty list: no batch came
                found |= layer.pull(weight, bias, self.direction)
        return {name: found[name] for name in self.names}

    def _add(self, i: int, *parts: Tensor) -> None:
        """Add to a layer's sums: of its weight alone, or of its bias as well."""
        sums = self.sums[i]
        assert sums is not None
        if not sums:
            sums += [part.double() for part in parts]
            return
        for total, part in zip(sums, parts, strict=False):
            total += part

    def _zeros(self, layer: Folded) -> list[Tensor]:
        return [g.new_zeros(self.count, *g.shape) for g in (layer.gradient_weight, layer.gradient_bias)]

    def convolve(self, i: int, dot: Tensor | None, x: Tensor) -> Tensor | None:
        """R{W * x + b}, [N, m C', H', W'], from R{x} ([N, m C, H, W] or None for zero) and x."""
        conv, dot_weight, bias = self.layers[i].module, self.weights[i], self.biases[i]
        assert isinstance(conv, nn.Conv2d)
        if dot_weight is None or bias is None:
            return None if dot is None else self._carry(i, dot)
        found = F.conv2d(x, dot_weight.flatten(0, 1), bias.flatten(), conv.stride, conv.padding)
        return found if dot is None else found.add_(self._carry(i, dot))

    def _carry(self, i: int, dot: Tensor) -> Tensor:
        conv, m = self.layers[i].module, self.count
        assert isinstance(conv, nn.Conv2d)
        return F.conv2d(dot, self._repeated(i), None, conv.stride, conv.padding, groups=m)

    def _repeated(self, i: int) -> Tensor:
        weight = self.layers[i].weight
        return weight if self.count == 1 else weight.repeat(self.count, 1, 1, 1)

    def backward(
        self, i: int, dot: Tensor, dot_x: Tensor | None, x: Tensor, delta: Tensor, wanted: bool
    ) -> Tensor | None:
        """Add R{gradient} of a convolution's weight and bias; return R{gradient} of its input if `wanted`."""
        dot_weight, m, conv = self.weights[i], self.count, self.layers[i].module
        across = None if dot_weight is None else dot_weight.transpose(0, 1).flatten(1, 2)  # [C', m C, k, k]
        if dot_weight is not None and across is not None:
            weight, bias = gradient_of_weight(dot, x, dot_weight.flatten(0, 1), conv)
            self._add(i, weight.view_as(dot_weight), bias.view(m, -1))
            if dot_x is not None:
                weight, _ = gradient_of_weight(delta, dot_x, across, conv, bias=False)
                self._add(i, weight.unflatten(1, (m, -1)).transpose(0, 1))
        if not wanted:
            return None
        found = gradient_of_input(dot, self._repeated(i), x, conv, m)
        return found if across is None else found.add_(gradient_of_input(delta, across, x, conv, m, groups=1))

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
            self._add(-1, dot_delta.transpose(1, 2) @ x, dot_delta.sum(1))
            if dot is not None:
                self._add(-1, delta.T @ dot)
            back += delta @ weight
        return back
