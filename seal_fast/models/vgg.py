"""VGG with BatchNorm (Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556; BatchNorm: arXiv 1502.03167)."""

from __future__ import annotations

from torch import Tensor, nn

from seal_fast.kernels import max_pool
from seal_fast.models.init import Initial, he_normal_fan_out, normal, zero
from seal_fast.models.layers import Convolution, Network, normalise, scaled


class ConvNorm(nn.Module):
    """A 3x3 convolution, BatchNorm and ReLU; the last one of a layer also halves the map by a 2x2 max-pool."""

    def __init__(self, inputs: int, outputs: int, last: bool):
        super().__init__()
        self.conv = Convolution(inputs, outputs, 3)
        self.bn = nn.BatchNorm2d(outputs)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W), or half the size; a map of one pixel stays."""
        x = normalise(self.bn, self.conv(x))
        return max_pool(x, 2, 2) if self.last and min(x.shape[2:]) > 1 else x


class VGG(Network):
    """VGG-16 of the paper's configuration D, its three fully connected layers replaced by pooling and one.

    The convolutions have no bias, which BatchNorm would undo. The paper has no BatchNorm: weights are drawn as
    torchvision draws those of its vgg16_bn.

    Args:
        width: factor on the channels 64, 128, 256, 512, 512.
    """

    initial = Initial(conv=he_normal_fan_out, linear=normal(0.01), bias=zero)

    def __init__(self, depths: tuple[int, ...], num_classes: int, width: float = 1.0):
        super().__init__()
        inputs = 3
        for layer, depth in enumerate(depths):
            outputs, blocks = scaled(min(512, 64 * 2**layer), width), []
            for i in range(depth):
                blocks.append(ConvNorm(inputs, outputs, last=i + 1 == depth))
                inputs = outputs
            self.add_module(f"layer{layer + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the pooled features (N, 512)."""
        for _, block in self.blocks():
            x = block(x)
        return x.mean((2, 3))
