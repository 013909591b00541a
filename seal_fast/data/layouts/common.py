"""What every layout shares: the form of its answer, what to do with faults, and class folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from seal_fast.data.archive import Archive, Store
from seal_fast.data.split import Files, Split, draw_by_class
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.terminal import shown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = tuple(".jpg .jpeg .jpe .jfif .png .bmp .webp .tif .tiff .ppm .pgm .pnm .jp2".split())
MAY_HAVE_16_BITS = (".png", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2")
HELD_OUT = 0.2  # of each class of a set without a split
CURE = "mend it, or leave such images out with --on-bad-image skip"


@dataclass(frozen=True, eq=False)
class Contents:
    """What a layout reads from its archive.

    Attributes:
        classes: names, in the order of the labels.
        train: to learn from.
        val: held out.
        mirror: whether flipping an image left to right keeps its class.
        mean: per channel, white being 1: ImageNet's for colour, the training images' own for idx and digits.
        std: per channel, same unit.
        notes: sentences about what was left out or assumed.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    mirror: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    notes: tuple[str, ...] = ()


class Samples(NamedTuple):
    """What a reader finds in the files of one split: by image, in order, its label; None where there is none.

    classes: names of the labels 0, 1, ..., where the files give them.
    """

    store: Store
    labels: dict[str, int | str | None]
    classes: tuple[str, ...] = ()


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


def class_folders(
    archive: Archive, root: str, faults: Faults, classes: Collection[str] | None = None
) -> dict[str, list[str]]:
    """Images by class: everything below `root/CLASS/`, classes and images sorted.

    With `classes`, empty folders of other names are left out.

    Raises:
        RunError: an image lies beside the class folders, or a class folder holds no image.
    """
    by_class: dict[str, list[str]] = {
        folder.removeprefix(root): []
        for folder in sorted(archive.folders)
        if folder.startswith(root) and "/" not in folder.removeprefix(root)
    }
    for name in archive.files:
        if name.startswith(root) and is_image(name):
            label, slash, _ = name.removeprefix(root).partition("/")
            if slash:
                by_class[label].append(name)
            else:
                faults.report(name, f"{archive.where(name)} lies beside the class folders and so has no class")
    for label, names in by_class.items():
        if not names and (classes is None or label in classes):
            raise RunError(
                f"{archive.where(root + label)} holds no image: each class needs at least one, so remove the folder "
                f"or fill it ({', '.join(SUFFIXES)})"
            )
    return {label: names for label, names in by_class.items() if names}


def other_files(archive: Store, roots: tuple[str, ...], known: str | tuple[str, ...] = "\0") -> tuple[str, ...]:
    """A note that counts the files in class folders that are no images, by suffix; `known` ends names to leave out."""
    counts = Counter(
        PurePosixPath(shown(name)).suffix.lower() or "without suffix"
        for name in archive.files
        if name.startswith(roots) and not is_image(name) and not name.endswith(known)
    )
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    return (f"left out {counts.total()} files whose suffix is none of an image format that is read: {listed}",) * bool(
        counts
    )


def labelled_files(archive: Store, pairs: Iterable[tuple[str, str]], classes: Iterable[str], faults: Faults) -> Split:
    """A split of (image file, class), in the order given; empty files are faults."""
    label_of = {name: label for label, name in enumerate(classes)}
    usable: dict[str, int] = {}
    for name, label in pairs:
        if archive.files[name][1] == 0:
            faults.report(name, f"{archive.where(name)} is empty (0 bytes)")
        else:
            usable[name] = label_of[label]
    return Split(tuple(map(shown, usable)), np.array(list(usable.values()), np.int64), Files(archive, list(usable)))


def hold_out(whole: Split, classes: tuple[str, ...], seed: int, where: str, notes: tuple[str, ...]) -> Contents:
    """A set without a split: a fifth of each class, at least one image, is drawn by `seed` and held out.

    Raises:
        RunError: a class has fewer than two images.
    """
    for label, count in enumerate(np.bincount(whole.labels, minlength=len(classes))):
        if count < 2:
            raise RunError(
                f"{shown(classes[label])} in {where} has {count} usable images: to be split, each class needs two"
            )
    held_out = draw_by_class(whole.labels, seed, lambda count: max(1, round(HELD_OUT * count)))
    train, val = (whole.take(np.flatnonzero(chosen)) for chosen in (~held_out, held_out))
    note = (
        f"no train and no val: one pool of {len(whole)} images, of which seed {seed} holds out {len(val)} where asked"
    )
    return Contents(classes, train, val, notes=(*notes, note))


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
