"""Hessian-vector products of the ResNets by the R-operator: one tangent pass forward, one backward.

Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994): the derivative R{.} along a
direction is carried through the forward and the backward pass of the network. Here BatchNorm (eval mode) is folded into
the convolutions, what the passes at the point itself compute is kept for all products, and the activations' tangent
and value lie side by side as channels, so that  R{W * x} = [W, R{W}] * [R{x}; x]  is one convolution; several
directions are as many groups of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.analysis.hessian.folding import Folded, fold
from seal_fast.models import ResNet
from seal_fast.models.resnet import BasicBlock

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Block:
    """A residual block: positions of its convolutions among the layers, and of that on its identity path."""

    main: list[int]
    shortcut: int | None


@dataclass
class Tape:
    """What the passes at the point itself leave for the products of one batch.

    inputs, deltas: of each layer, its input and the loss's gradient at its output. pool: the max-pool's indices.
    masks: outputs of the stem (pooled) and of each block, whose sign is ReLU's mask. logits with their graph.
    """

    inputs: list[Tensor]
    deltas: list[Tensor]
    pool: Tensor | None
    masks: list[Tensor]
    stem_shape: torch.Size
    logits: Tensor
    logit_gradient: Tensor
    loss: float
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps alive."""
        kept = [*self.inputs, *self.deltas, *self.masks, self.logits] + ([] if self.pool is None else [self.pool])
        return sum({t.data_ptr(): t.numel() * t.element_size() for t in kept}.values())


