"""The idx files of MNIST and Fashion-MNIST, plain or .gz.

Format (Y. LeCun, the MNIST database, "File formats"): two zero bytes, the element type (8: uint8), the number of
dimensions, each dimension as a big-endian int32, then the elements.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib

import numpy as np

from seal_fast.data.archive import Archive
from seal_fast.data.layouts.common import Contents, Faults, grey_statistics
from seal_fast.data.split import Pixels, Split
from seal_fast.utils.errors import RunError

NAME = "idx"
DESCRIPTION = "idx files ({train,t10k}-{images-idx3,labels-idx1}-ubyte, .gz too)"
_FILE = re.compile(r"(?:.*/)?(train|t10k|test)[-_](images|labels)[-_.]idx([13])[-_]ubyte(\.gz)?")


def matches(archive: Archive) -> bool:
    """Whether there is a file of training images."""
    return ("train", "images") in _found(archive)


def read(archive: Archive, faults: Faults) -> Contents:
    """All pixels and labels; classes are the numbers from 0 to the largest label.

    Raises:
        RunError: a file is missing, damaged or truncated, or images and labels differ in number.
    """
    found = _found(archive)
    held_out = "test" if ("test", "images") in found else "t10k"
    (train, pixels), (val, held_out_pixels) = _split(archive, found, "train"), _split(archive, found, held_out)
    if pixels.shape[1:] != held_out_pixels.shape[1:]:
        shapes = [" x ".join(map(str, array.shape[1:])) for array in (pixels, held_out_pixels)]
        raise RunError(f"{archive.path}: training images of {shapes[0]} pixels, test images of {shapes[1]}")
    classes = tuple(str(label) for label in range(int(train.labels.max(initial=-1)) + 1))
    mean, std = grey_statistics(pixels)
    return Contents(classes, train, val, mirror=False, mean=mean, std=std)


def _found(archive: Archive) -> dict[tuple[str, str], str]:
    """(part, kind) to file name; a plain file is preferred to a compressed one."""
    found: dict[tuple[str, str], str] = {}
    for name in sorted(archive.files, reverse=True):
        if match := _FILE.fullmatch(name):
            found[match[1], match[2]] = name
    return found


def _split(archive: Archive, found: dict[tuple[str, str], str], part: str) -> tuple[Split, np.ndarray]:
    for kind, dimensions in (("images", 3), ("labels", 1)):
        if (part, kind) not in found:
            name = f"{part}-{kind}-idx{dimensions}-ubyte"
            raise RunError(f"{archive.path}: the idx file {name} is missing (.gz would do)")
    images = found[part, "images"]
    pixels, labels = _array(archive, images, 3), _array(archive, found[part, "labels"], 1)
    if len(pixels) != len(labels):
        raise RunError(
            f"{archive.where(images)} holds {len(pixels)} images, but {found[part, 'labels']} {len(labels)} labels"
        )
    names = tuple(f"{images}[{row:06d}]" for row in range(len(pixels)))
    return Split(names, labels.astype(np.int64), Pixels(pixels)), pixels


def _array(archive: Archive, name: str, dimensions: int) -> np.ndarray:
    """The elements of one idx file, uint8."""
    where = archive.where(name)
    file = io.BytesIO(archive.read(name).tobytes())
    try:
        with gzip.open(file) if name.endswith(".gz") else file as stream:
            magic = stream.read(4)
            if magic != bytes([0, 0, 8, dimensions]):
                raise RunError(
                    f"{where} is no idx file of {dimensions} dimensions of bytes: it begins with {magic.hex(' ')}, "
                    f"not 00 00 08 0{dimensions}"
                )
            sizes = stream.read(4 * dimensions)
            if len(sizes) < 4 * dimensions:
                raise EOFError("it ends within its header")
            shape = np.frombuffer(sizes, ">i4").astype(np.int64)
            expected = int(shape.prod())
            data = stream.read(expected + 1) if expected >= 0 else b""
    except (EOFError, OSError, zlib.error) as error:
        raise RunError(f"{where} is truncated or damaged ({error}): download it again") from None
    if len(data) != expected:
        held = f"only {len(data)}" if len(data) < expected else "more"
        raise RunError(f"{where} is damaged: its header promises {expected} bytes, it holds {held}; download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)
