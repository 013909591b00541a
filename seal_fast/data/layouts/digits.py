"""scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels, at hand wherever the package is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from seal_fast.data.layouts.common import Contents, grey_statistics
from seal_fast.data.split import Pixels, Split
from seal_fast.utils.errors import RunError

NAME = "digits"


def read() -> Contents:
    """Every fifth image of each class is held out: 20 %, stratified, the same on every machine.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    """
    package = importlib.util.find_spec("sklearn")
    if not package or not package.origin:
        raise RunError("--data digits needs scikit-learn: install it, or name another data set")
    # The package's own file where it lies as usual: importing the package takes a second.
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.exists():
        table = np.loadtxt(file, delimiter=",")
    else:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        table = np.column_stack([digits.data, digits.target])
    labels = table[:, -1].astype(np.int64)
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)  # whole numbers from 0 to 16
    rank = np.tril(labels[:, None] == labels).sum(1) - 1  # of an image within its class
    whole = Split(tuple(f"digits[{row:04d}]" for row in range(len(labels))), labels, Pixels(pixels))
    train, val = whole.take(np.flatnonzero(rank % 5 != 4)), whole.take(np.flatnonzero(rank % 5 == 4))
    mean, std = grey_statistics(pixels[rank % 5 != 4])
    return Contents(tuple(map(str, range(10))), train, val, mirror=False, mean=mean, std=std)
