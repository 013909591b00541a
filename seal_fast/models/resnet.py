"""ResNet-18, -34 and -50 with torchvision's parameter and buffer names, so that public weights load."""

from __future__ import annotations

from torch import Tensor, nn

from seal_fast.models.layers import Convolution, Network, Pool, Stem, check_stem, normalise


class _Block(nn.Module):
    """What the two residual blocks share: the identity path, through 1x1 conv and BatchNorm where shapes change."""

    expansion: int
    downsample: nn.Sequential | None

    def _add_shortcut(self, inputs: int, outputs: int, stride: int) -> None:
        changes = stride != 1 or inputs != outputs
        self.downsample = (
            nn.Sequential(Convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if changes else None
        )

    def shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is None:
            return x
        conv, norm = self.downsample
        assert isinstance(norm, nn.BatchNorm2d)
        return normalise(norm, conv(x), act=False)


class BasicBlock(_Block):
    """Two 3x3 convolutions (He et al., CVPR 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = Convolution(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self._add_shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H / stride, W / stride)."""
        y = normalise(self.bn1, self.conv1(x))
        return normalise(self.bn2, self.conv2(y), residual=self.shortcut(x))


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolutions (He et al., CVPR 2016, figure 5 right); the stride sits on the 3x3 ("v1.5")."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = Convolution(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = Convolution(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self._add_shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = normalise(self.bn1, self.conv1(x))
        y = normalise(self.bn2, self.conv2(y))
        return normalise(self.bn3, self.conv3(y), residual=self.shortcut(x))


class ResNet(Network):
    """A residual network (He et al., CVPR 2016).

    Args:
        stem: `imagenet` is a 7x7 conv and a 3x3 max-pool, both of stride 2; `small` a 3x3 conv of stride 1, no pool.
        width: channels of the first layer; the four layers have 1, 2, 4 and 8 times as many.

    Raises:
        UsageError: the stem is unknown.
    """

    def __init__(
        self,
        block: type[_Block],
        depths: tuple[int, ...],
        num_classes: int = 1000,
        stem: Stem = "imagenet",
        width: int = 64,
    ):
        super().__init__()
        check_stem(stem)
        self.conv1 = Convolution(3, width, 7, 2) if stem == "imagenet" else Convolution(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = Pool() if stem == "imagenet" else None
        inputs = width
        for layer, depth in enumerate(depths):
            planes = width * 2**layer
            built = []
            for i in range(depth):
                built.append(block(inputs, planes, stride=2 if layer > 0 and i == 0 else 1))
                inputs = planes * block.expansion
            self.add_module(f"layer{layer + 1}", nn.Sequential(*built))
        self.fc = nn.Linear(inputs, num_classes)

    def stem(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to what the first residual block reads."""
        x = normalise(self.bn1, self.conv1(x))
        return x if self.maxpool is None else self.maxpool(x)

    def embed(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the pooled features (N, 512 * expansion) that the last linear layer reads."""
        x = self.stem(x)
        for _, block in self.blocks():
            x = block(x)
        return x.mean((2, 3))


def resnet18(num_classes: int = 1000, stem: Stem = "imagenet", width: int = 64) -> ResNet:
    """ResNet-18: 11,689,512 parameters at 1000 classes."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, stem, width)


def resnet34(num_classes: int = 1000, stem: Stem = "imagenet", width: int = 64) -> ResNet:
    """ResNet-34: 21,797,672 parameters at 1000 classes."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, stem, width)


def resnet50(num_classes: int = 1000, stem: Stem = "imagenet", width: int = 64) -> ResNet:
    """ResNet-50: 25,557,032 parameters at 1000 classes."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, stem, width)
