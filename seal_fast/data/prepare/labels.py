"""Which class and which part of the split each image of the official archives belongs to, data set by data set.

Labels are lists of text, MATLAB files (scipy reads them without running anything), tables, or the names of folders. The
layouts are those that torchvision (FGVCAircraft, Flowers102) and the sets' own README files describe.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

from seal_fast.data.layouts.common import is_image
from seal_fast.data.prepare.images import Label
from seal_fast.data.prepare.sources import Sources
from seal_fast.utils.errors import RunError, UsageError

_COLUMNS = {"image"}, {"image_id", "dx"}, {"Image Index", "Finding Labels"}
_CHESTX = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax")


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


def flowers102(sources: Sources) -> Iterator[Label]:
    """Oxford Flowers-102 (Nilsback and Zisserman, 2008): classes by image number, and numbers by part of the split."""
    labels, parts = sources.read("imagelabels.mat", "setid.mat")
    classes = _array(labels, "imagelabels.mat", "labels").ravel()
    for key, part in (("trnid", "train"), ("valid", "valid"), ("tstid", "test")):
        for number in map(int, _array(parts, "setid.mat", key).ravel()):
            if not 1 <= number <= len(classes):
                raise RunError(f"setid.mat lists image {number}, and imagelabels.mat has {len(classes)} labels")
            yield Label(f"jpg/image_{number:05d}.jpg", part, f"{int(classes[number - 1]):03d}")


def stanford_dogs(sources: Sources) -> Iterator[Label]:
    """Stanford Dogs (Khosla et al., 2011): file_list and labels in train_list.mat and test_list.mat (its README)."""
    folders: dict[int, str] = {}
    for part, text in zip(("train", "test"), sources.read("train_list.mat", "test_list.mat"), strict=True):
        files, labels = (_array(text, f"{part}_list.mat", key).ravel() for key in ("file_list", "labels"))
        if len(files) != len(labels):
            raise RunError(f"{part}_list.mat holds {len(files)} files and {len(labels)} labels")
        for file, label in zip((str(file.item()) for file in files), map(int, labels), strict=True):
            folder = file.partition("/")[0]
            if folders.setdefault(label, folder) != folder:
                raise RunError(f"{part}_list.mat gives label {label} to {file} and to images of {folders[label]}")
            yield Label(f"Images/{file}", part, folder)


def isic(sources: Sources) -> Iterator[Label]:
    """ISIC 2018 task 3, its training part (Codella et al., 2019), by one of two tables.

    ISIC2018_Task3_Training_GroundTruth.csv has a column a class, one of them 1; HAM10000_metadata has the class in dx.
    """
    table, rows = _table(sources, r"ISIC2018_Task3_Training_GroundTruth\.csv|HAM10000_metadata(\.csv)?")
    for row in rows:
        if table.startswith("HAM"):
            image, hot = row["image_id"], [row["dx"].upper()]
        else:
            image, hot = row.pop("image"), [name for name, value in row.items() if value not in ("0", "0.0")]
        if len(hot) != 1:
            raise RunError(f"{table}: {image} has {len(hot)} classes instead of one")
        yield Label(f"{image}.jpg", "", hot[0])


def chestx(sources: Sources) -> Iterator[Label]:
    """ChestX-ray8 (Wang et al., CVPR 2017) as cross-domain few-shot learning uses it (CDFSL, Guo et al., ECCV 2020).

    Images with exactly one finding, if it is one of seven classes; the released code of CDFSL leaves out pneumonia.
    """
    _, rows = _table(sources, r"Data_Entry_2017.*\.csv")
    for row in rows:
        if row["Finding Labels"] in _CHESTX:
            yield Label(row["Image Index"], "", row["Finding Labels"])


def _lines(text: bytes) -> list[str]:
    return [line.strip() for line in text.decode("utf-8-sig", errors="surrogateescape").splitlines() if line.strip()]


def _pairs(text: bytes) -> Iterator[tuple[str, str]]:
    for line in _lines(text):
        first, _, rest = line.partition(" ")
        yield first, rest.strip()


def _array(content: bytes, name: str, key: str) -> Any:
    from scipy.io import loadmat

    try:
        return loadmat(io.BytesIO(content))[key]
    except KeyError:
        raise RunError(f"{name} holds no variable {key}") from None
    except (ValueError, TypeError, OSError, NotImplementedError) as error:
        raise RunError(f"{name} is no readable .mat file ({error}): download it again") from None


def _table(sources: Sources, pattern: str) -> tuple[str, Iterator[dict[str, str]]]:
    """The name and the rows of the first file whose name fits."""
    for member, content in sources.members():
        if re.fullmatch(pattern, name := member.rpartition("/")[2]):
            rows = csv.DictReader(io.StringIO(content.read().decode("utf-8-sig")))
            columns = set(rows.fieldnames or ())
            if not any(known <= columns for known in _COLUMNS):
                raise RunError(f"{name} has other columns than the official table ({', '.join(sorted(columns))})")
            return name, rows
    raise UsageError(f"none of {sources} is or holds the table of labels: name it too")
