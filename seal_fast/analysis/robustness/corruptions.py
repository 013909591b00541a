"""The 15 common corruptions at five strengths (Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261), in batches.

Amounts are those of Tiny-ImageNet-C, whose images have 64 pixels a side; lengths scale with the side. What differs from
the published images: frost is a drawn texture instead of photographs, glass blur swaps pixels where the published
program copies them, and random numbers are others. An image's random numbers follow from seed, corruption and its row
alone, whatever the strength, so stronger is more of the same.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Randoms = Sequence[np.random.Generator]
"""One for each image of a batch."""


def _drawn(randoms: Randoms, draw: Callable[[np.random.Generator], Any]) -> Tensor:
    return torch.from_numpy(np.stack([draw(random) for random in randoms])).float()


def _blurred(x: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """A Gaussian blur of [B, C, S, S]; the edge is mirrored."""
    reach = min(int(truncate * sigma + 0.5), x.shape[-1] - 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    return _filtered(_filtered(x, (weights / weights.sum())[None]), (weights / weights.sum())[:, None])


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Each channel of [B, C, S, S] with a kernel [H, W] of odd sides."""
    high, wide = (side // 2 for side in kernel.shape)
    weight = kernel.to(x.dtype).expand(x.shape[1], 1, *kernel.shape)
    return F.conv2d(F.pad(x, (wide, wide, high, high), mode="reflect"), weight, groups=x.shape[1])


def _sampled(x: Tensor, places: Tensor, padding: str = "border") -> Tensor:
    """[B, C, S, S] at `places` (x, y) in pixels, [B, S, S, 2], bilinear."""
    side = x.shape[-1]
    grid = (places + 0.5) * (2 / side) - 1
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode=padding, align_corners=False)


def _places(side: int) -> Tensor:
    """Each pixel's own (x, y), [1, S, S, 2]."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([x, y], 2)[None].float()


def _zoomed(x: Tensor, factor: float) -> Tensor:
    middle = (x.shape[-1] - 1) / 2
    return _sampled(x, (_places(x.shape[-1]) - middle) / factor + middle)


def _moved(x: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Motion blur along an angle for each image, [B]: a half Gaussian of so many pixels."""
    steps = torch.arange(min(2 * round(radius), math.ceil(4 * sigma)) + 1)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    ways = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], 1)[:, None, None]
    parts = zip(steps.tolist(), (weights / weights.sum()).tolist(), strict=True)
    return torch.stack([weight * _sampled(x, _places(x.shape[-1]) + step * ways) for step, weight in parts]).sum(0)


def plasma(randoms: Randoms, side: int, decay: float) -> Tensor:
    """A fractal landscape from 0 to 1, [B, S, S], by the diamond-square algorithm on a torus."""
    step = size = 1 << (side - 1).bit_length()
    heights, height = torch.zeros(len(randoms), size, size), 1.0

    def rough(mean: Tensor) -> Tensor:
        return mean + height * _drawn(randoms, lambda random: random.uniform(-1, 1, mean.shape[1:]))

    while step > 1:
        half = step // 2
        corners = heights[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = rough((pairs + pairs.roll(-1, 2)) / 4)
        middles = heights[:, half::step, half::step]
        rows = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        columns = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        heights[:, ::step, half::step] = rough(rows / 4)
        heights[:, half::step, ::step] = rough(columns / 4)
        step, height = half, height / decay**2
    low, high = heights.amin((1, 2), True), heights.amax((1, 2), True)
    return ((heights - low) / (high - low).clamp(min=1e-12))[:, :side, :side]


def gaussian_noise(x: Tensor, amount: float, randoms: Randoms, scale: float) -> Tensor:
    """Noise of a standard deviation."""
    return x + amount * _drawn(randoms, lambda random: random.normal(size=x.shape[1:]))


def shot_noise(x: Tensor, photons: float, randoms: Randoms, scale: float) -> Tensor:
    """Poisson noise of so many photons at full brightness."""
    counts = [random.poisson(image.double().numpy() * photons) for random, image in zip(randoms, x, strict=True)]
    return torch.from_numpy(np.stack(counts)).float() / photons


def impulse_noise(x: Tensor, share: float, randoms: Randoms, scale: float) -> Tensor:
    """A share of the values is set to 0 or 1."""
    drawn = _drawn(randoms, lambda random: random.random(x.shape[1:]))
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn > 1 - share / 2, 1.0, x))


