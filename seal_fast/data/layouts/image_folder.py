"""An image folder: train/CLASS/*, and val/CLASS/* or test/CLASS/*."""

from __future__ import annotations

from ...errors import RunError
from ..container import Container
from .common import Contents, Faults, class_folders, labelled_files

NAME = "image-folder"
DESCRIPTION = "an image folder (train/CLASS/*, with val/CLASS/* or test/CLASS/*)"


def matches(container: Container) -> bool:
    """Whether there is a folder train/ and one to evaluate on."""
    return "train" in container.folders and bool({"val", "test"} & container.folders)


def read(container: Container, faults: Faults) -> Contents:
    """Names and labels; classes are sorted, and val/ is preferred to test/.

    Raises:
        RunError: a class folder is empty, or one of val/ is not in train/.
    """
    held_out = "val/" if "val" in container.folders else "test/"
    train = class_folders(container, "train/", faults)
    val = class_folders(container, held_out, faults)
    classes = tuple(train)
    for label in val:
        if label not in train:
            raise RunError(f"{container.where(held_out + label)} is no class of train/: both need the same class folders")
    label_of = {name: label for label, name in enumerate(classes)}
    splits = (
        labelled_files(container, ((name, label_of[c]) for c, names in split.items() for name in names), faults)
        for split in (train, val)
    )
    return Contents(classes, *splits)
