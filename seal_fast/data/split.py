"""A split of a data set: names, labels and where the pixels come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from seal_fast.data.archive import Store

Rows = Sequence[int] | np.ndarray
_SAMPLED = 32


class Files:
    """Image files in an archive: `read` gives their bytes, uint8 [size], which decode to RGB."""

    encoded = True

    def __init__(self, archive: Store, names: Sequence[str]):
        self._archive, self._names = archive, names

    def read(self, row: int) -> np.ndarray:
        """The bytes of a file."""
        return self._archive.read(self._names[row])

    def where(self, row: int) -> str:
        """How messages name a file."""
        return self._archive.where(self._names[row])

    def take(self, rows: Rows) -> Files:
        """These files only."""
        return Files(self._archive, [self._names[row] for row in rows])

    def digest(self) -> bytes:
        """Sizes of all files in bytes, and the content of 32 evenly spaced ones."""
        total = hashlib.sha256(np.array([self._archive.files[name][1] for name in self._names], "<i8").tobytes())
        for row in spread(len(self._names), _SAMPLED):
            total.update(self.read(row).data)
        return total.digest()


class Pixels:
    """Grey images in memory, `rows` of uint8 [n, h, w]: `read` gives pixels [h, w, 1]."""

    encoded = False

    def __init__(self, pixels: np.ndarray, rows: Rows | None = None):
        self._pixels = pixels
        self._rows = np.arange(len(pixels)) if rows is None else np.asarray(rows, np.int64)

    def read(self, row: int) -> np.ndarray:
        """The pixels of an image, [h, w, 1]."""
        return self._pixels[self._rows[row]][..., None]

    def where(self, row: int) -> str:
        """How messages name an image."""
        return f"image {row}"

    def take(self, rows: Rows) -> Pixels:
        """These images only."""
        return Pixels(self._pixels, self._rows[np.asarray(rows, np.int64)])

    def digest(self) -> bytes:
        """sha256 of all pixels."""
        total = hashlib.sha256()
        for row in self._rows:
            total.update(np.ascontiguousarray(self._pixels[row]).data)
        return total.digest()


@dataclass(frozen=True, eq=False)
class Split:
    """Images of one split, sorted by path (folder by folder, as pathlib sorts).

    Attributes:
        names: path of each image within the data set, or file and number where a file holds many; printable.
        labels: class of each image, int64 [n].
        source: where the images are read.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    source: Files | Pixels

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Rows) -> Split:
        """The split with these rows only, in this order."""
        return Split(
            tuple(self.names[row] for row in rows), self.labels[np.asarray(rows, np.int64)], self.source.take(rows)
        )

    def spread(self, count: int | None) -> Split:
        """At most `count` images, evenly spaced over the sorted order, so that each class keeps about its share."""
        return self if count is None or count >= len(self) else self.take(spread(len(self), count))

    def sample(self) -> list[np.ndarray]:
        """At most 32 evenly spaced images, as `source.read` gives them."""
        return [self.source.read(row) for row in spread(len(self), _SAMPLED)]

    def digest(self) -> bytes:
        """sha256 over names, labels and the source's own digest."""
        total = hashlib.sha256("\0".join(self.names).encode())
        total.update(self.labels.astype("<i8").tobytes())
        total.update(self.source.digest())
        return total.digest()


def spread(length: int, count: int) -> np.ndarray:
    """`count` evenly spaced rows of `length`, or all of them if there are fewer."""
    return np.arange(min(count, length)) * length // max(1, min(count, length))


def draw_by_class(labels: np.ndarray, seed: int, count: Callable[[int], int]) -> np.ndarray:
    """Which images are drawn, bool [n]: of each class of n images the first `count(n)` of an order drawn by `seed`."""
    drawn = np.zeros(len(labels), bool)
    words = np.random.Philox(key=seed).random_raw(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        drawn[rows[np.argsort(words[rows])][: count(len(rows))]] = True
    return drawn
