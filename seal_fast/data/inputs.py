"""What both inputs share: sizes, the order of images, batches, bad images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seal_fast.data.dataset import ImageSet
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
    """

    images: Tensor
    labels: Tensor
    valid: Tensor | None = None
    micro_batch: MicroBatch = MicroBatch()


@dataclass(frozen=True)
class Settings:
    """How images are fed; see `make_input` for each."""

    image_size: int
    batch_size: int
    eval_batch_size: int
    dtype: torch.dtype
    device: torch.device
    seed: int
    augmentation: str
    shuffle: bool
    pad: int
    threads: int
    on_bad_image: str
    backend: Backend
    shard: Shard = Shard()


class Input:
    """Feeds batches as a pure function of (seed, generation, epoch, step); base of `Resident` and `Stream`.

    Attributes:
        kind: "resident" or "stream".
        image_size: height and width of the batches, in pixels.
        augmentation: "none", "pad-crop" or "resized-crop".
        batch_size: images a training step, over all processes and micro-batches; the last of an epoch may be smaller.
        micro_batch_size: images of a full micro-batch: what this process computes at once.
        eval_batch_size: of all evaluation batches of this process.
        num_classes: of the data set.
        out: where full training batches are written instead of into new tensors, if given.
        wait_seconds: host seconds spent waiting for batches; set it to 0 to count anew.
        notes: sentences about what was left out or assumed.
    """

    kind = ""

    def __init__(self, dataset: ImageSet, train: Split, settings: Settings):
        self._settings = settings
        self._dataset = dataset
        self._splits = {"train": train, "val": dataset.val}
        self._bad: dict[str, None] = {}
        self._left: dict[Split, np.ndarray] = {}  # usable images a class
        self.image_size, self.num_classes = settings.image_size, len(dataset.classes)
        self.augmentation = settings.augmentation
        self.batch_size, self.micro_batch_size = (
            settings.batch_size,
            settings.shard.micro_batch_size(settings.batch_size),
        )
        self.eval_batch_size = -(-settings.eval_batch_size // settings.shard.processes)
        self.out: Tensor | None = None
        self.wait_seconds = 0.0
        self.notes = list(dataset.notes)
        self._check_batch_size()

    @property
    def train_size(self) -> int:
        """Number of training images that are fed."""
        return len(self._splits["train"])

    @property
    def val_size(self) -> int:
        """Number of held-out images."""
        return len(self._splits["val"])

    @property
    def skipped(self) -> list[str]:
        """Names of the images found bad so far and left out."""
        return [*self._dataset.skipped, *self._bad]

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; a smaller last step counts, unless it holds a single image."""
        full, rest = divmod(self.train_size, self.batch_size)
        return full + (rest > 1 or rest == self.batch_size)

    def train(self, generation: int, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This process's micro-batches of an epoch, from `first_step` on; nothing before is read or decoded.

        One whose `micro_batch.last` is set ends a step.
        """
        return self._timed(self._train(generation, epoch, self._micro_batches(first_step)))

    def evaluation(self, split: str = "val") -> Iterator[Batch]:
        """This process's images of a split in sorted order, neither cropped nor flipped at random.

        All batches have one size. Over all processes each image counts once.
        """
        return self._timed(self._evaluation(split))

    def buffers(self) -> tuple[Tensor, Tensor]:
        """Memory for the images and the labels of a full training batch."""
        settings, shape = self._settings, (self.micro_batch_size, 3, self.image_size, self.image_size)
        images = torch.empty(shape, dtype=settings.dtype, device=settings.device, memory_format=torch.channels_last)
        return images, torch.empty(self.micro_batch_size, dtype=torch.int64, device=settings.device)

    def close(self) -> None:
        """Free memory and end threads; the input cannot be used again."""
        self._splits = {}

    def _train(self, generation: int, epoch: int, micro_batches: list[MicroBatch]) -> Iterator[Batch]:
        raise NotImplementedError

    def _evaluation(self, split: str) -> Iterator[Batch]:
        raise NotImplementedError

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _micro_batches(self, first_step: int) -> list[MicroBatch]:
        size = self.batch_size
        return [
            micro_batch
            for step in range(first_step, self.steps_per_epoch)
            for micro_batch in shard_step(step * size, min((step + 1) * size, self.train_size), self._settings.shard)
        ]

    def _order(self, generation: int, epoch: int, device: torch.device | str) -> Tensor:
        if self._settings.shuffle:
            return philox.permutation(self.train_size, self._settings.seed, generation, epoch, device)
        return torch.arange(self.train_size, device=device)

    def _augment(
        self, pixels: Tensor, index: Tensor, train: bool, *, pad: int, generation=0, epoch=0, position=0
    ) -> Tensor:
        settings = self._settings
        return augment(
            pixels,
            index,
            size=self.image_size,
            mean=self._dataset.mean,
            std=self._dataset.std,
            dtype=settings.dtype,
            seed=settings.seed,
            generation=generation,
            epoch=epoch,
            position=position,
            pad=pad,
            flip=self._dataset.mirror,
            train=train and settings.augmentation != "none",
            backend=settings.backend,
            out=self.out if train and len(index) == self.micro_batch_size else None,
        )

    def _report_bad(self, split: Split, rows: np.ndarray, reasons: Iterable[str] = ()) -> None:
        """Take note of images that cannot be decoded; `reasons` end a sentence each.

        Raises:
            RunError: unless bad images are skipped, or if a class has none left.
        """
        if self._settings.on_bad_image != "skip":
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
                    f"class {self._dataset.classes[label]} has no readable image, such as "
                    f"{split.source.where(fresh[0])}: accuracy would be measured on other classes than those learned"
                )

    def _check_batch_size(self) -> None:
        """Refuse a batch larger than the training set.

        Raises:
            UsageError: naming the flag.
        """
        if self.batch_size > self.train_size:
            raise UsageError(
                f"--batch-size {self.batch_size} is larger than the training set of {self.train_size} images: "
                f"choose at most {self.train_size}"
            )
