"""The stream input: DALI decodes every epoch anew, in its own threads, a few batches ahead of the training step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seal_fast.data import random_resized_crop
from seal_fast.data.dataset import ImageSet
from seal_fast.data.decode import Decoder, Request
from seal_fast.data.inputs import Batch, Input, Settings
from seal_fast.data.micro_batch import MicroBatch
from seal_fast.data.prefetch import prefetch
from seal_fast.data.split import Split
from seal_fast.utils.errors import RunError


class _Ready(NamedTuple):
    pixels: Tensor  # uint8 [n, S, S, C]
    index: Tensor  # int64: which of the pixels make up the batch
    labels: Tensor
    valid: Tensor


class Stream(Input):
    """Feeds from the files; memory holds a few batches, whatever the size of the data set.

    Without random resized crops the batches are those of the resident input, to the last bit. With bad images skipped,
    a batch keeps its size: the nearest good image of the same batch stands in for a bad one.
    """

    kind = "stream"

    def __init__(self, dataset: ImageSet, train: Split, settings: Settings):
        super().__init__(dataset, train, settings)
        self._random_crops = settings.augmentation == "resized-crop"
        self._exact = dataset.native_size == settings.image_size
        self._running: list[Iterator[_Ready]] = []

    def close(self) -> None:
        """End the threads of unfinished epochs."""
        for batches in self._running:
            batches.close()  # type: ignore[attr-defined]
        super().close()

    def _train(self, generation: int, epoch: int, micro_batches: list[MicroBatch]) -> Iterator[Batch]:
        split, settings = self._splits["train"], self._settings
        order = self._order(generation, epoch, "cpu").numpy()
        batches = [order[micro_batch.start : micro_batch.stop] for micro_batch in micro_batches]
        keys = (
            [
                (settings.seed, generation, epoch, micro_batch.start, micro_batch.stop - micro_batch.start)
                for micro_batch in micro_batches
            ]
            if self._random_crops
            else None
        )
        pad = 0 if self._random_crops else settings.pad
        with self._prefetched(self._decoded(split, batches, max(map(len, batches), default=1), keys)) as ready:
            for micro_batch, (pixels, index, labels, _) in zip(micro_batches, ready, strict=True):
                images = self._augment(
                    pixels, index, True, pad=pad, generation=generation, epoch=epoch, position=micro_batch.start
                )
                yield Batch(images, labels, micro_batch=micro_batch)

    def _evaluation(self, split: str) -> Iterator[Batch]:
        chosen, size = self._splits[split], self.eval_batch_size
        first, end = self._settings.shard.slice(0, len(chosen))
        batches = [np.arange(start, min(start + size, end)) for start in range(first, end, size)]
        with self._prefetched(self._decoded(chosen, batches, size, fill_up=True)) as ready:
            for pixels, index, labels, valid in ready:
                yield Batch(self._augment(pixels, index, False, pad=0), labels, valid)

    def _decoded(
        self,
        split: Split,
        batches: list[np.ndarray],
        size: int,
        keys: list[tuple[int, int, int, int, int]] | None = None,
        fill_up: bool = False,
    ) -> Iterator[_Ready]:
        """Decoded batches on the device; runs in the input's thread, on a CUDA stream of its own where there is one."""
        settings, device, source = self._settings, self._settings.device, split.source
        decoder = Decoder(
            self.image_size, source.encoded, device, settings.threads, size, self._exact, random_crops=keys is not None
        )
        requests = (
            Request([source.read(row) for row in rows], random_resized_crop.draws(*keys[step]) if keys else None)
            for step, rows in enumerate(batches)
        )
        side = torch.cuda.Stream(device) if device.type == "cuda" else None
        with torch.cuda.stream(side) if side else contextlib.nullcontext():
            for rows, (pixels, bad) in zip(batches, decoder(requests), strict=True):
                places = np.arange(size if fill_up else len(rows)).clip(max=len(rows) - 1)
                valid = np.arange(len(places)) < len(rows)
                if bad:
                    self._report_bad(split, rows[list(bad)], bad.values())
                    places, valid = _stand_in(places, valid, set(bad))
                host = places, split.labels[rows[places]], valid
                yield _Ready(pixels, *(torch.from_numpy(array).to(device) for array in host))

    @contextlib.contextmanager
    def _prefetched(self, items: Iterator[_Ready]) -> Iterator[Iterator[_Ready]]:
        running = prefetch(items)
        self._running.append(running)
        try:
            yield (self._handed_over(ready) for ready in running)
        finally:
            running.close()  # type: ignore[attr-defined]
            self._running.remove(running)

    def _handed_over(self, ready: _Ready) -> _Ready:
        if self._settings.device.type == "cuda":
            for tensor in ready:  # made on the side stream: not to be freed before this stream has read it
                tensor.record_stream(torch.cuda.current_stream(self._settings.device))
        return ready


def _stand_in(places: np.ndarray, valid: np.ndarray, bad: set[int]) -> tuple[np.ndarray, np.ndarray]:
    """The nearest good place for each bad one, and the mask without the bad ones."""
    good = np.array(sorted(set(places.tolist()) - bad))
    if not len(good):
        raise RunError("every image of a batch is corrupt or truncated: nothing is left to feed")
    nearest = good[np.abs(places[:, None] - good).argmin(axis=1)]
    return nearest, valid & (nearest == places)