def defocus_blur(x: Tensor, amount: tuple[float, float], randoms: Randoms, scale: float) -> Tensor:
    """A disc of a radius, its edge smoothed."""
    radius, smooth = (value * scale for value in amount)
    reach = min(math.ceil(radius) + math.ceil(scale), x.shape[-1] // 2 - 1)
    line = torch.arange(-reach, reach + 1)
    disc = (line[:, None] ** 2 + line**2 <= radius**2).float()[None, None]
    disc = _blurred(disc, smooth, truncate=max(1.0, scale) / smooth)
    return _filtered(x, disc[0, 0] / disc.sum())


def glass_blur(x: Tensor, amount: tuple[float, int, int], randoms: Randoms, scale: float) -> Tensor:
    """Pixels change places with others near them, between two blurs."""
    sigma, reach, side = amount[0] * scale, max(1, round(amount[1] * scale)), x.shape[-1]
    order, images = np.tile(np.arange(side * side)[:, None], len(x)), np.arange(len(x))
    rows = range(side - reach - 1, reach - 1, -1)
    for _ in range(amount[2]):
        moves = np.stack([random.integers(-reach, reach, (side, side, 2)) for random in randoms], 2)
        for i in rows:
            for j in rows:
                place, other = i * side + j, (i + moves[i, j, :, 0]) * side + j + moves[i, j, :, 1]
                own = order[place].copy()
                order[place] = order[other, images]
                order[other, images] = own
    index = torch.from_numpy(order.T.copy())[:, None].expand(-1, x.shape[1], -1)
    shuffled = _blurred(x, sigma).flatten(2).gather(2, index).view_as(x)
    return _blurred(shuffled, sigma)


def motion_blur(x: Tensor, amount: tuple[float, float], randoms: Randoms, scale: float) -> Tensor:
    """Along an angle within 45 degrees of the horizontal."""
    radius, sigma = (value * scale for value in amount)
    return _moved(x, radius, sigma, _drawn(randoms, lambda random: random.uniform(-45, 45)))


def zoom_blur(x: Tensor, most: float, randoms: Randoms, scale: float) -> Tensor:
    """The mean of the image and of it enlarged in steps of 1 %."""
    factors = [1 + 0.01 * step for step in range(round(100 * (most - 1)) + 1)]
    return (x + torch.stack([_zoomed(x, factor) for factor in factors]).sum(0)) / (len(factors) + 1)


def snow(x: Tensor, amount: Sequence[float], randoms: Randoms, scale: float) -> Tensor:
    """Flakes that fall, over an image that they whiten."""
    mean, deviation, zoom, least, radius, sigma, kept = amount
    flakes = mean + deviation * _drawn(randoms, lambda random: random.normal(size=(1, *x.shape[2:])))
    flakes = _zoomed(flakes, max(1.0, zoom * scale))
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1)
    angle = _drawn(randoms, lambda random: random.uniform(-135, -45))
    flakes = _moved(flakes, radius * scale, sigma * scale, angle)
    grey = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    white = kept * x + (1 - kept) * torch.maximum(x, 1.5 * grey + 0.5)
    return white + flakes + flakes.flip(2, 3)


def frost(x: Tensor, amount: tuple[float, float], randoms: Randoms, scale: float) -> Tensor:
    """A bluish texture of ridges, drawn."""
    ridges = (1 - (2 * plasma(randoms, x.shape[-1], 1.4) - 1).abs()) ** 2
    return amount[0] * x + amount[1] * ridges[:, None] * torch.tensor([0.85, 0.95, 1.0])[:, None, None]


def fog(x: Tensor, amount: tuple[float, float], randoms: Randoms, scale: float) -> Tensor:
    """A fractal haze; the brightest value stays what it is."""
    most = x.amax((1, 2, 3), keepdim=True)
    return (x + amount[0] * plasma(randoms, x.shape[-1], amount[1])[:, None]) * most / (most + amount[0])


def brightness(x: Tensor, amount: float, randoms: Randoms, scale: float) -> Tensor:
    """The value of HSV raised; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    raised = (value + amount).clamp(max=1)
    return torch.where(value > 0, x * raised / value.clamp(min=1e-12), raised)


def contrast(x: Tensor, factor: float, randoms: Randoms, scale: float) -> Tensor:
    """Each channel drawn towards its mean."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def elastic_transform(x: Tensor, amount: tuple[float, float, float], randoms: Randoms, scale: float) -> Tensor:
    """A random affine map, then a smooth field of displacements; all amounts are shares of the side."""
    side = x.shape[-1]
    strength, sigma, moved = (value * side for value in amount)
    field = _drawn(randoms, lambda random: random.uniform(-1, 1, (2, side, side)))
    field = strength * (_blurred(field, sigma, truncate=3) if sigma else field)
    places = _places(side) + field.permute(0, 2, 3, 1)
    middle, third = side // 2, side // 3
    corners = torch.tensor([[middle + third] * 2, [middle + third, middle - third], [middle - third] * 2]).float()
    goals = corners + moved * _drawn(randoms, lambda random: random.uniform(-1, 1, (3, 2)))
    back = torch.linalg.solve(F.pad(goals, (0, 1), value=1.0), corners)  # [B, 3, 2], from a place to where it came from
    places = torch.einsum("bijk,bkl->bijl", F.pad(places, (0, 1), value=1.0), back)
    return _sampled(x, places, "reflection")


def pixelate(x: Tensor, share: float, randoms: Randoms, scale: float) -> Tensor:
    """Fewer, larger pixels."""
    side = x.shape[-1]
    small, box = max(1, int(side * share)), Image.Resampling.BOX
    return _by_pillow(x, lambda image: image.resize((small, small), box).resize((side, side), box))


def jpeg_compression(x: Tensor, quality: int, randoms: Randoms, scale: float) -> Tensor:
    """Written as JPEG and read again."""

    def change(image: Image.Image) -> Image.Image:
        memory = io.BytesIO()
        image.save(memory, "JPEG", quality=quality)
        return Image.open(memory)

    return _by_pillow(x, change)


def _by_pillow(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).float() / 255


Corruption = Callable[[Tensor, Any, Randoms, float], Tensor]
KINDS: dict[str, dict[str, tuple[Corruption, Sequence[Any]]]] = {
    "noise": {
        "gaussian noise": (gaussian_noise, (0.04, 0.08, 0.12, 0.15, 0.18)),
        "shot noise": (shot_noise, (250, 100, 50, 30, 15)),
        "impulse noise": (impulse_noise, (0.01, 0.02, 0.05, 0.08, 0.14)),
    },
    "blur": {
        "defocus blur": (defocus_blur, ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1))),
        "glass blur": (glass_blur, ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2))),
        "motion blur": (motion_blur, ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3))),
        "zoom blur": (zoom_blur, (1.05, 1.10, 1.15, 1.20, 1.25)),
    },
    "weather": {
        "snow": (
            snow,
            (
                (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
                (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
            ),
        ),
        "frost": (frost, ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55))),
        "fog": (fog, ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75))),
        "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    },
    "digital": {
        "contrast": (contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
        "elastic transform": (
            elastic_transform,
            ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        ),
        "pixelate": (pixelate, (0.9, 0.8, 0.7, 0.6, 0.5)),
        "jpeg compression": (jpeg_compression, (65, 58, 50, 40, 25)),
    },
}
CORRUPTIONS = {name: corruption for kind in KINDS.values() for name, corruption in kind.items()}


def corrupt(x: Tensor, name: str, strength: int, rows: Sequence[int], seed: int = 0) -> Tensor:
    """Corrupted images, rounded to 8 bits as the published ones are.

    Args:
        x: from 0 to 1, float32 [B, 3, S, S], in host memory.
        strength: 1 to 5.
        rows: which images of their split these are.
    """
    function, amounts = CORRUPTIONS[name]
    number = list(CORRUPTIONS).index(name)
    randoms = [np.random.default_rng((seed, number, int(row))) for row in rows]
    changed = function(x, amounts[strength - 1], randoms, x.shape[-1] / 64)
    return (changed.clamp(0, 1) * 255).round() / 255
