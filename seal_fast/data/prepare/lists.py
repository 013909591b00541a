"""Data sets whose labels are lists of text (CUB-200-2011, FGVC-Aircraft, MIT-67), or whose folders are the classes.

The layouts are those that torchvision (FGVCAircraft) and the sets' own README files describe.
"""

from __future__ import annotations

from collections.abc import Iterator

from seal_fast.data.layouts.common import is_image
from seal_fast.data.prepare.images import Label
from seal_fast.data.prepare.sources import Sources
from seal_fast.utils.errors import RunError


def cub200(sources: Sources) -> Iterator[Label]:
    """CUB-200-2011 (Wah et al., 2011): four lists of ID VALUE, one line an image or class."""
    names = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    images, labels, training, classes = (dict(_pairs(text)) for text in sources.read(*names))
    for number, member in images.items():
        try:
            name, train = classes[labels[number]], training[number] == "1"
        except KeyError:
            raise RunError(
                f"image {number} of images.txt ({member}) has no class or no part in the other lists"
            ) from None
        if not member.startswith(f"{name}/"):
            raise RunError(f"images.txt has {member}, and image_class_labels.txt says that its class is {name}")
        yield Label(f"images/{member}", "train" if train else "test", name)


def aircraft(sources: Sources) -> Iterator[Label]:
    """FGVC-Aircraft (Maji et al., 2013), by variant: a list of IMAGE VARIANT for each part of the split."""
    parts = {"train": "train", "val": "valid", "test": "test"}
    *texts, variants = sources.read(*(f"images_variant_{part}.txt" for part in parts), "variants.txt")
    known = set(_lines(variants))
    for part, text in zip(parts.values(), texts, strict=True):
        for image, variant in _pairs(text):
            if variant not in known:
                raise RunError(f"image {image} is of the variant {variant}, which variants.txt does not list")
            yield Label(f"images/{image}.jpg", part, variant)


def mit67(sources: Sources) -> Iterator[Label]:
    """MIT indoor scenes (Quattoni and Torralba, CVPR 2009): two lists of CLASS/FILE."""
    for part, text in zip(("train", "test"), sources.read("TrainImages.txt", "TestImages.txt"), strict=True):
        for line in _lines(text):
            yield Label(f"Images/{line}", part, line.partition("/")[0])


def eurosat(sources: Sources) -> Iterator[Label]:
    """EuroSAT, the RGB version (Helber et al., 2019): CLASS/FILE in one folder; there is no official split."""
    for member, _ in sources.members():
        if is_image(member) and "/" in member:
            folder, file = member.split("/")[-2:]
            yield Label(f"{folder}/{file}", "", folder)


def cropdisease(sources: Sources) -> Iterator[Label]:
    """Plant diseases (Mohanty et al., 2016) as CDFSL uses them: dataset/{train,test}/CLASS/FILE."""
    for member, _ in sources.members():
        parts = member.split("/")[-3:]
        if is_image(member) and len(parts) == 3 and parts[0] in ("train", "test"):
            yield Label("/".join(parts), parts[0], parts[1])


def _lines(text: bytes) -> list[str]:
    return [line.strip() for line in text.decode("utf-8-sig", errors="surrogateescape").splitlines() if line.strip()]


def _pairs(text: bytes) -> Iterator[tuple[str, str]]:
    for line in _lines(text):
        first, _, rest = line.partition(" ")
        yield first, rest.strip()
