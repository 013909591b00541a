"""ConvNeXt (Liu et al., CVPR 2022, arXiv 2201.03545): no BatchNorm. Without stochastic depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.models.init import Initial, normal, zero
from seal_fast.models.layers import Network, Stem, check_stem, scaled


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (N, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        """Of the same shape."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise convolution, LayerNorm, two linear layers with GELU, scaled by `gamma`, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.linear1 = nn.Linear(channels, 4 * channels)
        self.linear2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.linear2(F.gelu(self.linear1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(Network):
    """ConvNeXt; `down2` halves the map before `layer2`, and so on.

    Args:
        stem: `imagenet` is the paper's 4x4 conv of stride 4; `small` a 2x2 conv of stride 2.
        width: factor on the channels 96, 192, 384, 768.
    """

    initial = Initial(
        conv=normal(0.02), linear=normal(0.02), bias=zero, named={".gamma": lambda gamma, _: gamma.fill_(1e-6)}
    )

    def __init__(self, depths: tuple[int, ...], num_classes: int, stem: Stem = "imagenet", width: float = 1.0):
        super().__init__()
        check_stem(stem)
        patch = 4 if stem == "imagenet" else 2
        inputs = scaled(96, width)
        self.down1 = nn.Sequential(nn.Conv2d(3, inputs, patch, patch), ChannelNorm(inputs, eps=1e-6))
        for layer, depth in enumerate(depths, 1):
            channels = scaled(96 * 2 ** (layer - 1), width)
            if layer > 1:
                down = nn.Sequential(ChannelNorm(inputs, eps=1e-6), nn.Conv2d(inputs, channels, 2, 2))
                self.add_module(f"down{layer}", down)
            self.add_module(f"layer{layer}", nn.Sequential(*[ConvNeXtBlock(channels) for _ in range(depth)]))
            inputs = channels
        self.norm = nn.LayerNorm(inputs, eps=1e-6)
        self.fc = nn.Linear(inputs, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the pooled features (N, 768)."""
        for name, module in self.named_children():
            if name not in ("norm", "fc"):
                x = module(x)
        return self.norm(x.mean((2, 3)))
