"""The corruptions against closed forms, and what all of them promise."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve, gaussian_filter
from sklearn.datasets import load_sample_images

from seal_fast.analysis.robustness import corruptions
from seal_fast.analysis.robustness.corruptions import CORRUPTIONS, corrupt, plasma

ROWS = [3, 5, 8]


@pytest.fixture(scope="module")
def photos():
    """Three parts of two photographs, [3, 3, 64, 64]."""
    flower, temple = load_sample_images().images
    parts = temple[:256:4, :256:4], temple[150:406:4, 300:556:4], flower[50:306:4, 100:356:4]
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_repeats_itself_and_grows(name, photos):
    found = [corrupt(photos, name, strength, ROWS) for strength in range(1, 6)]
    for images in found:
        assert images.shape == photos.shape and images.min() >= 0 and images.max() <= 1
        torch.testing.assert_close(images * 255, (images * 255).round(), atol=1e-4, rtol=0)
    assert torch.equal(corrupt(photos, name, 3, ROWS), found[2])
    # an image's random numbers do not depend on its batch (its sums may, in the last bit)
    assert (corrupt(photos[1:], name, 3, ROWS[1:]) - found[2][1:]).abs().max() <= 1.01 / 255
    distances = [float((images - photos).square().mean()) for images in found]
    # Two of the published ladders do not order the distance to the clean image: glass blur's blurs bring shuffled
    # pixels closer, and the affine part of the elastic transform shrinks.
    if name not in ("glass blur", "elastic transform"):
        assert sorted(distances) == distances and len(set(distances)) == len(distances)
    drawn = not torch.equal(corrupt(photos, name, 3, ROWS, seed=1), found[2])
    fixed = {"defocus blur", "zoom blur", "brightness", "contrast", "pixelate", "jpeg compression"}
    assert drawn == (name not in fixed)


def test_noise_has_its_variance():
    grey = torch.full((4, 3, 64, 64), 0.5)
    rows = range(4)
    for strength, amount in enumerate((0.04, 0.08, 0.12), 1):
        noise = corrupt(grey, "gaussian noise", strength, rows) - 0.5
        assert float(noise.var()) == pytest.approx(amount**2 + (1 / 255) ** 2 / 12, rel=0.03)
        photons = (250, 100, 50)[strength - 1]
        randoms = [np.random.default_rng(row) for row in rows]
        noise = corruptions.shot_noise(grey, photons, randoms, 1.0) - 0.5
        assert float(noise.var()) == pytest.approx(0.5 / photons, rel=0.03)
        share = (0.01, 0.02, 0.05)[strength - 1]
        hit = corrupt(grey, "impulse noise", strength, rows)
        ends = [float((hit == end).float().mean()) for end in (0, 1)]
        assert ends == pytest.approx([share / 2] * 2, rel=0.15)


def test_brightness_and_contrast_are_their_formulas(photos):
    bright, flat = corrupt(photos, "brightness", 2, ROWS), corrupt(photos, "contrast", 3, ROWS)
    for i, y, x in ((0, 1, 2), (1, 30, 40), (2, 63, 63)):
        hue, saturation, value = colorsys.rgb_to_hsv(*photos[i, :, y, x].tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + 0.2))
        assert bright[i, :, y, x].tolist() == pytest.approx(expected, abs=0.51 / 255)
        mean = photos[i].mean((1, 2))
        expected = (photos[i, :, y, x] - mean) * 0.2 + mean
        assert flat[i, :, y, x].tolist() == pytest.approx(expected.tolist(), abs=0.51 / 255)
    black = corrupt(torch.zeros(1, 3, 8, 8), "brightness", 1, [0])
    assert black.unique().item() == pytest.approx(0.1, abs=1 / 255)


def test_blurs_are_scipys(photos):
    blurred = corruptions._blurred(photos[:1], 1.3)[0].numpy()
    expected = np.stack([gaussian_filter(c.astype(np.float64), 1.3, mode="mirror") for c in photos[0].numpy()])
    np.testing.assert_allclose(blurred, expected, atol=1e-6)
    x = corruptions.defocus_blur(photos[:1], (2.5, 0.01), [], 1.0)[0, 0].numpy()
    line = np.arange(-3, 4)
    disc = (line[:, None] ** 2 + line**2 <= 2.5**2).astype(float)
    np.testing.assert_allclose(x, convolve(photos[0, 0].numpy(), disc / disc.sum(), mode="mirror"), atol=1e-6)


def test_pixels_change_places_and_fields_move_nothing_where_they_are_zero(photos):
    draw = [np.random.default_rng(0)]
    shuffled = corruptions.glass_blur(photos[:1], (0.0, 2, 1), draw, 1.0)
    assert torch.equal(shuffled.flatten().sort()[0], photos[:1].flatten().sort()[0])
    assert not torch.equal(shuffled, photos[:1])
    still = corruptions.elastic_transform(photos[:1], (0, 0, 0), draw, 1.0)
    torch.testing.assert_close(still, photos[:1], atol=1e-4, rtol=0)
    torch.testing.assert_close(corruptions._zoomed(photos, 1.0), photos, atol=1e-5, rtol=0)
    # an image that is the same along the way of the blur stays
    stripes = torch.rand(1, 3, 16, 1).expand(-1, -1, -1, 16)
    torch.testing.assert_close(corruptions._moved(stripes, 5, 2, torch.zeros(1)), stripes, atol=1e-5, rtol=0)
    heights = plasma([np.random.default_rng(i) for i in range(2)], 20, 2.0)
    assert heights.shape == (2, 20, 20) and heights.min() >= 0 and heights.max() <= 1 and heights.std() > 0.05


def test_jpeg_is_pillows_and_lengths_scale_with_the_side(photos):
    image = Image.fromarray((photos[0].permute(1, 2, 0) * 255).round().byte().numpy())
    memory = io.BytesIO()
    image.save(memory, "JPEG", quality=25)
    expected = torch.from_numpy(np.array(Image.open(memory))).permute(2, 0, 1)
    assert torch.equal((corrupt(photos[:1], "jpeg compression", 5, [0])[0] * 255).round().byte(), expected)
    large = photos[:1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    for name in ("defocus blur", "zoom blur"):
        small = corrupt(photos[:1], name, 4, [0])
        halved = torch.nn.functional.avg_pool2d(corrupt(large, name, 4, [0]), 2)
        assert float((halved - small).square().mean()) < 0.25 * float((small - photos[:1]).square().mean())


@pytest.mark.parametrize("side", [8, 28])
def test_any_size(side):
    x = torch.rand(1, 3, side, side)
    for name in CORRUPTIONS:
        assert corrupt(x, name, 5, [0]).isfinite().all()
