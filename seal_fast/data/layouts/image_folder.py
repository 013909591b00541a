"""Class folders: train/CLASS/* with val/CLASS/* or test/CLASS/*, or CLASS/* alone, without a split."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from seal_fast.data.archive import Archive
from seal_fast.data.layouts.common import (
    Contents,
    Faults,
    class_folders,
    hold_out,
    is_image,
    labelled_files,
    other_files,
)
from seal_fast.data.split import Split
from seal_fast.utils.errors import RunError

NAME = "image-folder"
DESCRIPTION = "an image folder (train/CLASS/*, with val/CLASS/* or test/CLASS/*)"
_PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def matches(archive: Archive) -> bool:
    """Whether there is a folder train/ and one to evaluate on."""
    return "train" in archive.folders and bool({"val", "test"} & archive.folders)


def has_no_split(archive: Archive) -> bool:
    """Whether there are two or more top folders that hold images, none of them named as a part of a split."""
    tops = {name.partition("/")[0] for name in archive.files if "/" in name and is_image(name)}
    return len(tops) > 1 and not tops & _PARTS


def read(archive: Archive, faults: Faults) -> Contents:
    """Names and labels; classes are sorted, and val/ is preferred to test/.

    Raises:
        RunError: a class folder is empty, or one of val/ is not in train/.
    """
    held_out = "val/" if "val" in archive.folders else "test/"
    train = class_folders(archive, "train/", faults)
    val = class_folders(archive, held_out, faults, train)
    for label in sorted(val.keys() - train.keys()):
        _refuse(archive, held_out, label, train)
    notes = other_files(archive, ("train/", held_out))
    tops = {name.removeprefix(held_out).partition("/")[0] for name in archive.folders if name.startswith(held_out)}
    if stray := sorted(tops - train.keys()):
        notes += (f"left out {len(stray)} empty folders that are no class of train/, {held_out}{stray[0]} first",)
    return Contents(
        tuple(train), _split(archive, train, train, faults), _split(archive, val, train, faults), notes=notes
    )


def read_pool(archive: Archive, faults: Faults, seed: int) -> Contents:
    """Class folders without a split, see `hold_out`."""
    by_class = class_folders(archive, "", faults)
    whole = _split(archive, by_class, by_class, faults)
    return hold_out(whole, tuple(by_class), seed, str(archive.path), other_files(archive, ("",)))


def _split(archive: Archive, by_class: dict[str, list[str]], classes: Iterable[str], faults: Faults) -> Split:
    pairs = ((name, label) for label, names in by_class.items() for name in names)
    return labelled_files(archive, pairs, classes, faults)


def _refuse(archive: Archive, held_out: str, label: str, classes: Iterable[str]) -> None:
    where = archive.where(held_out + label)
    for other in classes:
        if unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", label):
            forms = " and ".join("NFC" if unicodedata.is_normalized("NFC", name) else "NFD" for name in (label, other))
            raise RunError(
                f"{where} and train/{other} are one name in two Unicode forms ({forms}): rename one so that the forms "
                "agree"
            )
    raise RunError(f"{where} is no class of train/: both need the same class folders")
