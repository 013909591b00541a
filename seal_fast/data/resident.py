"""The resident input: every image decoded once into a uint8 NHWC tensor on the device; an epoch is a permutation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from seal_fast.data import shared
from seal_fast.data.dataset import ImageSet
from seal_fast.data.decode import Decoder, Request
from seal_fast.data.inputs import Batch, Input, Settings
from seal_fast.data.micro_batch import MicroBatch
from seal_fast.data.split import Split

_LOAD_BATCH = 32  # as fast as larger ones, and DALI keeps several times a batch in memory


class Resident(Input):
    """Feeds from memory: one tensor of pixels and one of labels per split."""

    kind = "resident"

    def __init__(self, dataset: ImageSet, train: Split, settings: Settings):
        """Decode both splits.

        Raises:
            RunError: an image cannot be decoded.
            UsageError: bad images were skipped, and those left do not fill a batch.
        """
        super().__init__(dataset, train, settings)
        self._pixels: dict[str, Tensor] = {}
        self._labels: dict[str, Tensor] = {}
        exact = dataset.native_size == settings.image_size
        for name, split in self._splits.items():
            self._pixels[name], kept = self._load(split, exact)
            self._splits[name] = kept
            self._labels[name] = torch.from_numpy(kept.labels).to(settings.device)
        self._check_batch_size()

    def close(self) -> None:
        """Free the memory."""
        super().close()
        self._pixels, self._labels = {}, {}

    def _load(self, split: Split, exact: bool) -> tuple[Tensor, Split]:
        settings, size, source = self._settings, self.image_size, split.source
        shape = (len(split), size, size, 3 if source.encoded else 1)
        if place := shared.folder():
            key = self._shared_key(split, shape)
            pixels, good = shared.mapped(
                place, key, shape, lambda rows: self._decode(split, exact, torch.from_numpy(rows))
            )
            pixels = pixels.to(settings.device)
        else:
            pixels = torch.empty(shape, dtype=torch.uint8, device=settings.device)
            good = self._decode(split, exact, pixels)
            pixels = pixels[: int(good.sum())]
        bad = np.flatnonzero(~good)
        if len(bad):
            self._report_bad(split, bad)  # again where this process decoded, but for the first time where another did
        return pixels, split.take(np.flatnonzero(good)) if len(bad) else split

    def _decode(self, split: Split, exact: bool, pixels: Tensor) -> np.ndarray:
        """Decode into `pixels`, without gaps for bad images; returns which rows are good, bool [n]."""
        settings, source = self._settings, split.source
        decoder = Decoder(self.image_size, source.encoded, settings.device, settings.threads, _LOAD_BATCH, exact)
        starts = range(0, len(split), _LOAD_BATCH)
        requests = (
            Request([source.read(row) for row in range(start, min(start + _LOAD_BATCH, len(split)))])
            for start in starts
        )
        good = np.ones(len(split), bool)
        filled = 0
        for start, decoded in zip(starts, decoder(requests), strict=True):
            fresh = decoded.pixels
            if decoded.bad:
                bad = start + np.array(list(decoded.bad))
                self._report_bad(split, bad, decoded.bad.values())
                good[bad] = False
                fresh = fresh[torch.from_numpy(good[start : start + len(fresh)]).to(settings.device)]
            rows = pixels[filled : filled + len(fresh)]
            if settings.device.type == "cpu":
                # On one thread: torch's copy wakes threads that spin and take the cores from DALI's.
                np.copyto(rows.numpy(), fresh.numpy())
            else:
                rows.copy_(fresh)
            filled += len(fresh)
        return good

    def _shared_key(self, split: Split, shape: tuple[int, ...]) -> str:
        """All that the decoded pixels depend on; decoders of CPU and GPU differ in the last bit."""
        parameters = (
            f"1 {shape} {self._settings.device.type} {self._settings.on_bad_image} {version('nvidia-dali-cuda130')}"
        )
        return hashlib.sha256(parameters.encode() + split.digest()).hexdigest()[:32]

    def _train(self, generation: int, epoch: int, micro_batches: list[MicroBatch]) -> Iterator[Batch]:
        pixels, labels = self._pixels["train"], self._labels["train"]
        order = self._order(generation, epoch, self._settings.device)
        pad = self._settings.pad
        for micro_batch in micro_batches:
            index, position = order[micro_batch.start : micro_batch.stop], micro_batch.start
            images = self._augment(pixels, index, True, pad=pad, generation=generation, epoch=epoch, position=position)
            yield Batch(images, labels[index], micro_batch=micro_batch)

    def _evaluation(self, split: str) -> Iterator[Batch]:
        pixels, labels, size = self._pixels[split], self._labels[split], self.eval_batch_size
        place = torch.arange(size, device=self._settings.device)
        first, end = self._settings.shard.slice(0, len(pixels))
        for start in range(first, end, size):
            index = (place + start).clamp(max=end - 1)
            yield Batch(self._augment(pixels, index, False, pad=0), labels[index], place + start < end)
