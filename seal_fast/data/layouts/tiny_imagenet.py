"""Tiny-ImageNet as officially packed: a flat val folder, labelled by val_annotations.txt."""

from __future__ import annotations

from collections.abc import Collection

from seal_fast.data.archive import Archive
from seal_fast.data.layouts.common import Contents, Faults, class_folders, is_image, labelled_files, other_files
from seal_fast.utils.errors import RunError
from seal_fast.utils.terminal import shown

NAME = "tiny-imagenet"
DESCRIPTION = "Tiny-ImageNet (wnids.txt, train/WNID/images/*, val/images/*, val/val_annotations.txt)"
_ANNOTATIONS = "val/val_annotations.txt"
_IMAGES = "val/images/"


def matches(archive: Archive) -> bool:
    """Whether wnids.txt is there, and val/ is not sorted into class folders."""
    if "wnids.txt" not in archive.files or not ("val/images" in archive.folders or _ANNOTATIONS in archive.files):
        return False
    val = [name for name in archive.files if name.startswith("val/") and is_image(name)]
    return not val or any(name.startswith(_IMAGES) for name in val)


def read(archive: Archive, faults: Faults) -> Contents:
    """Names and labels; classes are the WordNet ids, sorted.

    Raises:
        RunError: the class folders are not those of wnids.txt, or the annotations do not fit the images.
    """
    wnids = set(_text(archive, "wnids.txt").split())
    train = class_folders(archive, "train/", faults)
    for wnid in sorted(wnids ^ train.keys()):
        raise RunError(
            f"{archive.where('train/' + wnid)}: no such class folder, though wnids.txt lists it"
            if wnid in wnids
            else f"{archive.where('train/' + wnid)}: wnids.txt does not list this class"
        )
    pairs = [(name, wnid) for wnid, names in train.items() for name in names]
    notes = other_files(archive, ("train/", _IMAGES), known="_boxes.txt")
    elsewhere = [n for n in archive.files if n.startswith("val/") and not n.startswith(_IMAGES) and is_image(n)]
    if elsewhere:
        notes += (f"left out {len(elsewhere)} images in val/ outside {_IMAGES}, {shown(elsewhere[0])} first",)
    return Contents(
        tuple(train),
        labelled_files(archive, pairs, train, faults),
        labelled_files(archive, _val(archive, train, faults), train, faults),
        notes=notes,
    )


def _val(archive: Archive, wnids: Collection[str], faults: Faults) -> list[tuple[str, str]]:
    """The val images with their classes, sorted; a line of the annotations is FILE, WNID and four numbers of a box."""
    if _ANNOTATIONS not in archive.files:
        raise RunError(f"{archive.where(_ANNOTATIONS)} is missing: it holds the labels of val/images")
    images = {name for name in archive.files if name.startswith(_IMAGES) and is_image(name)}
    wnid_of: dict[str, str] = {}
    for number, line in enumerate(_text(archive, _ANNOTATIONS).splitlines(), 1):
        if not line.strip():
            continue
        place = f"{archive.where(_ANNOTATIONS)}, line {number}"
        fields = [field.strip() for field in line.split("\t" if "\t" in line.strip() else None)]
        if len(fields) < 2:
            raise RunError(
                f"{place}: {shown(line[:60])!r} is no annotation; expected FILE and WNID, separated by a tab"
            )
        name, wnid = f"{_IMAGES}{fields[0]}", fields[1]
        if wnid not in wnids:
            raise RunError(f"{place}: {shown(wnid)!r} is no class of wnids.txt")
        if wnid_of.setdefault(name, wnid) != wnid:
            raise RunError(f"{place}: {shown(fields[0])} has two labels, here {wnid}: keep the right line only")
        if name not in images:
            faults.report(name, f"{place}: there is no image {shown(name)}")
    for name in sorted(images - wnid_of.keys()):
        faults.report(name, f"{archive.where(name)} has no line in val_annotations.txt")
    return [(name, wnid_of[name]) for name in archive.files if name in images and name in wnid_of]


def _text(archive: Archive, name: str) -> str:
    """A label file, with or without a byte order mark; bytes that are no UTF-8 stay what they are in file names."""
    return archive.read(name).tobytes().decode("utf-8-sig", errors="surrogateescape")
