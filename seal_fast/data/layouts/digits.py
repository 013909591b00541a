"""scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels, at hand wherever the package is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from seal_fast.data.layouts.common import Contents, grey_statistics
from seal_fast.data.split import Pixels, Split

NAME = "digits"


def read() -> Contents:
    """Every fifth image of each class is held out: 20 %, stratified, the same on every machine.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    """
    values, labels = _table()
    pixels = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)  # values are whole numbers from 0 to 16
    rank = np.zeros(len(labels), np.int64)  # of an image within its class
    for label in range(10):
        rank[labels == label] = np.arange(np.count_nonzero(labels == label))
    whole = Split(tuple(f"digits[{row:04d}]" for row in range(len(labels))), labels, Pixels(pixels))
    train, val = whole.take(np.flatnonzero(rank % 5 != 4)), whole.take(np.flatnonzero(rank % 5 == 4))
    mean, std = grey_statistics(pixels[rank % 5 != 4])
    return Contents(tuple(map(str, range(10))), train, val, mirror=False, mean=mean, std=std)


def _table() -> tuple[np.ndarray, np.ndarray]:
    """Values [1797, 64] and labels [1797], from scikit-learn's own file: to import the package takes a second."""
    package = importlib.util.find_spec("sklearn")
    for place in (package.submodule_search_locations or ()) if package else ():
        file = Path(place, "datasets", "data", "digits.csv.gz")
        if file.exists():
            rows = np.loadtxt(file, delimiter=",")
            return rows[:, :-1], rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    return np.asarray(values), np.asarray(labels, np.int64)
