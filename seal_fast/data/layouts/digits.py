"""scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels, at hand wherever the package is."""

from __future__ import annotations

import numpy as np

from ..split import Pixels, Split
from .common import Contents, grey_statistics

NAME = "digits"


def read() -> Contents:
    """Every fifth image of each class is held out: 20 %, stratified, the same on every machine.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    """
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    values, labels = np.asarray(values), np.asarray(labels, np.int64)
    pixels = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)  # values are whole numbers from 0 to 16
    rank = np.zeros(len(labels), np.int64)  # of an image within its class
    for label in range(10):
        rank[labels == label] = np.arange(np.count_nonzero(labels == label))
    whole = Split(tuple(f"digits[{row:04d}]" for row in range(len(labels))), labels, Pixels(pixels))
    train, val = whole.take(np.flatnonzero(rank % 5 != 4)), whole.take(np.flatnonzero(rank % 5 == 4))
    mean, std = grey_statistics(pixels[rank % 5 != 4])
    return Contents(tuple(map(str, range(10))), train, val, mirror=False, mean=mean, std=std)
