"""Decoding against Pillow, sizes that differ, and images that cannot be decoded."""

import io

import numpy as np
import pytest
import torch
from image_files import crop_window, encoded, picture
from PIL import Image

from seal_fast.data.decode import Decoder, Request
from seal_fast.data.random_resized_crop import draws

CPU = torch.device("cpu")


def raw(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decode(requests, size=16, exact=False, **options):
    options = {"encoded": True, "device": CPU, "threads": 2, "batch_size": 8} | options
    return list(Decoder(size, exact=exact, **options)(requests))


LOSSLESS = [
    ("PNG", {}, 3), ("PNG", {}, 1), ("BMP", {}, 3), ("BMP", {}, 1), ("TIFF", {}, 3), ("TIFF", {}, 1),
    ("WEBP", {"lossless": True}, 3),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "channels"), LOSSLESS)
@pytest.mark.parametrize("exact", [False, True])
def test_lossless_formats_equal_pillow_to_the_bit(kind, options, channels, exact):
    files = [encoded(picture(seed, channels=channels), kind, **options) for seed in range(3)]
    ((pixels, bad),) = decode([Request([raw(file) for file in files])], exact=exact)
    assert bad == {} and pixels.dtype == torch.uint8 and pixels.is_contiguous()
    assert np.array_equal(pixels.numpy(), np.stack([pillow(file) for file in files]))


@pytest.mark.parametrize(("options", "channels"), [({}, 3), ({"quality": 95, "subsampling": 0}, 3), ({}, 1)])
def test_jpeg_equals_pillow_within_a_decoders_rounding(options, channels):
    files = [encoded(picture(seed, 64, channels=channels), "JPEG", **options) for seed in range(4)]
    ((pixels, _),) = decode([Request([raw(file) for file in files])], size=64)
    difference = pixels.numpy().astype(int) - np.stack([pillow(file) for file in files])
    assert np.abs(difference).max() <= 2
    if channels == 1:
        assert torch.equal(pixels[..., 0], pixels[..., 2])  # grey became RGB


def test_exif_orientation_is_ignored_as_pillow_does():
    exif = Image.Exif()
    exif[0x112] = 6  # turned by 90 degrees
    data = encoded(picture(0, 64), "JPEG", exif=exif)
    ((pixels, _),) = decode([Request([raw(data)])], size=64)
    assert np.abs(pixels[0].numpy().astype(int) - pillow(data)).max() <= 2


@pytest.mark.parametrize("exact", [False, True])
def test_other_sizes_are_resized_and_cut_in_the_middle(exact):
    """Twice as large: the shorter side is halved by a triangular filter, as Pillow's bilinear resize does."""
    shapes = [(16, 16), (32, 32), (32, 64), (48, 32), (8, 8)]
    images = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
    requests = [Request([raw(encoded(image))]) for image in images]
    results = decode(requests, exact=exact)  # `exact` guesses right once, then wrong
    for image, (pixels, bad) in zip(images, results, strict=True):
        height, width = image.shape[:2]
        scale = 16 / min(height, width)
        resized = Image.fromarray(image).resize(
            (round(width * scale), round(height * scale)), Image.Resampling.BILINEAR
        )
        top, left = (resized.height - 16) // 2, (resized.width - 16) // 2
        expected = np.asarray(resized)[top : top + 16, left : left + 16]
        assert bad == {} and np.abs(pixels[0].numpy().astype(int) - expected).max() <= 1


def test_grey_pixels_are_enlarged_bilinearly():
    image = picture(0, 8, channels=1)
    ((pixels, _),) = decode([Request([image[..., None]])], size=32, encoded=False)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
    assert pixels.shape == (1, 32, 32, 1)
    assert np.abs(pixels[0, ..., 0].numpy().astype(int) - expected).max() <= 1


@pytest.fixture(scope="module")
def good():
    return [raw(encoded(picture(seed, 64), "JPEG")) for seed in range(32)]


BROKEN = {
    "nothing": lambda data: data[:0],
    "header cut": lambda data: data[:200],
    "half": lambda data: data[: len(data) // 2],
    "last byte": lambda data: data[:-4],
    "zeros": lambda data: np.zeros(100, np.uint8),
    "text": lambda data: raw(b"this is no image"),
    "png cut": lambda data: raw(encoded(picture(0, 64))[:60]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_bad_images_are_found_and_the_others_kept(good, kind):
    """Also where a decoder of DALI would crash: an unreadable header among good images."""
    batches = [good[start : start + 8] for start in range(0, 32, 8)]
    expected = [result.pixels for result in decode([Request(batch) for batch in batches], size=64, exact=True)]
    spoilt = [list(batch) for batch in batches]
    for batch, place in ((1, 2), (1, 7), (3, 0)):
        spoilt[batch][place] = BROKEN[kind](spoilt[batch][place])
    for exact in (True, False):
        results = decode([Request(batch) for batch in spoilt], size=64, exact=exact)
        assert [tuple(result.bad) for result in results] == [(), (2, 7), (), (0,)]
        for result, whole in zip(results, expected, strict=True):
            for place in range(8):
                wanted = torch.zeros_like(whole[place]) if place in result.bad else whole[place]
                assert torch.equal(result.pixels[place], wanted)


def test_results_stay_valid_after_later_batches(good):
    """DALI must not write a new batch over one that is still in use."""
    results = decode([Request(good[start % 32 :][:1]) for start in range(64)], size=64, exact=True)
    for start, result in enumerate(results):
        assert np.abs(result.pixels[0].numpy().astype(int) - pillow(good[start % 32].tobytes())).max() <= 2


def test_windows_are_cut_and_resized(good):
    wide = [raw(encoded(picture(seed, 60, 90), "PNG")) for seed in range(4)]
    chosen = draws(3, 1, 2, 100, 4)
    ((pixels, bad),) = decode([Request(wide, chosen)], size=24, random_crops=True)
    assert bad == {} and pixels.shape == (4, 24, 24, 3)
    for image, draw, result in zip(wide, chosen, pixels, strict=True):
        top, left, height, width = crop_window(60, 90, draw)
        cut = Image.fromarray(pillow(image.tobytes())[top : top + height, left : left + width])
        expected = np.asarray(cut.resize((24, 24), Image.Resampling.BILINEAR))
        assert np.abs(result.numpy().astype(int) - expected).max() <= 2
    spoilt = [*wide[:2], wide[2][:100], wide[3]]
    ((again, bad),) = decode([Request(spoilt, chosen)], size=24, random_crops=True)
    assert list(bad) == [2] and torch.equal(again[[0, 1, 3]], pixels[[0, 1, 3]])
