"""Windows of the random resized crop: torchvision's distribution, always inside, a function of the position."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import NUMPY, crop_window
from scipy import stats

from seal_fast.data.random_resized_crop import TRIES, draws, window

side = st.integers(1, 5000).map(np.float32)
unit = st.integers(0, 2**24 - 1).map(lambda n: np.float32(n * 2.0**-24))


def literal(height, width, random):
    """torchvision's RandomResizedCrop.get_params, written from its documentation, with numpy's generator."""
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.integers(0, height - h + 1), random.integers(0, width - w + 1), h, w
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def windows(height, width, drawn):
    """Top, left, height and width of each image's window, [4, n]."""
    return np.array([crop_window(height, width, tries) for tries in drawn]).T


@pytest.mark.parametrize(("height", "width"), [(500, 500), (500, 200), (40, 400), (30, 25)])
def test_windows_are_distributed_as_torchvisions(height, width):
    n = 3000
    random = np.random.default_rng(height)
    expected = np.array([literal(height, width, random) for _ in range(n)], dtype=np.float64).T
    found = windows(height, width, draws(1, 2, 3, 0, n)).astype(np.float64)
    for name, of in {
        "area": lambda top, left, h, w: h * w,
        "aspect ratio": lambda top, left, h, w: np.log(w / h),
        "top": lambda top, left, h, w: top / (height - h + 1),
        "left": lambda top, left, h, w: left / (width - w + 1),
    }.items():
        assert stats.ks_2samp(of(*found), of(*expected)).pvalue > 1e-3, name
    if width == 400:  # for most images of this shape no try fits
        shares = [(windows.T == [0, 173, 40, 53]).all(axis=1).mean() for windows in (found, expected)]
        assert shares[0] == pytest.approx(shares[1], abs=0.04) and shares[1] > 0.6


@given(height=side, width=side, seed=st.integers(0, 2**40))
def test_windows_are_whole_pixels_inside_the_image(height, width, seed):
    top, left, h, w = windows(height, width, draws(seed, 0, 0, 0, 5))
    assert all((value == np.floor(value)).all() for value in (top, left, h, w))
    assert (h >= 1).all() and (w >= 1).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


@given(height=side, width=side, area=unit, ratio=unit)
def test_every_place_can_be_drawn(height, width, area, ratio):
    last = np.float32(1 - 2.0**-24)
    for draw, edge in ((np.float32(0), 0), (last, 1)):
        tries = (np.full(TRIES, value) for value in (area, ratio, draw, draw))
        top, left, h, w = window(height, width, tuple(tries), NUMPY)
        centre = (np.floor((height - h) / 2), np.floor((width - w) / 2))  # where no try fits
        assert (top, left) in ((edge * (height - h), edge * (width - w)), centre)


def test_the_first_try_that_fits_counts():
    tries = np.full((TRIES, 4), 0.5, np.float32)
    tries[:, 0] = 1.0  # the whole area at ratio 1: never fits into 400 x 100
    tries[3:, 0] = np.linspace(0.01, 0.07, TRIES - 3)  # these fit, each larger than the one before
    *_, h, w = windows(400, 100, [tries])[:, 0]
    assert h == w == round(math.sqrt(40000 * (0.08 + 0.92 * 0.01)))
    tries[:, 0] = 1.0
    assert windows(400, 100, [tries])[:, 0].tolist() == [133, 0, 133, 100]


def test_draws_depend_on_the_position_alone_and_tries_differ():
    whole = draws(7, 1, 2, 0, 100)
    assert whole.shape == (100, TRIES, 4) and whole.dtype == np.float32 and len(np.unique(whole)) > 3990
    assert np.array_equal(np.concatenate([draws(7, 1, 2, 0, 33), draws(7, 1, 2, 33, 67)]), whole)
    for other in (draws(8, 1, 2, 0, 100), draws(7, 0, 2, 0, 100), draws(7, 1, 3, 0, 100)):
        assert not (other == whole).any(axis=(1, 2)).any()
