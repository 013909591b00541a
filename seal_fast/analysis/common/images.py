"""Images for an analysis: in sorted path order, neither cropped nor flipped at random, in batches on the device."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.data import ImageSet, Split, make_input, open_images
from seal_fast.utils.errors import UsageError

_log = logging.getLogger("seal_fast")


def own_images(subject: TrainedNetwork, data: str | None = None, on_bad_image: str = "error") -> ImageSet:
    """The data set that a network is asked about in its own classes: `data`, or what its run was trained on.

    With `on_bad_image="skip"` empty images are left out and listed in `skipped`; see `readable` for damaged ones.

    Raises:
        UsageError: nothing says which, or its classes are not as many as the network's.
    """
    source = data or (subject.config and subject.config.data)
    if not source:
        raise UsageError(f"{subject.weights} does not say which images it was trained on: name them with --data")
    images = open_images(source, on_bad_image)
    if len(images.classes) != subject.num_classes:
        raise UsageError(
            f"--data {source} has {len(images.classes)} classes and {subject.name} tells {subject.num_classes} apart: "
            "choose the data that it was trained on"
        )
    if images.native_size not in (None, subject.image_size):
        _log.warning(
            "%s: images of %d pixels a side, scaled to the network's %d",
            images.name,
            images.native_size,
            subject.image_size,
        )
    return images


def readable(images: ImageSet) -> ImageSet:
    """The set without the images that cannot be decoded, which are added to `skipped`; it decodes every image once.

    Raises:
        RunError: 256 images in a row are damaged.
    """
    kept = {}
    skipped = list(images.skipped)
    for part in ("train", "val"):
        split = getattr(images, part)
        source = make_input(
            replace(images, val=split), "stream", batch_size=1, eval_batch_size=256, on_bad_image="skip"
        )
        with contextlib.closing(source):
            good = torch.cat([batch.valid for batch in source.evaluation() if batch.valid is not None])
        rows = good[: len(split)].nonzero().squeeze(1).tolist()
        if len(rows) < len(split):
            kept[part] = split.take(rows)
            skipped += [name for name in source.skipped if name not in skipped]
    return replace(images, **kept, skipped=tuple(skipped)) if kept else images


def choose(images: ImageSet, split: Literal["train", "val"], count: int | None = None, spread: bool = False) -> Split:
    """The first `count` images of a split, or with `spread` as many evenly spaced ones; all of them for None.

    Raises:
        UsageError: the split has fewer.
    """
    chosen = getattr(images, split)
    if count is None:
        return chosen
    if not 1 <= count <= len(chosen):
        raise UsageError(f"{count} images asked for: the {split} split of {images.name} has {len(chosen)}")
    return chosen.spread(count) if spread else chosen.take(range(count))


def batches(
    images: ImageSet,
    split: Split,
    *,
    image_size: int,
    batch_size: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Decodes a split batch by batch, in its order; memory holds a few batches whatever its size.

    Yields:
        Images [B, 3, S, S], channels-last and normalised as in training, and labels int64 [B]; the last batch may be
        smaller.

    Raises:
        RunError: an image cannot be decoded; it is named.
    """
    source = make_input(
        replace(images, val=split),
        "stream",
        image_size=image_size,
        batch_size=1,
        eval_batch_size=batch_size,
        dtype=dtype,
        device=device,
        threads=threads,
    )
    left = len(split)
    with contextlib.closing(source):
        for batch in source.evaluation():
            count = min(left, batch_size)
            left -= count
            yield batch.images[:count], batch.labels[:count]