class ROperator:
    """Sums of Hessian-vector products over images, for a ResNet in eval mode and any loss of its logits.

    Args:
        model: the network; its parameters must not change while the operator is in use.
        loss: (logits [N, K], labels [N]) to the batch's mean loss, twice differentiable.
        names: the parameters of the Hessian's block; directions have these, and so have products.
    """

    name = "R-operator"

    def __init__(self, model: ResNet, loss: Loss, names: Sequence[str]) -> None:
        self.loss = loss
        self.names = list(names)
        modules = dict(model.named_modules())
        self.layers: list[Folded] = []

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
        self.active = [any(n in self.names for n in layer.names) for layer in self.layers]
        parameters = dict(model.named_parameters())
        self.shapes = {n: parameters[n].shape for layer in self.layers for n in layer.names}

    # --- at the point itself -----------------------------------------------------------------------------------------

    def record(self, images: Tensor, labels: Tensor, accumulate: bool = True) -> Tape:
        """Run the network on a batch and keep what products need; `accumulate` adds its gradient to the sum."""
        inputs: list[Tensor] = [images] * len(self.layers)
        masks: list[Tensor] = []

        def convolve(i: int, x: Tensor) -> Tensor:
            inputs[i] = x
            conv = self.layers[i].module
            assert isinstance(conv, nn.Conv2d)
            return F.conv2d(x, self.layers[i].weight, self.layers[i].bias, conv.stride, conv.padding)

        with torch.no_grad():
            x = convolve(0, images).relu_()
            stem_shape, pool = x.shape, None
            if self.pooled:
                x, pool = F.max_pool2d(x, 3, 2, 1, return_indices=True)
            masks.append(x)
            for block in self.blocks:
                y = x
                for i in block.main[:-1]:
                    y = convolve(i, y).relu_()
                y = convolve(block.main[-1], y)
                x = y.add_(x if block.shortcut is None else convolve(block.shortcut, x)).relu_()
                masks.append(x)
            fc = self.layers[-1]
            inputs[-1] = x.mean((2, 3))
            logits = F.linear(inputs[-1], fc.weight, fc.bias)
        logits.requires_grad_()
        with torch.enable_grad():
            loss = self.loss(logits, labels)
            (logit_gradient,) = torch.autograd.grad(loss * len(labels), logits, create_graph=True)
        tape = Tape(inputs, [], pool, masks, stem_shape, logits, logit_gradient, float(loss.detach()), len(labels))
        self._record_backward(tape, accumulate)
        return tape

    @torch.no_grad()
    def _record_backward(self, tape: Tape, accumulate: bool) -> None:
        deltas: list[Tensor] = [tape.logits] * len(self.layers)
        deltas[-1] = tape.logit_gradient.detach()

        def gradients(i: int, delta: Tensor) -> Tensor:
            """Keep the gradient at a convolution's output, add up its weights', and return its input's."""
            deltas[i] = delta
            layer = self.layers[i]
            if not accumulate:
                return _towards_input(delta, layer.weight, tape.inputs[i], layer.module, 1) if i > 0 else delta
            towards_input, weight, bias = _backward(delta, tape.inputs[i], layer.weight, layer.module, i > 0)
            layer.gradient_weight += weight
            layer.gradient_bias += bias
            return towards_input

        fc = self.layers[-1]
        if accumulate:
            fc.gradient_weight += deltas[-1].T @ tape.inputs[-1]
            fc.gradient_bias += deltas[-1].sum(0)
        delta = _unpool_mean(deltas[-1] @ fc.weight, tape.masks[-1])
        for block, mask in zip(reversed(self.blocks), reversed(tape.masks), strict=False):
            at_output = delta = _masked(delta, mask)
            for i in reversed(block.main):
                delta = gradients(i, delta)
                if i != block.main[0]:
                    delta = _masked(delta, tape.inputs[i])
            delta = delta.add_(at_output if block.shortcut is None else gradients(block.shortcut, at_output))
        delta = _masked(delta, tape.masks[0])
        if tape.pool is not None:
            delta = _unpool_max(delta, tape.pool, tape.stem_shape)
        gradients(0, delta)
        tape.deltas = deltas

    def gradient(self) -> dict[str, Tensor]:
        """The loss's gradient over all recorded batches, float64 by parameter name."""
        return {name: g for layer in self.layers for name, g in layer.pull_gradient().items() if name in self.names}

    # --- along directions --------------------------------------------------------------------------------------------

    def start(self, direction: Mapping[str, Tensor]) -> Tangents:
        """Fold directions [m, ...] by parameter name (float64); products are collected in what it returns."""
        return Tangents(self, direction)

    @torch.no_grad()
    def multiply(self, tape: Tape, tangents: Tangents) -> None:
        """Add a batch's part of the products."""
        m, t = tangents.count, tape
        moving: list[Tensor | None] = [None] * len(self.layers)  # R{x} of each layer's input

        def forward(i: int, dot: Tensor | None) -> Tensor | None:
            moving[i] = dot
            return tangents.convolve(i, dot, t.inputs[i])

        dot = forward(0, None)
        if dot is not None:
            dot = _masked(dot if t.pool is None else _pool(dot, t.pool, m), t.masks[0], m)
        for block, mask in zip(self.blocks, t.masks[1:], strict=True):
            first = dot
            for i in block.main:
                dot = forward(i, dot)
                if dot is not None and i != block.main[-1]:
                    dot = _masked(dot, t.inputs[i + 1], m)
            dot = _plus(dot, first if block.shortcut is None else forward(block.shortcut, first))
            dot = None if dot is None else _masked(dot, mask, m)
        first_active = self.active.index(True)
        features = None if dot is None else dot.mean((2, 3)).unflatten(1, (m, -1)).transpose(0, 1)
        delta = tangents.head(features, t)  # [m, N, features], or None
        if first_active == len(self.layers) - 1:
            return
        dot = _unpool_mean(delta.transpose(0, 1).flatten(1), t.masks[-1])

        def backward(i: int, dot: Tensor, wanted: bool) -> Tensor | None:
            return tangents.backward(i, dot, moving[i], t.inputs[i], t.deltas[i], wanted)

        for block, mask in zip(reversed(self.blocks), reversed(t.masks[1:]), strict=True):
            assert dot is not None
            layers = block.main if block.shortcut is None else [*block.main, block.shortcut]
            if max(layers) < first_active:
                return
            earlier = min(layers) > first_active  # whether anything before this block is wanted
            at_output = dot = _masked(dot, mask, m)
            for i in reversed(block.main):
                assert dot is not None
                dot = backward(i, dot, i > first_active)
                if dot is None:
                    break
                if i != block.main[0]:
                    dot = _masked(dot, t.inputs[i], m)
            if block.shortcut is not None:
                other = backward(block.shortcut, at_output, earlier)
            else:
                other = at_output
            if not earlier:
                return
            dot = _plus(dot, other)
        assert dot is not None
        if self.active[0]:
            dot = _masked(dot, t.masks[0], m)
            if t.pool is not None:
                dot = _unpool_max(dot, t.pool, t.stem_shape, m)
            backward(0, dot, False)


