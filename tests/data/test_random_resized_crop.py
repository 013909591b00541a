"""Windows of the random resized crop: always inside, of the distribution promised, a function of the position."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seal_fast.data.random_resized_crop import draws, window

side = st.integers(1, 5000).map(np.float32)
unit = st.integers(0, 2**24 - 1).map(lambda n: np.float32(n * 2.0**-24))


@given(height=side, width=side, draw=st.tuples(unit, unit, unit, unit))
def test_windows_are_whole_pixels_inside_the_image(height, width, draw):
    top, left, h, w = window(height, width, draw, np)
    assert all(value == np.floor(value) for value in (top, left, h, w))
    assert h >= 1 and w >= 1 and top >= 0 and left >= 0 and top + h <= height and left + w <= width
    if min(height, width) > 50 and 0.9 < height / width < 1.1:
        assert 0.72 <= w / h <= 1.39 and 0.07 <= h * w / (height * width) <= 1.02


def test_area_ratio_and_place_are_uniform():
    columns = draws(0, 0, 0, 0, 20000).T
    assert columns.dtype == np.float32 and columns.min() >= 0 and columns.max() < 1
    top, left, h, w = window(np.float32(2000), np.float32(2000), tuple(columns), np)
    small = h * w < 0.5 * 4e6  # where every ratio fits, so none is cut off
    for values, low, high in (
        (h * w / 4e6, 0.08, 1.0),
        (np.log(w / h)[small], np.log(3 / 4), np.log(4 / 3)),
        ((top / (2001 - h))[small], 0, 1),
        ((left / (2001 - w))[small], 0, 1),
    ):
        uniform = (np.sort(values) - low) / (high - low)
        distance = np.abs(uniform - (np.arange(len(uniform)) + 0.5) / len(uniform)).max()
        assert distance < 1.7 / np.sqrt(len(uniform))  # Kolmogorov-Smirnov, p < 0.01


def test_a_narrow_image_gets_the_nearest_ratio():
    *_, h, w = window(np.float32(1000), np.float32(10), tuple(np.full(4, 0.5, np.float32)), np)
    assert w == 10 and abs(h - 540) <= 1  # 54 % of the area, across the whole width


def test_draws_depend_on_the_position_alone():
    whole = draws(7, 1, 2, 0, 100)
    assert np.array_equal(np.concatenate([draws(7, 1, 2, 0, 33), draws(7, 1, 2, 33, 67)]), whole)
    for other in (draws(8, 1, 2, 0, 100), draws(7, 0, 2, 0, 100), draws(7, 1, 3, 0, 100)):
        assert not (other == whole).any(axis=1).any()


@given(height=side, width=side, area=unit, ratio=unit)
def test_every_place_can_be_drawn(height, width, area, ratio):
    last = np.float32(1 - 2.0**-24)
    for draw, edge in ((np.float32(0), 0), (last, 1)):
        top, left, h, w = window(height, width, (area, ratio, draw, draw), np)
        assert (top, left) == (edge * (height - h), edge * (width - w))
