"""A vision transformer (Dosovitskiy et al., ICLR 2021) as in Beyer et al., arXiv 2205.01580: no BatchNorm.

Fixed sine and cosine positions and average pooling take the place of learned positions and the class token, so that any
image size goes. Released code: google-research/big_vision.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.models.init import Initial, fan_in, normal, zero
from seal_fast.models.layers import Network, Stem, check_stem, scaled


def positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Sines and cosines of a token's column and row, [height * width, channels]; Vaswani et al. 2017 in each axis."""
    omega = torch.arange(channels // 4, device=like.device, dtype=torch.float64) / (channels // 4 - 1)
    omega = 10000.0**-omega
    rows = torch.arange(height, device=like.device)[:, None].expand(height, width).reshape(-1, 1) * omega
    columns = torch.arange(width, device=like.device)[None, :].expand(height, width).reshape(-1, 1) * omega
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], 1).to(like.dtype)


def xavier_uniform(weight: Tensor, random: torch.Generator) -> Tensor:
    """Uniform in +-sqrt(6 / (inputs + outputs)) (Glorot and Bengio, AISTATS 2010)."""
    bound = math.sqrt(6 / sum(weight.shape))
    return weight.uniform_(-bound, bound, generator=random)


def lecun_normal(weight: Tensor, random: torch.Generator) -> Tensor:
    """Normal, cut at two standard deviations, of variance 1 / fan_in."""
    std = math.sqrt(1 / fan_in(weight)) / 0.87962566103423978  # the cut one's standard deviation
    return nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator=random)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) to the same shape."""
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """LayerNorm and attention, LayerNorm and two linear layers with GELU, each added to its input."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attention = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.linear1 = nn.Linear(channels, 4 * channels)
        self.linear2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x)), approximate="tanh"))


class VisionTransformer(Network):
    """ViT with 64 channels a head; its blocks lie in four layers.

    Args:
        channels: of a token.
        stem: `imagenet` makes tokens of 16x16 pixels, `small` of 4x4.
        width: factor on the channels.
    """

    nested = False  # queries, keys and values lie behind each other
    initial = Initial(
        conv=lecun_normal,
        linear=xavier_uniform,
        bias=zero,
        named={"linear1.bias": normal(1e-6), "linear2.bias": normal(1e-6), "fc.weight": zero},
    )

    def __init__(
        self, depths: tuple[int, ...], channels: int, num_classes: int, stem: Stem = "imagenet", width: float = 1.0
    ):
        super().__init__()
        check_stem(stem)
        patch, channels = 16 if stem == "imagenet" else 4, scaled(channels, width)
        heads = max(1, round(channels / 64))
        channels += -channels % (4 * heads)  # a whole number of channels a head and a quarter
        self.patches = nn.Conv2d(3, channels, patch, patch)
        for layer, depth in enumerate(depths, 1):
            self.add_module(f"layer{layer}", nn.Sequential(*[Block(channels, heads) for _ in range(depth)]))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc = nn.Linear(channels, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the mean token (N, C)."""
        x = self.patches(x)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        x = x + positions(height, width, x.shape[2], x)
        for _, block in self.blocks():
            x = block(x)
        return self.norm(x).mean(1)
