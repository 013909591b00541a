"""Tiny-ImageNet as officially packed: a flat val folder, labelled by val_annotations.txt."""

from __future__ import annotations

from seal_fast.data.archive import Container
from seal_fast.data.layouts.common import Contents, Faults, class_folders, is_image, labelled_files
from seal_fast.utils.errors import RunError

NAME = "tiny-imagenet"
DESCRIPTION = "Tiny-ImageNet (wnids.txt, train/WNID/images/*, val/images/*, val/val_annotations.txt)"
_ANNOTATIONS = "val/val_annotations.txt"


def matches(container: Container) -> bool:
    """Whether wnids.txt is there, and the flat val folder or its annotations."""
    return "wnids.txt" in container.files and ("val/images" in container.folders or _ANNOTATIONS in container.files)


def read(container: Container, faults: Faults) -> Contents:
    """Names and labels; classes are the WordNet ids, sorted.

    Raises:
        RunError: the class folders are not those of wnids.txt, or the annotations do not fit the images.
    """
    wnids = set(container.read("wnids.txt").tobytes().decode(errors="replace").split())
    train = class_folders(container, "train/", faults)
    for wnid in sorted(wnids ^ train.keys()):
        raise RunError(
            f"{container.where('train/' + wnid)}: no such class folder, though wnids.txt lists it"
            if wnid in wnids
            else f"{container.where('train/' + wnid)}: wnids.txt does not list this class"
        )
    label_of = {wnid: label for label, wnid in enumerate(train)}
    pairs = ((name, label_of[wnid]) for wnid, names in train.items() for name in names)
    return Contents(
        tuple(train),
        labelled_files(container, pairs, faults),
        labelled_files(container, _val(container, label_of, faults), faults),
    )


def _val(container: Container, label_of: dict[str, int], faults: Faults) -> list[tuple[str, int]]:
    """The val images with their labels, sorted; a line of the annotations is FILE, WNID and four numbers of a box."""
    if _ANNOTATIONS not in container.files:
        raise RunError(f"{container.where(_ANNOTATIONS)} is missing: it holds the labels of val/images")
    images = {name for name in container.files if name.startswith("val/images/") and is_image(name)}
    labels: dict[str, int] = {}
    for number, line in enumerate(container.read(_ANNOTATIONS).tobytes().decode(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        place = f"{container.where(_ANNOTATIONS)}, line {number}"
        fields = line.split()
        if len(fields) < 2:
            raise RunError(f"{place}: {line[:60]!r} is no annotation; expected FILE and WNID, separated by a tab")
        name = f"val/images/{fields[0]}"
        if fields[1] not in label_of:
            raise RunError(f"{place}: {fields[1]!r} is no class of wnids.txt")
        if name in images:
            labels[name] = label_of[fields[1]]
        else:
            faults.report(name, f"{place}: there is no image {name}")
    for name in sorted(images - labels.keys()):
        faults.report(name, f"{container.where(name)} has no line in val_annotations.txt")
    return [(name, labels[name]) for name in container.files if name in labels]
