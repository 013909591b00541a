"""What every layout shares: the form of its answer, what to do with faults, and class folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from seal_fast.data.archive import Archive
from seal_fast.data.split import Files, Split
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.terminal import shown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = tuple(".jpg .jpeg .jpe .jfif .png .bmp .webp .tif .tiff .ppm .pgm .pnm .jp2".split())
MAY_HAVE_16_BITS = (".png", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2")
CURE = "mend it, or leave such images out with --on-bad-image skip"


@dataclass(frozen=True)
class Contents:
    """What a layout reads from its archive.

    Attributes:
        classes: names, in the order of the labels.
        train: to learn from.
        val: held out.
        mirror: whether an image flipped left to right is still one of its class.
        mean: of each channel, white being 1.
        std: of each channel, same unit.
        notes: sentences about what was left out or assumed.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    mirror: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    notes: tuple[str, ...] = ()


class Faults:
    """Images that cannot be used: an error at once, or left out and listed, as --on-bad-image says."""

    def __init__(self, on_bad_image: str):
        if on_bad_image not in ("error", "skip"):
            raise UsageError(f"--on-bad-image is {on_bad_image!r}: choose error or skip")
        self.skip = on_bad_image == "skip"
        self.skipped: dict[str, str] = {}

    def report(self, name: str, sentence: str) -> None:
        """Take note of one unusable image.

        Raises:
            RunError: unless bad images are skipped.
        """
        if not self.skip:
            raise RunError(f"{sentence}: {CURE}")
        self.skipped[shown(name)] = sentence


def is_image(name: str) -> bool:
    """Whether the suffix is one of an image format that is read."""
    return name.lower().endswith(SUFFIXES)


def class_folders(archive: Archive, root: str, faults: Faults) -> dict[str, list[str]]:
    """Images by class: everything below `root/CLASS/`, classes and images sorted; a class may be empty.

    Raises:
        RunError: an image lies beside the class folders.
    """
    by_class: dict[str, list[str]] = {
        folder.removeprefix(root): []
        for folder in sorted(archive.folders)
        if folder.startswith(root) and "/" not in folder.removeprefix(root)
    }
    for name in archive.files:
        if not name.startswith(root) or not is_image(name):
            continue
        label, slash, _ = name.removeprefix(root).partition("/")
        if slash:
            by_class[label].append(name)
        else:
            faults.report(name, f"{archive.where(name)} lies beside the class folders and so has no class")
    return by_class


def check_filled(archive: Archive, root: str, by_class: dict[str, list[str]]) -> None:
    """Check that each class has an image.

    Raises:
        RunError: naming the first class folder that has none.
    """
    for label, names in by_class.items():
        if not names:
            raise RunError(
                f"{archive.where(root + label)} holds no image: each class needs at least one, so remove the folder "
                f"or fill it ({', '.join(SUFFIXES)})"
            )


def other_files(archive: Archive, roots: Iterable[str], known: str = "\0") -> tuple[str, ...]:
    """A note that counts the files in class folders that are no images, by suffix; `known` ends names to leave out."""
    prefixes = tuple(roots)
    counts = Counter(
        PurePosixPath(shown(name)).suffix.lower() or "without suffix"
        for name in archive.files
        if name.startswith(prefixes) and not is_image(name) and not name.endswith(known)
    )
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    return (f"left out {counts.total()} files whose suffix is none of an image format that is read: {listed}",) * bool(
        counts
    )


def labelled_files(archive: Archive, pairs: Iterable[tuple[str, int]], faults: Faults) -> Split:
    """A split of image files with their labels, in the order given; empty files are faults."""
    usable = []
    for name, label in pairs:
        if archive.files[name][1] == 0:
            faults.report(name, f"{archive.where(name)} is empty (0 bytes)")
        else:
            usable.append((name, label))
    names = [name for name, _ in usable]
    labels = np.array([label for _, label in usable], np.int64)
    return Split(tuple(map(shown, names)), labels, Files(archive, names))


def grey_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of grey images, white being 1, for each of the three channels they become."""
    if not pixels.size:
        return (0.5,) * 3, (0.5,) * 3
    counts = np.zeros(256, np.int64)
    for part in np.array_split(pixels.reshape(-1), max(1, pixels.size // 1_000_000)):  # bincount widens to 8 bytes
        counts += np.bincount(part, minlength=256)
    values = np.arange(256) / 255
    mean = float(counts @ values / counts.sum())
    std = float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum()))
    return (mean,) * 3, (max(std, 1 / 255),) * 3
