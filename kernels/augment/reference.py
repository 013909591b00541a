"""The augmentation in plain torch: the definition that the kernels are held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seal_fast.kernels import philox


class Settings(NamedTuple):
    """What `augment` does with a pixel, `pixel * scale[c] + bias[c]`, and the rest of its arguments."""

    scale: Sequence[float]
    bias: Sequence[float]
    pad: int
    flip: bool
    train: bool
    seed: int
    generation: int
    epoch: int
    position: int


def choices(index: Tensor, height: int, width: int, size: int, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """What is drawn for each sample: the crop's top row and left column in the unpadded image, and whether to flip.

    In training, sample b takes the four words w of Philox at `position + b`: row offset `w0 * n // 2**32` of the n
    possible ones (so no two offsets' chances differ by more than 2**-32), column offset likewise from w1, and the
    top bit of w2 is the flip. In evaluation the crop is central, rounded towards the top left.

    Returns:
        top, left (int64 [B], negative where the crop starts in the padding) and flipped (bool [B]).
    """
    batch, device = index.shape[0], index.device
    _, _, pad, flip, train, seed, generation, epoch, position = settings
    if not train:
        top = torch.full((batch,), (height - size) // 2, device=device)
        return top, torch.full_like(top, (width - size) // 2), torch.zeros(batch, dtype=torch.bool, device=device)
    positions = torch.arange(position, position + batch, device=device)
    random = philox.words(seed, generation, epoch, positions, philox.AUGMENT)
    top = (random[:, 0] * (height + 2 * pad - size + 1) >> 32) - pad
    left = (random[:, 1] * (width + 2 * pad - size + 1) >> 32) - pad
    return top, left, (random[:, 2] >> 31).bool() & flip


def augment(images: Tensor, index: Tensor, out: Tensor, settings: Settings) -> None:
    """Fills `out` [B, 3, S, S]; see `seal_fast.kernels.augment.augment`.

    Raises:
        IndexError: a row outside the images, on the CPU; elsewhere its image becomes NaN, since asking would wait.
    """
    count, height, width, channels = images.shape
    batch, size, device = index.shape[0], out.shape[-1], images.device
    known = (index >= 0) & (index < count)
    if device.type == "cpu" and not known.all():
        raise IndexError(f"index holds rows outside the {count} images: its values must lie in [0, {count})")
    top, left, flipped = choices(index, height, width, size, settings)
    border = settings.pad if settings.train else 0
    padded = F.pad(images[torch.where(known, index, 0)], (0, 0, border, border, border, border))
    steps = torch.arange(size, device=device)
    rows = border + top[:, None] + steps
    columns = border + left[:, None] + torch.where(flipped[:, None], size - 1 - steps, steps)
    # Gathering whole pixels by their number is several times as fast as indexing with three index tensors.
    rows += torch.arange(batch, device=device)[:, None] * padded.shape[1]
    number = rows[:, :, None] * padded.shape[2] + columns[:, None, :]
    pixels = padded.view(-1, channels).index_select(0, number.flatten()).view(batch, size, size, channels)
    compute = torch.float64 if out.dtype == torch.float64 else torch.float32
    factor, offset = (torch.tensor(list(v), dtype=torch.float64, device=device).to(compute) for v in settings[:2])
    offset = torch.where(known[:, None, None, None], offset, torch.nan)
    out.copy_((pixels.to(compute) * factor).add_(offset).permute(0, 3, 1, 2))
