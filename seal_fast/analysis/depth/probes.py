"""The probe points of a network: its input, the outputs of stem and residual blocks, and its softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seal_fast.models import ResNet
from seal_fast.utils.errors import UsageError


def parse_pooling(text: str) -> int | None:
    """`none`, `avg` or a number as the side that feature maps are averaged to: None, 1 or that number.

    Raises:
        UsageError: it is none of these.
    """
    sides = {"none": None, "avg": 1}
    if text in sides:
        return sides[text]
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--pool {text}: choose none, avg, or the side of the pooled maps such as 4")
    return int(text)


def flatten(maps: Tensor, pooling: int | None) -> Tensor:
    """Feature maps [N, C, H, W] as float32 vectors [N, D], averaged to at most `pooling` x `pooling` places.

    Maps that are no larger than that stay as they are. The entries' order is that of channels-last memory.
    """
    maps = maps.float()
    if pooling is not None:
        height, width = min(pooling, maps.shape[2]), min(pooling, maps.shape[3])
        maps = F.adaptive_avg_pool2d(maps, (height, width))
    return maps.permute(0, 2, 3, 1).flatten(1)


def probe_points(
    network: ResNet,
    images: Tensor,
    pooling: int | None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[tuple[str, Tensor]]:
    """One forward pass over images [N, 3, S, S]: name and float32 [N, D] of every probe, in forward order.

    The points are `input`, `stem`, each residual block by its name, and `softmax` (never pooled). Memory holds one of
    them at a time if the consumer keeps none. `autocast` makes the context in which the network computes; the
    consumer's work is outside it.
    """
    yield "input", flatten(images, pooling)
    points, maps = network.points(images), images
    while True:
        with torch.no_grad(), autocast():
            point = next(points, None)
        if point is None:
            break
        name, maps = point
        yield name, flatten(maps, pooling)
    with torch.no_grad(), autocast():
        logits = network.fc(maps.mean((2, 3)))
    yield "softmax", logits.float().softmax(1)


def probe_sizes(network: ResNet, image_size: int, pooling: int | None, device: torch.device | str) -> dict[str, int]:
    """Entries of each probe's vectors, by name, found with one image of zeros."""
    dtype = network.conv1.weight.dtype
    image = torch.zeros(1, 3, image_size, image_size, device=device, dtype=dtype)
    return {name: prod(x.shape[1:]) for name, x in probe_points(network, image, pooling)}