class Tangents:
    """Folded directions of m vectors, and the float64 sums of their products."""

    def __init__(self, operator: ROperator, direction: Mapping[str, Tensor]) -> None:
        self.operator = operator
        self.count = m = next(iter(direction.values())).shape[0]
        self.direction: dict[str, Tensor] = {}
        self.weights: list[Tensor | None] = []
        self.biases: list[Tensor | None] = []
        self.sums: list[tuple[Tensor, Tensor] | None] = []
        for layer, active in zip(operator.layers, operator.active, strict=True):
            if not active:
                self.weights.append(None)
                self.biases.append(None)
                self.sums.append(None)
                continue
            for name in layer.names:
                given = direction.get(name)
                zeros = layer.gradient_bias.new_zeros(m, *operator.shapes[name])
                self.direction[name] = zeros if given is None else given.double()
            weight, bias = layer.push(self.direction)
            self.weights.append(weight.to(layer.weight.dtype))
            self.biases.append(bias.to(layer.weight.dtype))
            self.sums.append((torch.zeros_like(weight), torch.zeros_like(bias)))

    def products(self) -> dict[str, Tensor]:
        """The Hessian's products [m, ...] by parameter name, float64."""
        found: dict[str, Tensor] = {}
        for layer, sums in zip(self.operator.layers, self.sums, strict=True):
            if sums is not None:
                found |= layer.pull(*sums, self.direction)
        return {name: found[name] for name in self.operator.names}

    def convolve(self, i: int, dot: Tensor | None, x: Tensor) -> Tensor | None:
        """R{W * x + b}, [N, m C', H', W'], from R{x} ([N, m C, H, W] or None for zero) and x."""
        conv, own, dot_weight = self.operator.layers[i].module, self.operator.layers[i].weight, self.weights[i]
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
        return F.conv2d(_beside(dot, x, m), both, bias.flatten(), conv.stride, conv.padding, groups=m)

    def backward(
        self, i: int, dot: Tensor, dot_x: Tensor | None, x: Tensor, delta: Tensor, wanted: bool
    ) -> Tensor | None:
        """Add R{gradient} of a convolution's weight and bias; return R{gradient} of its input if `wanted`."""
        layer, dot_weight, m = self.operator.layers[i], self.weights[i], self.count
        conv = layer.module
        if dot_weight is not None:
            sums = self.sums[i]
            assert sums is not None
            _, weight, bias = _backward(dot, x, dot_weight.flatten(0, 1), conv, False)
            sums[0].add_(weight.view_as(dot_weight))
            sums[1].add_(bias.view(m, -1))
            if dot_x is not None:
                like = dot_weight.transpose(0, 1).flatten(1, 2)
                _, weight, _ = _backward(delta, dot_x, like, conv, False)
                sums[0].add_(weight.unflatten(1, (m, -1)).transpose(0, 1))
        if not wanted:
            return None
        if dot_weight is None:
            return _towards_input(dot, layer.weight.repeat(m, 1, 1, 1), x, conv, m)
        both = torch.cat([layer.weight.expand_as(dot_weight), dot_weight], 1).flatten(0, 1)
        return _towards_input(_beside(dot, delta, m), both, x, conv, m)

    def head(self, dot: Tensor | None, tape: Tape) -> Tensor:
        """Through the linear layer and the loss and back: R{gradient of the features}, [m, N, features]."""
        fc, x, delta = self.operator.layers[-1], tape.inputs[-1], tape.deltas[-1]
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


def _backward(delta: Tensor, x: Tensor, weight: Tensor, conv: nn.Module, to_input: bool) -> tuple[Tensor, ...]:
    """Gradients of a convolution's input (if asked for), weight and bias."""
    return torch.ops.aten.convolution_backward(
        delta, x, weight, [weight.shape[0]], conv.stride, conv.padding, (1, 1), False, (0, 0), 1, (to_input, True, True)
    )


def _towards_input(delta: Tensor, weight: Tensor, x: Tensor, conv: nn.Module, groups: int) -> Tensor:
    like = x if groups == 1 else x.repeat(1, groups, 1, 1)  # its shape and memory format count, not its values
    return torch.ops.aten.convolution_backward(
        delta, like, weight, None, conv.stride, conv.padding, (1, 1), False, (0, 0), groups, (True, False, False)
    )[0]


def _beside(dot: Tensor, value: Tensor, m: int) -> Tensor:
    """[R{x}_1; x; R{x}_2; x; ...] as channels."""
    if m == 1:
        return torch.cat([dot, value], 1)
    parts = dot.unflatten(1, (m, -1))
    both = torch.cat([parts, value[:, None].expand_as(parts)], 2).flatten(1, 2)
    return both.contiguous(memory_format=torch.channels_last)


def _masked(dot: Tensor, output: Tensor, m: int = 1) -> Tensor:
    """Through ReLU, whose output is given: zero where that is zero; in place."""
    output = output if m == 1 else output.repeat(1, m, 1, 1)
    return torch.ops.aten.threshold_backward.grad_input(dot, output, 0, grad_input=dot)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum, in place of a where both are there."""
    if a is None or b is None:
        return b if a is None else a
    return a.add_(b)


def _pool(dot: Tensor, indices: Tensor, m: int) -> Tensor:
    """What the max-pool picked, [N, m C, H', W'] from [N, m C, H, W]."""
    rows = dot.permute(0, 2, 3, 1).flatten(1, 2)
    picks = indices.permute(0, 2, 3, 1).flatten(1, 2).repeat(1, 1, m)
    return rows.gather(1, picks).unflatten(1, indices.shape[2:]).permute(0, 3, 1, 2)


def _unpool_max(dot: Tensor, indices: Tensor, shape: torch.Size, m: int = 1) -> Tensor:
    picks = indices if m == 1 else indices.repeat(1, m, 1, 1)
    like = dot.new_empty(1).expand(shape[0], m * shape[1], *shape[2:])
    like = torch.empty_like(like, memory_format=torch.channels_last)
    return torch.ops.aten.max_pool2d_with_indices_backward(dot, like, (3, 3), (2, 2), (1, 1), (1, 1), False, picks)


def _unpool_mean(delta: Tensor, like: Tensor) -> Tensor:
    """The mean over pixels, backwards: [N, C] to [N, C, H, W]."""
    height, width = like.shape[2:]
    spread = delta[:, :, None, None].expand(-1, -1, height, width) / (height * width)
    return spread.contiguous(memory_format=torch.channels_last)
