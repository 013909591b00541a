"""Windows of the random resized crop, as a function of (seed, generation, epoch, position)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from seal_fast.kernels import philox

AREA = 0.08, 1.0
ASPECT = 3 / 4, 4 / 3
TRIES = 10

COUNTDOWN = np.arange(TRIES, 0, -1, dtype=np.float32)


def draws(seed: int, generation: int, epoch: int, position: int, count: int) -> np.ndarray:
    """Random numbers of each image's tries, float32 [count, TRIES, 4] in [0, 1): area, aspect ratio, top, left."""
    positions = torch.arange(position, position + count)
    words = philox.words(seed, generation, epoch, positions, philox.CROP, TRIES)
    return ((words >> 8).to(torch.float32) * 2.0**-24).view(count, TRIES, 4).numpy()


def window(height: Any, width: Any, draw: tuple[Any, Any, Any, Any], ops: SimpleNamespace) -> tuple[Any, Any, Any, Any]:
    """The window (top, left, height, width), whole pixels as floats, inside an image of `height` x `width` pixels.

    Area uniform in [8 %, 100 %] of the image, logarithm of the aspect ratio uniform in [3/4, 4/3], place uniform. The
    first try that fits inside the image counts. If none does: the largest central window whose ratio lies in those
    bounds. This is torchvision's RandomResizedCrop; the scheme is that of Szegedy et al., "Going Deeper with
    Convolutions" (CVPR 2015), section 6.

    Args:
        height: of the image, float.
        width: of the image, float.
        draw: `draws` of the image by column, [TRIES] each.
        ops: sqrt, exp, floor and clamp of numpy or a DALI graph; `largest` and `total` over the tries; `countdown`,
            which is `COUNTDOWN`.
    """
    low, high = map(math.log, ASPECT)
    side = ops.sqrt(height * width * (AREA[0] + (AREA[1] - AREA[0]) * draw[0]))
    root = ops.exp((low + (high - low) * draw[1]) * 0.5)  # of the aspect ratio
    w, h = ops.floor(side * root + 0.5), ops.floor(side / root + 0.5)
    fits = (w >= 1.0) * (w <= width) * (h >= 1.0) * (h <= height) * 1.0
    order = fits * ops.countdown
    first = fits * (order == ops.largest(order))
    none = 1.0 - ops.largest(fits)

    def chosen(tries: Any, fallback: Any) -> Any:
        return ops.total(first * tries) + none * fallback

    whole_w = ops.clamp(ops.floor(height * ASPECT[1] + 0.5), 1.0, width)
    whole_h = ops.clamp(ops.floor(width / ASPECT[0] + 0.5), 1.0, height)
    h, w = chosen(h, whole_h), chosen(w, whole_w)
    top = none * ops.floor((height - h) * 0.5) + (1.0 - none) * ops.floor(chosen(draw[2], 0.0) * (height - h + 1.0))
    left = none * ops.floor((width - w) * 0.5) + (1.0 - none) * ops.floor(chosen(draw[3], 0.0) * (width - w + 1.0))
    return ops.clamp(top, 0.0, height - h), ops.clamp(left, 0.0, width - w), h, w
