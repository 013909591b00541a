"""Fixed images in sorted path order, neither cropped nor flipped at random, in batches on a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from seal_fast.data.dataset import ImageSet
from seal_fast.data.loader import make_input
from seal_fast.data.split import Split
from seal_fast.utils.errors import UsageError


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
    images: ImageSet, split: Split, *, image_size: int, batch_size: int, **settings: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Decode a split batch by batch, in its order; memory holds a few batches whatever its size.

    `settings` are dtype, device and threads, as for `make_input`.

    Yields:
        Images [B, 3, S, S], channels-last and normalised as in training, and labels int64 [B]; the last batch may be
        smaller. Nothing for a split without images.

    Raises:
        RunError: an image cannot be decoded; it is named.
    """
    if not len(split):
        return
    only = replace(images, val=split)
    source = make_input(only, "stream", image_size=image_size, batch_size=1, eval_batch_size=batch_size, **settings)
    with contextlib.closing(source):
        for start, batch in zip(range(0, len(split), batch_size), source.evaluation(), strict=True):
            count = len(split) - start
            yield batch.images[:count], batch.labels[:count]
