"""`make_input`: from a data set to batches."""

from __future__ import annotations

import os

import torch

from seal_fast.data.dataset import ImageSet
from seal_fast.data.inputs import Input, Settings
from seal_fast.data.memory import free_bytes
from seal_fast.data.micro_batch import Shard
from seal_fast.data.resident import Resident
from seal_fast.data.stream import Stream
from seal_fast.kernels.backend import Backend
from seal_fast.utils.errors import UsageError

_SIZE_OF_MIXED_SETS = 64
_RESIZED_CROP_FROM = 128  # pixels; below, random crops of a padded image are the custom
_MOST_THREADS = 16


def make_input(
    dataset: ImageSet,
    kind: str = "auto",
    *,
    image_size: int | None = None,
    batch_size: int,
    eval_batch_size: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    augmentation: str = "auto",
    shuffle: bool = True,
    pad: int | None = None,
    limit_train: int | None = None,
    threads: int | None = None,
    on_bad_image: str = "error",
    backend: Backend = "auto",
    shard: Shard = Shard(),  # noqa: B008 (frozen)
) -> Input:
    """Build the input of a run; the resident one is loaded on return.

    Args:
        dataset: from `open_images`.
        kind: "resident"; "stream"; or "auto": resident if both splits, decoded, fit into half of the free memory, and
            no resized crops are asked for.
        image_size: height and width of the batches, in pixels; None is the images' own, or 64 where they differ.
        batch_size: images a training step, over all processes.
        eval_batch_size: images an evaluation step, over all processes.
        dtype: of the images: bfloat16, float16, float32 or float64.
        device: where the batches are needed.
        seed: of the order and the augmentation.
        augmentation: "none" feeds training images as they are evaluated; "pad-crop" crops them from a black border and
            "resized-crop" cuts a random window and resizes it, both with flips where the set allows them; "auto" is
            resized-crop for files at 128 pixels and more, else pad-crop.
        shuffle: a new order each epoch; False feeds in sorted path order.
        pad: black border before the random crop, in pixels; None is a sixteenth of the size (4 at 64).
        limit_train: use this many training images only, evenly spaced over the sorted path order.
        threads: of DALI; None is one a core, 16 at most.
        on_bad_image: "error", or "skip": leave out what cannot be decoded.
        backend: of the augmentation, see `seal_fast.kernels.backend.resolve`.
        shard: which part of each step this process computes.

    Raises:
        UsageError: a value that cannot be, such as a batch larger than the training set.
        RunError: an image cannot be decoded (resident; the stream raises when it comes to it).
    """
    device = torch.device(device)
    for flag, value, least in (
        ("--batch-size", batch_size, 1),
        ("--eval-batch-size", eval_batch_size, 1),
        ("--image-size", image_size, 1),
        ("--limit-train", limit_train, 1),
        ("--threads", threads, 1),
        ("pad", pad, 0),
    ):
        if value is not None and value < least:
            raise UsageError(f"{flag} is {value}: it must be at least {least}")
    if kind not in ("auto", "resident", "stream"):
        raise UsageError(f"--input is {kind!r}: choose auto, resident or stream")
    if on_bad_image not in ("error", "skip"):
        raise UsageError(f"--on-bad-image is {on_bad_image!r}: choose error or skip")
    size = image_size or dataset.native_size or _SIZE_OF_MIXED_SETS
    augmentation = _augmentation(dataset, size, augmentation)
    if kind == "resident" and augmentation == "resized-crop":
        raise UsageError(
            f"--input resident keeps images of {size} pixels, and --augmentation resized-crop cuts the files anew in "
            "every epoch: choose --input stream or --augmentation pad-crop"
        )
    settings = Settings(
        image_size=size,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        dtype=dtype,
        device=device,
        seed=seed,
        augmentation=augmentation,
        shuffle=shuffle,
        pad=size // 16 if pad is None else pad,
        threads=threads or min(_MOST_THREADS, len(os.sched_getaffinity(0))),
        on_bad_image=on_bad_image,
        backend=backend,
        shard=shard,
    )
    train = dataset.train.spread(limit_train)
    needed, free = resident_bytes(dataset, image_size, limit_train), free_bytes(device)
    if kind == "resident" and needed > free:
        raise UsageError(
            f"--input resident needs {needed / 2**30:.1f} GiB for the decoded images, and {free / 2**30:.1f} GiB are "
            "free: choose --input stream"
        )
    resident = kind == "resident" or kind == "auto" and fits(dataset, image_size, limit_train, device, augmentation)
    made = (Resident if resident else Stream)(dataset, train, settings)
    if limit_train is not None and limit_train < len(dataset.train):
        made.notes.append(
            f"training on {limit_train} of {len(dataset.train)} images, evenly spaced over the sorted paths"
        )
        if absent := sorted(set(range(len(dataset.classes))) - set(train.labels.tolist())):
            made.notes.append(
                f"--limit-train {limit_train} leaves {len(absent)} of {len(dataset.classes)} classes without "
                f"a training image, {dataset.classes[absent[0]]} first"
            )
    if made.train_size % batch_size == 1 and batch_size > 1:
        made.notes.append("the last training batch would hold a single image, too few for BatchNorm: dropped")
    return made


def resident_bytes(dataset: ImageSet, image_size: int | None = None, limit_train: int | None = None) -> int:
    """Bytes that both splits take, decoded; arguments as for `make_input`."""
    train, size = dataset.train.spread(limit_train), image_size or dataset.native_size or _SIZE_OF_MIXED_SETS
    return (len(train) + len(dataset.val)) * size * size * (3 if train.source.encoded else 1)


def fits(
    dataset: ImageSet,
    image_size: int | None,
    limit_train: int | None,
    device: torch.device,
    augmentation: str = "auto",
    sharing: int = 1,
) -> bool:
    """Whether `auto` is the resident input: no resized crops, and half of the free memory holds the images.

    `sharing` is the number of processes that share that memory; the other arguments are as for `make_input`.
    """
    size = image_size or dataset.native_size or _SIZE_OF_MIXED_SETS
    if _augmentation(dataset, size, augmentation) == "resized-crop":
        return False
    return resident_bytes(dataset, image_size, limit_train) * sharing <= free_bytes(device) // 2


def _augmentation(dataset: ImageSet, size: int, asked: str) -> str:
    """What `auto` stands for, from the size of the batches alone.

    Raises:
        UsageError: the choice is unknown, or no file is there to cut windows from.
    """
    encoded = dataset.train.source.encoded
    if asked not in ("auto", "none", "pad-crop", "resized-crop"):
        raise UsageError(f"--augmentation is {asked!r}: choose auto, none, pad-crop or resized-crop")
    if asked == "resized-crop" and not encoded:
        raise UsageError("--augmentation resized-crop cuts image files, and this set holds pixels: choose pad-crop")
    if asked == "auto":
        return "resized-crop" if encoded and size >= _RESIZED_CROP_FROM else "pad-crop"
    return asked
