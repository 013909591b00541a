"""DenseNets with bottleneck and compression, "BC" (Huang et al., CVPR 2017, arXiv 1608.06993)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.models.layers import Convolution, Network, Pool, Stem, check_stem, normalise, scaled
from seal_fast.models.wide_resnet import LUA


class Dense(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, BatchNorm, ReLU, 3x3 convolution; the result joins the input."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = Convolution(inputs, 4 * growth, 1)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = Convolution(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, inputs + growth, H, W)."""
        y = self.conv1(normalise(self.bn1, x))
        return torch.cat([x, self.conv2(normalise(self.bn2, y))], 1)


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution to half the channels, 2x2 average pooling."""

    def __init__(self, inputs: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = Convolution(inputs, inputs // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, inputs / 2, H / 2, W / 2)."""
        return F.avg_pool2d(self.conv(normalise(self.bn, x)), 2)


class DenseNet(Network):
    """DenseNet-BC; `transition1` comes before `layer2`, and so on.

    Args:
        depths: dense blocks' layers, such as (6, 12, 32, 32).
        growth: channels that each layer adds, k.
        stem: None is the paper's for CIFAR, a 3x3 conv; `imagenet` a 7x7 conv of stride 2, BatchNorm, ReLU and a 3x3
            max-pool; `small` a 3x3 conv, BatchNorm and ReLU. All have 2 k channels.
        width: factor on the growth.
    """

    nested = False  # what is joined lies behind each other
    initial = LUA

    def __init__(
        self, depths: tuple[int, ...], growth: int, num_classes: int, stem: Stem | None = None, width: float = 1.0
    ):
        super().__init__()
        growth = scaled(growth, width)
        channels = 2 * growth
        self.conv1 = Convolution(3, channels, 7, 2) if stem == "imagenet" else Convolution(3, channels, 3)
        if stem is not None:
            check_stem(stem)
            self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = Pool() if stem == "imagenet" else None
        for layer, depth in enumerate(depths, 1):
            if layer > 1:
                self.add_module(f"transition{layer - 1}", Transition(channels))
                channels //= 2
            self.add_module(
                f"layer{layer}", nn.Sequential(*[Dense(channels + i * growth, growth) for i in range(depth)])
            )
            channels += depth * growth
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the pooled features (N, D)."""
        for name, module in self.named_children():
            if name == "bn1":
                x = normalise(self.bn1, x)
            elif name not in ("bn", "fc"):
                x = module(x)
        return normalise(self.bn, x).mean((2, 3))
