"""An image folder: train/CLASS/*, and val/CLASS/* or test/CLASS/*."""

from __future__ import annotations

from seal_fast.data.archive import Container
from seal_fast.data.layouts.common import Contents, Faults, class_folders, labelled_files
from seal_fast.data.split import Split
from seal_fast.utils.errors import RunError

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
            raise RunError(
                f"{container.where(held_out + label)} is no class of train/: both need the same class folders"
            )
    label_of = {name: label for label, name in enumerate(classes)}

    def split(by_class: dict[str, list[str]]) -> Split:
        pairs = ((name, label_of[label]) for label, names in by_class.items() for name in names)
        return labelled_files(container, pairs, faults)

    return Contents(classes, split(train), split(val))
