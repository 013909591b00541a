"""Windows of the random resized crop, as a function of (seed, generation, epoch, position)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch

from seal_fast.kernels import philox

AREA = 0.08, 1.0
ASPECT = 3 / 4, 4 / 3


def draws(seed: int, generation: int, epoch: int, position: int, count: int) -> np.ndarray:
    """The four random numbers of each window, float32 [count, 4] in [0, 1): area, aspect ratio, top, left."""
    words = philox.words(seed, generation, epoch, torch.arange(position, position + count), philox.CROP)
    return ((words >> 8).to(torch.float32) * 2.0**-24).numpy()


def window(
    height: Any, width: Any, draw: tuple[Any, Any, Any, Any], ops: ModuleType | Any
) -> tuple[Any, Any, Any, Any]:
    """The window (top, left, height, width), whole pixels as floats, inside an image of `height` x `width` pixels.

    Area uniform in [8 %, 100 %] of the image, logarithm of the aspect ratio uniform in [3/4, 4/3], place uniform. Where
    torchvision draws again up to ten times until a window fits, the ratio is drawn here from those that fit, so that
    one draw is enough; an image too narrow for any gets the nearest ratio. The scheme: Szegedy et al., "Going Deeper
    with Convolutions" (CVPR 2015), section 6.

    Args:
        height: of the image, float.
        width: of the image, float.
        draw: four numbers in [0, 1).
        ops: numpy, or DALI's math for the same in a graph; it needs sqrt, exp, log, floor and clip or clamp.
    """
    clamp = getattr(ops, "clamp", None) or ops.clip
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * draw[0])
    narrowest, widest = area / (height * height), width * width / area
    low = ops.log(clamp(ASPECT[0], narrowest, widest))
    high = ops.log(clamp(ASPECT[1], narrowest, widest))
    half = ops.exp((low + (high - low) * draw[1]) * 0.5)  # the root of the aspect ratio
    side = ops.sqrt(area)
    h = clamp(ops.floor(side / half + 0.5), 1.0, height)
    w = clamp(ops.floor(side * half + 0.5), 1.0, width)
    top = clamp(ops.floor(draw[2] * (height - h + 1.0)), 0.0, height - h)
    left = clamp(ops.floor(draw[3] * (width - w + 1.0)), 0.0, width - w)
    return top, left, h, w
