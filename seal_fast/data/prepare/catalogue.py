"""The data sets that `prepare` makes from archives: what to download, from where, and what must come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from seal_fast.data.prepare import labels
from seal_fast.data.prepare.cifar import cifar
from seal_fast.data.prepare.images import Label, labelled
from seal_fast.data.prepare.sources import Sources

Images = Callable[[Sources, list[str]], Iterator[tuple[str, bytes]]]


class Official(NamedTuple):
    """A data set.

    Attributes:
        files: to be named on the command line.
        url: where they are.
        classes: number of classes.
        images: number of images of each part, or of "" for all where there is no official split; ChestX-ray8 has no
            published number of images with one finding.
        read: paths in the .tar and content, from the archives; takes a list for its notes.
    """

    files: str
    url: str
    classes: int
    images: dict[str, int]
    read: Images


def _by(read: Callable[[Sources], Iterable[Label]]) -> Images:
    return lambda sources, notes: labelled(sources, read(sources), notes)


OFFICIAL = {
    "flowers102": Official(
        "102flowers.tgz imagelabels.mat setid.mat",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        102,
        {"train": 1020, "valid": 1020, "test": 6149},
        _by(labels.flowers102),
    ),
    "cub200": Official(
        "CUB_200_2011.tgz",
        "https://data.caltech.edu/records/65de6-vp158",
        200,
        {"train": 5994, "test": 5794},
        _by(labels.cub200),
    ),
    "aircraft": Official(
        "fgvc-aircraft-2013b.tar.gz",
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        100,
        {"train": 3334, "valid": 3333, "test": 3333},
        _by(labels.aircraft),
    ),
    "mit67": Official(
        "indoorCVPR_09.tar TrainImages.txt TestImages.txt",
        "https://web.mit.edu/torralba/www/indoor.html",
        67,
        {"train": 5360, "test": 1340},
        _by(labels.mit67),
    ),
    "stanford-dogs": Official(
        "images.tar lists.tar",
        "http://vision.stanford.edu/aditya86/ImageNetDogs/",
        120,
        {"train": 12000, "test": 8580},
        _by(labels.stanford_dogs),
    ),
    "cifar10": Official(
        "cifar-10-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        10,
        {"train": 50000, "test": 10000},
        cifar,
    ),
    "cifar100": Official(
        "cifar-100-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        100,
        {"train": 50000, "test": 10000},
        cifar,
    ),
    "eurosat": Official("EuroSAT.zip", "https://github.com/phelber/EuroSAT", 10, {"": 27000}, _by(labels.eurosat)),
    "isic": Official(
        "ISIC2018_Task3_Training_Input.zip ISIC2018_Task3_Training_GroundTruth.zip",
        "https://challenge.isic-archive.com/data/#2018",
        7,
        {"": 10015},
        _by(labels.isic),
    ),
    "chestx": Official(
        "images_001.tar.gz ... images_012.tar.gz Data_Entry_2017.csv",
        "https://nihcc.app.box.com/v/ChestXray-NIHCC",
        7,
        {},
        _by(labels.chestx),
    ),
    "cropdisease": Official(
        "plant-disease.zip",
        "https://www.kaggle.com/datasets/saroz014/plant-disease",
        38,
        {"train": 43456, "test": 10849},
        _by(labels.cropdisease),
    ),
}
