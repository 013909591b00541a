"""scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels, at hand wherever the package is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from seal_fast.data.layouts.common import Contents, grey_statistics
from seal_fast.data.split import Pixels, Split
from seal_fast.utils.errors import RunError

NAME = "digits"


def read() -> Contents:
    """Every fifth image of each class is held out: 20 %, stratified, the same on every machine.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    """
    # The package's own file: importing the package takes a second.
    package = importlib.util.find_spec("sklearn")
    if not package or not package.submodule_search_locations:
        raise RunError("--data digits needs scikit-learn: install it, or name another data set")
    table = np.loadtxt(Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz"), delimiter=",")
    labels = table[:, -1].astype(np.int64)
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)  # whole numbers from 0 to 16
    rank = np.zeros(len(labels), np.int64)  # of an image within its class
    for label in range(10):
        rank[labels == label] = np.arange(np.count_nonzero(labels == label))
    whole = Split(tuple(f"digits[{row:04d}]" for row in range(len(labels))), labels, Pixels(pixels))
    train, val = whole.take(np.flatnonzero(rank % 5 != 4)), whole.take(np.flatnonzero(rank % 5 == 4))
    mean, std = grey_statistics(pixels[rank % 5 != 4])
    return Contents(tuple(map(str, range(10))), train, val, mirror=False, mean=mean, std=std)
