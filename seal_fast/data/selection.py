"""Which images of a data set a run trains on, with which labels, and which it is evaluated on.

All draws depend on the data set alone, never on a run's seed: runs of different seeds train on the same images and
labels. Only names, labels and numbers of images are copied, no pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from seal_fast.data.dataset import ImageSet
from seal_fast.data.split import draw_by_class
from seal_fast.utils.errors import UsageError

_HOLDOUT, _PER_CLASS, _LABEL_NOISE = 1, 2, 3  # keys of the draws


def select(
    images: ImageSet,
    *,
    holdout: float = 0.0,
    per_class: int | None = None,
    limit_train: int | None = None,
    label_noise: float = 0.0,
) -> ImageSet:
    """The data set that a run sees; the steps are taken in the order of the arguments.

    Args:
        images: from `open_images`.
        holdout: this share of each class's training images becomes `val`; the former `val` is `others["test"]`.
        per_class: train on so many images a class.
        limit_train: train on so many images, evenly spaced over the sorted paths.
        label_noise: this share of the remaining training images, rounded to whole images, gets a wrong label, each of
            the wrong ones with equal probability (symmetric noise); `others["clean"]` are the training images with
            their true labels. Held-out images keep theirs.

    Raises:
        UsageError: a class has too few training images, or there is no wrong label to give.
    """
    train, val, others, notes = images.train, images.val, dict(images.others), images.notes
    if holdout:
        _require(images, 2, f"--holdout {holdout:g}")
        held = draw_by_class(train.labels, _HOLDOUT, lambda count: min(count - 1, max(1, round(holdout * count))))
        others["test"] = val
        train, val = (train.take(np.flatnonzero(rows)) for rows in (~held, held))
        notes += (
            f"best is chosen on {len(val)} held-out training images; the test set of {len(others['test'])} is looked "
            "at once a generation",
        )
        images = replace(images, train=train)
    if per_class is not None:
        _require(images, per_class, f"--per-class {per_class}")
        train = train.take(np.flatnonzero(draw_by_class(train.labels, _PER_CLASS, lambda _: per_class)))
        notes += (f"training on {per_class} images of each class",)
    if limit_train is not None and limit_train < len(train):
        notes += (f"training on {limit_train} of {len(train)} images, evenly spaced over the sorted paths",)
        train = train.spread(limit_train)
        if absent := sorted(set(range(len(images.classes))) - set(train.labels.tolist())):
            notes += (
                f"--limit-train {limit_train} leaves {len(absent)} of {len(images.classes)} classes without "
                f"a training image, {images.classes[absent[0]]} first",
            )
    if label_noise:
        others["clean"] = train
        train = replace(train, labels=_noisy(train.labels, len(images.classes), label_noise))
        wrong = int((train.labels != others["clean"].labels).sum())
        notes += (f"{wrong} of {len(train)} training images have a wrong label",)
    return replace(images, train=train, val=val, others=others, notes=notes)


def _noisy(labels: np.ndarray, classes: int, share: float) -> np.ndarray:
    if classes < 2:
        raise UsageError(f"--label-noise {share:g}: this data set has one class, so no label is wrong")
    order, offset = np.random.Philox(key=_LABEL_NOISE).random_raw((2, len(labels)))
    rows = np.argsort(order)[: round(share * len(labels))]
    noisy = labels.copy()
    noisy[rows] = (labels[rows] + 1 + (offset[rows] % (classes - 1)).astype(np.int64)) % classes
    return noisy


def _require(images: ImageSet, least: int, what: str) -> None:
    counts = np.bincount(images.train.labels, minlength=len(images.classes))
    if counts.min() < least:
        name = images.classes[int(counts.argmin())]
        raise UsageError(f"{what}: class {name} has {counts.min()} training images, and {least} are needed")
