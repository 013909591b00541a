"""The images of an analysis: the data set of a network's own classes, the targets, and which images can be read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seal_fast.analysis.common.command import Analysis
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.processes import check_alike, gathered, rows_of
from seal_fast.data import ImageSet, Split, make_input, open_images, select
from seal_fast.data.batches import batches, choose
from seal_fast.utils.errors import UsageError

_log = logging.getLogger("seal_fast")


class ImageAnalysis(Analysis):
    """An analysis on images of the network's own classes, which its processes share."""

    def __init__(self) -> None:
        super().__init__()
        self._opened: tuple[Any, ImageSet] | None = None  # the last data set, and what it is of

    def training_images(
        self, network: TrainedNetwork, count: int | None, flag: str, spread: bool = True
    ) -> tuple[ImageSet, Split]:
        """The data set of the network's own classes, and `count` of its training images, as `flag` asks.

        Raises:
            UsageError: see `own_images` and `choose`, or the processes do not have the same images.
        """
        world, flags, config = self.world, self.flags, network.config
        selection = config and (config.data, config.selection())
        key = selection, network.num_classes, network.image_size
        if self._opened is None or self._opened[0] != key:
            self._opened = key, world.run_on_all(lambda: own_images(network, flags.data, flags.on_bad_image))
        images = self._opened[1]
        check_alike(world, network, images)
        chosen = world.run_on_all(lambda: choose(images, "train", count, spread=spread))
        if world.is_main:
            note_absent_classes(images, chosen, flag)
        return images, chosen

    def share(self, split: Split) -> Split:
        """The images of a split that this process reads."""
        return split.take(rows_of(len(split), self.flags.batch_size, self.world.rank, self.world.size))

    def gathered(self, part: Tensor, split: Split) -> Tensor:
        """The results of all processes for their `share`, in the order of the split: [n, ...], on the host."""
        return gathered(part, len(split), self.flags.batch_size, self.world)

    def batches(
        self, network: TrainedNetwork, images: ImageSet, split: Split, **settings: Any
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A split as the network reads it; see `seal_fast.data.batches.batches`."""
        given = {"batch_size": self.flags.batch_size, "threads": self.flags.threads}
        given |= {"device": self.runtime.device, "dtype": self.runtime.dtype}
        return batches(images, split, image_size=network.image_size, **(given | settings))

    def result(
        self, network: TrainedNetwork, images: ImageSet, protocol: Mapping[str, Any], /, **content: Any
    ) -> dict[str, Any]:
        """What `measure` returns: the `protocol` with what says which images these are, and the content."""
        shown = {"data": images.name, "data_sha256": images.fingerprint, "image_size": network.image_size}
        skipped = {images.name: list(images.skipped)}
        return {"protocol": {**shown, **protocol}, "skipped_images": skipped, **content}


def own_images(network: TrainedNetwork, data: str | None = None, on_bad_image: str = "error") -> ImageSet:
    """The data set of the network's own classes, `data` or the run's, with the images that its run was trained on.

    With `on_bad_image="skip"` it holds no image that cannot be read, and lists those in `skipped`.

    Raises:
        UsageError: nothing names a data set, its number of classes is not the network's, or the network has no fc.
        RunError: the images are damaged, or a class has no image that can be read.
    """
    if not network.num_classes:
        raise UsageError(f"{network.weights} has no fc, so it has no prediction and no loss")
    source = data or (network.config and network.config.data)
    if not source:
        raise UsageError(f"{network.weights} does not say which images it was trained on: name them with --data")
    images = open_images(source, on_bad_image)
    if len(images.classes) != network.num_classes:
        raise UsageError(
            f"--data {source} has {len(images.classes)} classes and {network.name} tells {network.num_classes} apart: "
            "choose the data that it was trained on"
        )
    images = select(images, **network.config.selection()) if network.config else images
    _note(images, network.image_size)
    return readable(images) if on_bad_image == "skip" else images


def open_targets(
    data: Sequence[str], image_size: int, on_bad_image: str = "error", split_seed: int | None = None
) -> dict[str, ImageSet]:
    """The target data sets by name, to be shown to the networks at `image_size` pixels a side.

    With `on_bad_image="skip"` they hold no image that cannot be read, and list those in `skipped`. `split_seed` splits
    class folders without train/ and val/.

    Raises:
        UsageError: a target does not exist or has one class, or two have the same name.
        RunError: a target is damaged, or a class of it has no image.
    """
    targets: dict[str, ImageSet] = {}
    for source in data:
        images = open_images(source, on_bad_image, split_seed)
        if on_bad_image == "skip":
            images = readable(images)
        if images.name in targets:
            raise UsageError(f"--data {source}: another target is called {images.name} too; rename one of them")
        if len(images.classes) < 2:
            only = ", ".join(images.classes)
            raise UsageError(f"--data {source} has one class ({only}): a classifier needs at least two")
        for note in images.notes:
            _log.warning("%s: %s", images.name, note)
        _note(images, image_size)
        targets[images.name] = images
    return targets


def readable(images: ImageSet) -> ImageSet:
    """The set without the images that cannot be decoded, which are added to `skipped`; it decodes every image once.

    Raises:
        RunError: 256 images in a row are damaged, or a class is left without images.
    """
    splits = {"train": images.train, "val": images.val, **images.others}
    skipped = list(images.skipped)
    for part, split in splits.items():
        input = make_input(replace(images, val=split), "stream", batch_size=1, eval_batch_size=256, on_bad_image="skip")
        with contextlib.closing(input):
            good = torch.cat([batch.valid for batch in input.evaluation() if batch.valid is not None])
        rows = good[: len(split)].nonzero().squeeze(1).tolist()
        if len(rows) < len(split):
            splits[part] = split.take(rows)
            skipped += [name for name in input.skipped if name not in skipped]
    if len(skipped) == len(images.skipped):
        return images
    train, val = splits.pop("train"), splits.pop("val")
    return replace(images, train=train, val=val, others=splits, skipped=tuple(skipped))


def _note(images: ImageSet, image_size: int) -> None:
    if images.native_size not in (None, image_size):
        _log.warning(
            "%s: images of %d pixels a side, scaled to the network's %d", images.name, images.native_size, image_size
        )


def note_absent_classes(images: ImageSet, chosen: Split, what: str) -> None:
    """Log how many classes have no image among those chosen for `what`."""
    absent = np.setdiff1d(np.arange(len(images.classes)), chosen.labels)
    if len(absent):
        names = ", ".join(images.classes[label] for label in absent[:3])
        _log.warning("%s: %d classes have no image in %s (%s first)", images.name, len(absent), what, names)
