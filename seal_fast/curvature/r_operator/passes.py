"""ReLU, pooling and sums: their gradients and tangents. m tangents are stacked as channels, [N, m C, H, W]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Tape:
    """What the products of one batch need from the passes at the point itself.

    Attributes:
        inputs: of each layer.
        outputs: of the ReLU after each layer (after a block's last one, that of the block); it passes a tangent where
            they are not zero.
        deltas: the loss's gradient at the output of each layer.
        pool: the max-pool's indices.
        stem_shape: of the first layer's output before the pool.
        logits: a leaf of the loss's graph.
        logit_gradient: that of the summed loss, with its graph.
        loss: the mean over the batch's `count` images.
        count: images.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    deltas: list[Tensor]
    pool: Tensor | None
    stem_shape: torch.Size
    logits: Tensor
    logit_gradient: Tensor
    loss: float
    count: int

    @property
    def nbytes(self) -> int:
        """Its memory."""
        tensors = (*self.inputs, *self.outputs, *self.deltas, self.logits, self.pool)
        return sum({t.data_ptr(): t.nbytes for t in tensors if t is not None}.values())


def gradient_of_bias(delta: Tensor) -> Tensor:
    """[C] of [N, C, H, W]; summed in float32 or wider."""
    return delta.sum((0, 2, 3), dtype=torch.promote_types(delta.dtype, torch.float32))


def through_relu_(dot: Tensor, output: Tensor, m: int = 1) -> Tensor:
    """Set `dot` to zero, in place, where ReLU's output is."""
    parts = dot.unflatten(1, (m, -1))
    torch.ops.aten.threshold_backward.grad_input(parts, output[:, None].expand_as(parts), 0, grad_input=parts)
    return dot


def add_(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum, in place of a where both are given; None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a.add_(b)


def pool_max(dot: Tensor, indices: Tensor, m: int) -> Tensor:
    """Tangents at the max-pool's indices, [N, m C, H', W'] from [N, m C, H, W]."""
    rows = dot.permute(0, 2, 3, 1).flatten(1, 2)
    picks = indices.permute(0, 2, 3, 1).flatten(1, 2).repeat(1, 1, m)
    return rows.gather(1, picks).unflatten(1, indices.shape[2:]).permute(0, 3, 1, 2)


def unpool_max(dot: Tensor, indices: Tensor, shape: torch.Size, m: int = 1) -> Tensor:
    """The max-pool's backward: to [N, m C, H, W] where `shape` is [N, C, H, W]."""
    picks = indices if m == 1 else indices.repeat(1, m, 1, 1)
    like = dot.new_empty(1).expand(shape[0], m * shape[1], *shape[2:])
    like = torch.empty_like(like, memory_format=torch.channels_last)
    return torch.ops.aten.max_pool2d_with_indices_backward(dot, like, (3, 3), (2, 2), (1, 1), (1, 1), False, picks)


def unpool_mean(delta: Tensor, like: Tensor) -> Tensor:
    """The backward of the mean over pixels: [N, C] to [N, C, H, W]."""
    height, width = like.shape[2:]
    spread = delta[:, :, None, None].expand(-1, -1, height, width) / (height * width)
    return spread.contiguous(memory_format=torch.channels_last)
