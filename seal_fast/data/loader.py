"""`make_input`: from a data set to batches."""

from __future__ import annotations

from typing import Any

import torch

from seal_fast.data.dataset import ImageSet
from seal_fast.data.inputs import Input
from seal_fast.data.resident import Resident
from seal_fast.data.stream import Stream
from seal_fast.utils.cpus import cpu_count
from seal_fast.utils.errors import UsageError
from seal_fast.utils.memory import free_bytes

_SIZE_OF_MIXED_SETS = 64
_RESIZED_CROP_FROM = 128  # pixels; below, random crops of a padded image are the custom
_MOST_THREADS = 16


def make_input(
    dataset: ImageSet,
    kind: str = "auto",
    *,
    image_size: int | None = None,
    augmentation: str = "auto",
    pad: int | None = None,
    threads: int | None = None,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> Input:
    """Build the input of a run; the resident one is loaded on return.

    Args:
        dataset: from `open_images` or `select`.
        kind: "resident"; "stream"; or "auto": resident if both splits, decoded, fit into half of the free memory, and
            no resized crops are asked for.
        image_size: height and width of the batches, in pixels; None is the images' own, or 64 where they differ.
        augmentation: "none" feeds training images as they are evaluated; "pad-crop" crops them from a black border and
            "resized-crop" cuts a random window and resizes it, both with flips where the set allows them; "auto" is
            resized-crop for files at 128 pixels and more, else pad-crop.
        pad: black border before the random crop, in pixels; None is a sixteenth of the size (4 at 64).
        threads: of DALI; None is one a core, 16 at most.
        device: where the batches are needed.
        settings: the other attributes of `Input`; `batch_size` and `eval_batch_size` must be given.

    Raises:
        UsageError: a value that cannot be, such as a batch larger than the training set.
        RunError: an image cannot be decoded (resident; the stream raises when it comes to it).
    """
    device = torch.device(device)
    batch_size = settings["batch_size"]
    for flag, value, least in (
        ("--batch-size", batch_size, 1),
        ("--eval-batch-size", settings["eval_batch_size"], 1),
        ("--image-size", image_size, 1),
        ("--threads", threads, 1),
        ("pad", pad, 0),
    ):
        if value is not None and value < least:
            raise UsageError(f"{flag} is {value}: it must be at least {least}")
    if kind not in ("auto", "resident", "stream"):
        raise UsageError(f"--input is {kind!r}: choose auto, resident or stream")
    resident = kind == "resident" or kind == "auto" and fits(dataset, image_size, device, augmentation)
    size, augmentation = _resolve(dataset, image_size, augmentation)
    if resident and augmentation == "resized-crop":
        raise UsageError(
            f"--input resident keeps images of {size} pixels, and --augmentation resized-crop cuts the files anew in "
            "every epoch: choose --input stream or --augmentation pad-crop"
        )
    needed, free = _resident_bytes(dataset, size), free_bytes(device)
    if resident and needed > free:
        raise UsageError(
            f"--input resident needs {needed / 2**30:.1f} GiB for the decoded images, and {free / 2**30:.1f} GiB are "
            "free: choose --input stream"
        )
    made = (Resident if resident else Stream)(
        dataset=dataset,
        image_size=size,
        augmentation=augmentation,
        pad=0 if augmentation == "resized-crop" else size // 16 if pad is None else pad,
        threads=threads or min(_MOST_THREADS, cpu_count()),
        device=device,
        **settings,
    )
    if made.train_size % batch_size == 1 and batch_size > 1:
        made.notes.append("the last training batch would hold a single image, too few for BatchNorm: dropped")
    return made


def fits(
    dataset: ImageSet, image_size: int | None, device: torch.device, augmentation: str = "auto", sharing: int = 1
) -> bool:
    """Whether `auto` is the resident input: no resized crops, and half of the free memory holds the images.

    `sharing` is the number of processes that share that memory; the other arguments are as for `make_input`.
    """
    size, augmentation = _resolve(dataset, image_size, augmentation)
    needed = _resident_bytes(dataset, size) * sharing
    return augmentation != "resized-crop" and needed <= free_bytes(device) // 2


def _resident_bytes(dataset: ImageSet, size: int) -> int:
    """Bytes that all splits take, decoded; the same images count once."""
    counts = {id(split.source): len(split) for split in (dataset.train, dataset.val, *dataset.others.values())}
    return sum(counts.values()) * size * size * (3 if dataset.train.source.encoded else 1)


def _resolve(dataset: ImageSet, image_size: int | None, augmentation: str) -> tuple[int, str]:
    """The size of the batches, and what augmentation `auto` stands for at this size."""
    encoded, size = dataset.train.source.encoded, image_size or dataset.native_size or _SIZE_OF_MIXED_SETS
    if augmentation not in ("auto", "none", "pad-crop", "resized-crop"):
        raise UsageError(f"--augmentation is {augmentation!r}: choose auto, none, pad-crop or resized-crop")
    if augmentation == "resized-crop" and not encoded:
        raise UsageError("--augmentation resized-crop cuts image files, and this set holds pixels: choose pad-crop")
    if augmentation == "auto":
        augmentation = "resized-crop" if encoded and size >= _RESIZED_CROP_FROM else "pad-crop"
    return size, augmentation
