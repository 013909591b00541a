"""Wide residual networks with pre-activation (Zagoruyko and Komodakis, BMVC 2016, arXiv 1605.07146)."""

from __future__ import annotations

from torch import Tensor, nn

from seal_fast.models.init import Initial, he_normal_fan_out, uniform_fan_in, zero
from seal_fast.models.layers import Convolution, Network, normalise, scaled

# As the released Lua code draws: convolutions by fan_out, the classifier as Torch does but without bias.
LUA = Initial(conv=he_normal_fan_out, linear=uniform_fan_in, bias=zero)


class PreActivation(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, twice (the paper's figure 1c); a 1x1 shortcut where channels change."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = Convolution(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = Convolution(outputs, outputs, 3)
        self.shortcut = None if inputs == outputs and stride == 1 else Convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = normalise(self.bn1, x)
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(normalise(self.bn2, self.conv1(y))) + shortcut


class WideResNet(Network):
    """WRN-D-K with a 3x3 stem: three layers of 16 K, 32 K and 64 K channels.

    Args:
        depths: blocks of each layer; (D - 4) / 6.
        factor: the widening factor K.
        width: factor on all channels.
    """

    initial = LUA

    def __init__(self, depths: tuple[int, ...], factor: int, num_classes: int, width: float = 1.0):
        super().__init__()
        inputs = scaled(16, width)
        self.conv1 = Convolution(3, inputs, 3)
        for layer, depth in enumerate(depths):
            outputs, blocks = scaled(16 * factor * 2**layer, width), []
            for i in range(depth):
                blocks.append(PreActivation(inputs, outputs, stride=2 if layer > 0 and i == 0 else 1))
                inputs = outputs
            self.add_module(f"layer{layer + 1}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the pooled features (N, 64 K)."""
        x = self.conv1(x)
        for _, block in self.blocks():
            x = block(x)
        return normalise(self.bn, x).mean((2, 3))
