"""What the R-operator knows of its directions: the folded weights' tangents, and the products' sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.analysis.hessian.folding import Folded
from seal_fast.analysis.hessian.passes import Tape, backward_convolution, beside, gradient_of_input


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
        self.sums: list[tuple[Tensor, Tensor] | None] = []
        for layer, wanted in zip(layers, active, strict=True):
            if not wanted:
                for kept in (self.weights, self.biases, self.sums):
                    kept.append(None)
                continue
            for name in layer.names:
                given = direction.get(name)
                zeros = layer.gradient_bias.new_zeros(m, *shapes[name])
                self.direction[name] = zeros if given is None else given.double()
            weight, bias = layer.push(self.direction)
            self.weights.append(weight.to(layer.weight.dtype))
            self.biases.append(bias.to(layer.weight.dtype))
            self.sums.append((torch.zeros_like(weight), torch.zeros_like(bias)))

    def products(self) -> dict[str, Tensor]:
        """The Hessian's products [m, ...] by parameter name, float64."""
        found: dict[str, Tensor] = {}
        for layer, sums in zip(self.layers, self.sums, strict=True):
            if sums is not None:
                found |= layer.pull(*sums, self.direction)
        return {name: found[name] for name in self.names}

    def convolve(self, i: int, dot: Tensor | None, x: Tensor) -> Tensor | None:
        """R{W * x + b}, [N, m C', H', W'], from R{x} ([N, m C, H, W] or None for zero) and x."""
        conv, own, dot_weight = self.layers[i].module, self.layers[i].weight, self.weights[i]
        assert isinstance(conv, nn.Conv2d)
        m = self.count
        if dot_weight is None:
            if dot is None:
                return None
            return F.conv2d(dot, own.repeat(m, 1, 1, 1), None, conv.stride, conv.padding, groups=m)
        bias = self.biases[i]
        assert bias is not None
        if dot is None:
            return F.conv2d(x, dot_weight.flatten(0, 1), bias.flatten(), conv.stride, conv.padding)
        both = torch.cat([own.expand_as(dot_weight), dot_weight], 2).flatten(0, 1)
        return F.conv2d(beside(dot, x, m), both, bias.flatten(), conv.stride, conv.padding, groups=m)

    def backward(
        self, i: int, dot: Tensor, dot_x: Tensor | None, x: Tensor, delta: Tensor, wanted: bool
    ) -> Tensor | None:
        """Add R{gradient} of a convolution's weight and bias; return R{gradient} of its input if `wanted`."""
        layer, dot_weight, m = self.layers[i], self.weights[i], self.count
        conv = layer.module
        if dot_weight is not None:
            sums = self.sums[i]
            assert sums is not None
            _, weight, bias = backward_convolution(dot, x, dot_weight.flatten(0, 1), conv, False)
            sums[0].add_(weight.view_as(dot_weight))
            sums[1].add_(bias.view(m, -1))
            if dot_x is not None:
                like = dot_weight.transpose(0, 1).flatten(1, 2)
                _, weight, _ = backward_convolution(delta, dot_x, like, conv, False)
                sums[0].add_(weight.unflatten(1, (m, -1)).transpose(0, 1))
        if not wanted:
            return None
        if dot_weight is None:
            return gradient_of_input(dot, layer.weight.repeat(m, 1, 1, 1), x, conv, m)
        both = torch.cat([layer.weight.expand_as(dot_weight), dot_weight], 1).flatten(0, 1)
        return gradient_of_input(beside(dot, delta, m), both, x, conv, m)

    def head(self, dot: Tensor | None, tape: Tape) -> Tensor:
        """Through the linear layer and the loss and back: R{gradient of the features}, [m, N, features]."""
        fc, x, delta = self.layers[-1], tape.inputs[-1], tape.deltas[-1]
        weight, bias, sums = self.weights[-1], self.biases[-1], self.sums[-1]
        dot_logits = x.new_zeros(self.count, *delta.shape)
        if dot is not None:
            dot_logits += dot @ fc.weight.T
        if weight is not None and bias is not None:
            dot_logits += x @ weight.transpose(1, 2) + bias[:, None]
        (dot_delta,) = torch.autograd.grad(
            tape.logit_gradient, tape.logits, dot_logits, retain_graph=True, is_grads_batched=True
        )
        back = dot_delta @ fc.weight
        if weight is not None and sums is not None:
            sums[0].add_(dot_delta.transpose(1, 2) @ x)
            if dot is not None:
                sums[0].add_(delta.T @ dot)
            sums[1].add_(dot_delta.sum(1))
            back += delta @ weight
        return back
