"""What both inputs share: sizes, the order of images, batches, bad images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seal_fast.data.dataset import ImageSet
from seal_fast.data.decode import Decoder
from seal_fast.data.micro_batch import MicroBatch, Shard, shard_step
from seal_fast.data.split import Split
from seal_fast.kernels import philox
from seal_fast.kernels.augment import augment
from seal_fast.kernels.backend import Backend
from seal_fast.utils.errors import RunError, UsageError


@dataclass(frozen=True)
class Batch:
    """A batch on the device.

    Attributes:
        images: [B, 3, S, S], channels-last, normalised, of the input's dtype.
        labels: int64 [B].
        valid: bool [B], False for what only fills up the last batch of an evaluation; None in training.
        micro_batch: in training, the positions of the epoch that these are.
        rows: in training, the images' rows in the training split, int64 [B], where `Input.numbered` asks for them; the
            number of training images for one that stands in for an unreadable one.
    """

    images: Tensor
    labels: Tensor
    valid: Tensor | None = None
    micro_batch: MicroBatch = MicroBatch()
    rows: Tensor | None = None


class Loaded(NamedTuple):
    """A batch before the augmentation.

    Attributes:
        pixels: uint8 [n, H, W, C].
        index: int64 [B], which of the pixels make up the batch.
        labels: int64 [B].
        valid: bool [B], as in `Batch`.
    """

    pixels: Tensor
    index: Tensor
    labels: Tensor
    valid: Tensor


@dataclass(eq=False, kw_only=True)
class Input:
    """Feeds batches as a pure function of (seed, generation, epoch, step); base of `Resident` and `Stream`.

    Attributes:
        dataset: names, statistics and images; bad ones are left out once they are known.
        image_size: height and width of the batches, in pixels.
        batch_size: images a training step, over all processes and micro-batches; the last of an epoch may be smaller.
        eval_batch_size: images an evaluation step: given over all processes, then those of this process.
        dtype: of the images: bfloat16, float16, float32 or float64.
        device: where the batches are needed.
        seed: of the order and the augmentation.
        augmentation: "none", "pad-crop" or "resized-crop".
        pad: black border before the random crop, in pixels.
        shuffle: a new order each epoch; False feeds in sorted path order.
        threads: of DALI.
        on_bad_image: "error", or "skip": leave out what cannot be decoded.
        backend: of the augmentation, see `seal_fast.kernels.backend.resolve`.
        shard: which part of each step this process computes.
        kind: "resident" or "stream".
        micro_batch_size: images that this process computes at once.
        num_classes: of the data set.
        out: where full training batches are written instead of into new tensors, if given.
        numbered: whether training batches come with their rows.
        wait_seconds: host seconds spent waiting for batches; set it to 0 to count anew.
        notes: sentences about what was left out or assumed.
    """

    dataset: ImageSet
    image_size: int
    batch_size: int
    eval_batch_size: int
    augmentation: str
    pad: int
    threads: int
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    seed: int = 0
    shuffle: bool = True
    on_bad_image: str = "error"
    backend: Backend = "auto"
    shard: Shard = Shard()
    kind = ""

    def __post_init__(self) -> None:
        self._splits = {"train": self.dataset.train, "val": self.dataset.val, **self.dataset.others}
        self._bad: dict[str, None] = {}
        self._left: dict[Split, np.ndarray] = {}  # usable images a class
        self._rows_on = self.device
        self.num_classes = len(self.dataset.classes)
        self.micro_batch_size = self.shard.micro_batch_size(self.batch_size)
        self.eval_batch_size = -(-self.eval_batch_size // self.shard.processes)
        self.out: Tensor | None = None
        self.numbered = False
        self.wait_seconds = 0.0
        self.notes = list(self.dataset.notes)
        self._check_batch_size()

    @property
    def train_size(self) -> int:
        """Number of training images that are fed."""
        return len(self._splits["train"])

    @property
    def train_labels(self) -> np.ndarray:
        """Labels of the training images that are fed, int64 [train_size]."""
        return self._splits["train"].labels

    @property
    def val_size(self) -> int:
        """Number of held-out images."""
        return len(self._splits["val"])

    @property
    def skipped(self) -> list[str]:
        """Names of the images found bad so far and left out."""
        return [*self.dataset.skipped, *self._bad]

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; a smaller last step counts, unless it holds a single image."""
        full, rest = divmod(self.train_size, self.batch_size)
        return full + (rest > 1 or rest == self.batch_size)

    def train(self, generation: int, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This process's micro-batches of an epoch, from `first_step` on; nothing before is read or decoded.

        One whose `micro_batch.last` is set ends a step.
        """
        return self._timed(self._train((self.seed, generation, epoch), first_step))

    def evaluation(self, split: str = "val") -> Iterator[Batch]:
        """This process's images of train, val or one of `dataset.others` in order, not cropped or flipped at random.

        All batches have one size. Over all processes each image counts once.
        """
        return self._timed(self._evaluation(split))

    def buffers(self, size: int) -> tuple[Tensor, Tensor]:
        """Memory for the images and the labels of a batch of so many."""
        shape = (size, 3, self.image_size, self.image_size)
        images = torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)
        return images, torch.empty(size, dtype=torch.int64, device=self.device)

    def close(self) -> None:
        """Free memory and end threads; the input cannot be used again."""
        self._splits = {}

    def _train(self, key: tuple[int, int, int], first_step: int) -> Iterator[Batch]:
        count, size = self.train_size, self.batch_size
        steps = ((step * size, min((step + 1) * size, count)) for step in range(first_step, self.steps_per_epoch))
        parts = [part for step in steps for part in shard_step(*step, self.shard)]
        order = (
            philox.permutation(count, *key, self._rows_on) if self.shuffle else torch.arange(count).to(self._rows_on)
        )
        streams = [(*key, part.start) for part in parts]
        rows = [order[part.start : part.stop] for part in parts]
        batches = self._load("train", rows, streams)
        for part, stream, own, (pixels, index, labels, valid) in zip(parts, streams, rows, batches, strict=True):
            numbers = torch.where(valid, own.to(self.device), count) if self.numbered else None
            yield Batch(self._augment(pixels, index, stream), labels, micro_batch=part, rows=numbers)

    def _evaluation(self, split: str) -> Iterator[Batch]:
        first, end = self.shard.slice(0, len(self._splits[split]))
        rows = torch.arange(first, end, device=self._rows_on).split(self.eval_batch_size) if end > first else ()
        for pixels, index, labels, valid in self._load(split, list(rows)):
            yield Batch(self._augment(pixels, index), labels, valid)

    def _load(
        self, split: str, batches: list[Tensor], streams: list[tuple[int, int, int, int]] | None = None
    ) -> Iterator[Loaded]:
        """Pixels of batches of rows.

        Without `streams`, (seed, generation, epoch, position) of each training batch, all have `eval_batch_size`.
        """
        raise NotImplementedError

    def _augment(self, pixels: Tensor, index: Tensor, stream: tuple[int, int, int, int] | None = None) -> Tensor:
        seed, generation, epoch, position = stream or (0, 0, 0, 0)
        return augment(
            pixels,
            index,
            size=self.image_size,
            mean=self.dataset.mean,
            std=self.dataset.std,
            dtype=self.dtype,
            seed=seed,
            generation=generation,
            epoch=epoch,
            position=position,
            pad=self.pad,
            flip=self.dataset.mirror,
            train=stream is not None and self.augmentation != "none",
            backend=self.backend,
            out=self.out if stream and len(index) == self.micro_batch_size else None,
        )

    def _decoder(self, split: Split, batch_size: int, random_crops: bool = False) -> Decoder:
        exact = self.dataset.native_size == self.image_size
        return Decoder(
            self.image_size, split.source.encoded, self.device, self.threads, batch_size, exact, random_crops
        )

    def _report_bad(self, split: Split, rows: np.ndarray, reasons: Iterable[str] = ()) -> None:
        """Take note of images that cannot be decoded; `reasons` end a sentence each.

        Raises:
            RunError: unless bad images are skipped, or if a class has none left.
        """
        if self.on_bad_image != "skip":
            raise RunError(
                f"{split.source.where(rows[0])} is {next(iter(reasons))}, or leave such images out with --on-bad-image "
                "skip"
            )
        fresh = [row for row in rows if split.names[row] not in self._bad]
        self._bad |= dict.fromkeys(split.names[row] for row in fresh)
        left = self._left.setdefault(split, np.bincount(split.labels))
        np.subtract.at(left, split.labels[fresh], 1)
        for label in split.labels[fresh]:
            if not left[label]:
                raise RunError(
                    f"class {self.dataset.classes[label]} has no readable image, such as "
                    f"{split.source.where(fresh[0])}: accuracy would be measured on other classes than those learned"
                )

    def _check_batch_size(self) -> None:
        """Refuse a batch larger than the training set."""
        if self.batch_size > self.train_size:
            raise UsageError(
                f"--batch-size {self.batch_size} is larger than the training set of {self.train_size} images: "
                f"choose at most {self.train_size}"
            )

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch
