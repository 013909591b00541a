"""What the registered networks are made of: convolutions, BatchNorm with ReLU, and the common base class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.kernels import conv2d, max_pool, norm_act
from seal_fast.kernels.torch_private import foreach_add_
from seal_fast.models.init import Initial
from seal_fast.models.sync_batchnorm import SyncBatchNorm2d, sync_norm_act
from seal_fast.utils.errors import UsageError

Stem = Literal["imagenet", "small"]


def check_stem(stem: str) -> None:
    """Raise UsageError unless there is such a stem."""
    if stem not in get_args(Stem):
        raise UsageError(f"unknown stem {stem!r}: choose one of {', '.join(get_args(Stem))}")


def scaled(channels: int, width: float) -> int:
    """`width` times as many channels, as a multiple of 8; `channels` themselves for 1."""
    return channels if width == 1 else max(8, 8 * round(channels * width / 8))


def normalise(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None = None, act: bool = True) -> Tensor:
    """BatchNorm, then the residual added, then ReLU; in train mode the running statistics move."""
    if isinstance(norm, SyncBatchNorm2d) and norm.training and norm.link.connected:
        return sync_norm_act(norm, x, residual, act)
    mean, var, momentum = norm.running_mean, norm.running_var, norm.momentum
    assert mean is not None and var is not None and momentum is not None
    return norm_act(x, norm.weight, norm.bias, mean, var, norm.training, momentum, norm.eps, residual, act)


class Convolution(nn.Conv2d):
    """A square convolution without bias, padded so that stride 1 keeps the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return conv2d(x, self.weight, self.stride[0], self.kernel_size[0] // 2)


class Pool(nn.Module):
    """The 3x3 max-pooling of stride 2 that ends the ImageNet stem."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
        return max_pool(x, 3, 2, padding=1)


class Network(nn.Module):
    """A registered network: blocks in `layer1`, `layer2`, ..., and a linear classifier `fc` on pooled features.

    Attributes:
        initial: how its weights are drawn.
        dropout: share of the features that is set to zero in train mode.
        nested: whether the first channels of every layer make up a narrower network of the same kind.
    """

    initial = Initial()
    dropout = 0.0
    nested = True
    fc: nn.Linear

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """The blocks in forward order, each with its name such as `layer3.1`."""
        for layer, module in self.named_children():
            if layer.startswith("layer"):
                for i, block in module.named_children():
                    yield f"{layer}.{i}", block

    def embed(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the pooled features (N, D) that `fc` reads."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, num_classes)."""
        if self.training:
            self._count_batch()
        return self.fc(F.dropout(self.embed(x), self.dropout, self.training and self.dropout > 0))

    def _count_batch(self) -> None:
        # One call for all of them: 20 to 53 separate counters would be as many launches on a GPU.
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
        counters = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
        if counters:
            foreach_add_(counters, 1)
