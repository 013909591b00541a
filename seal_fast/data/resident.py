"""The resident input: every image decoded once into a uint8 NHWC tensor on the device; an epoch is a permutation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from seal_fast.data import shared
from seal_fast.data.decode import Request
from seal_fast.data.inputs import Input, Loaded
from seal_fast.data.split import Split

_LOAD_BATCH = 32  # as fast as larger ones, and DALI keeps several times a batch in memory


class Resident(Input):
    """Feeds from memory: one tensor of labels per split, and one of pixels that splits of the same images share."""

    kind = "resident"

    def __post_init__(self) -> None:
        """Decode both splits.

        Raises:
            RunError: an image cannot be decoded.
            UsageError: bad images were skipped, and those left do not fill a batch.
        """
        super().__post_init__()
        self._pixels: dict[str, tuple[Tensor, Tensor]] = {}
        decoded: dict[int, tuple[Tensor, np.ndarray]] = {}
        for name, split in self._splits.items():
            if id(split.source) not in decoded:
                decoded[id(split.source)] = self._decoded(split)
            pixels, good = decoded[id(split.source)]
            self._splits[name] = split = split if good.all() else split.take(np.flatnonzero(good))
            self._pixels[name] = pixels, torch.from_numpy(split.labels).to(self.device)
        self._check_batch_size()

    def close(self) -> None:
        """Free the memory."""
        super().close()
        self._pixels = {}

    def _decoded(self, split: Split) -> tuple[Tensor, np.ndarray]:
        """The good images of a split, and which they are, bool [n]."""
        shape = (len(split), self.image_size, self.image_size, 3 if split.source.encoded else 1)
        if not (place := shared.folder()):
            pixels = torch.empty(shape, dtype=torch.uint8, device=self.device)
            good = self._decode(split, pixels)
            return pixels[: int(good.sum())], good
        # All that the pixels depend on; decoders of CPU and GPU differ in the last bit.
        parameters = f"2 {shape} {self.device.type} {self.on_bad_image} {version('nvidia-dali-cuda130')}"
        key = hashlib.sha256(parameters.encode() + split.digest()).hexdigest()[:32]
        pixels, good = shared.mapped(place, key, shape, lambda rows: self._decode(split, torch.from_numpy(rows)))
        if not good.all():
            self._report_bad(split, np.flatnonzero(~good))  # another process may have decoded
        return pixels.to(self.device), good

    def _decode(self, split: Split, pixels: Tensor) -> np.ndarray:
        """Decode into `pixels`, without gaps for bad images; returns which rows are good, bool [n]."""
        starts = range(0, len(split), _LOAD_BATCH)
        requests = (
            Request([split.source.read(row) for row in range(start, min(start + _LOAD_BATCH, len(split)))])
            for start in starts
        )
        good = np.ones(len(split), bool)
        filled = 0
        for start, (fresh, bad) in zip(starts, self._decoder(split, _LOAD_BATCH)(requests), strict=True):
            if bad:
                rows = start + np.array(list(bad))
                self._report_bad(split, rows, bad.values())
                good[rows] = False
                fresh = fresh[torch.from_numpy(good[start : start + len(fresh)]).to(self.device)]
            target = pixels[filled : filled + len(fresh)]
            if self.device.type == "cpu":
                # On one thread: torch's copy wakes threads that spin and take the cores from DALI's.
                np.copyto(target.numpy(), fresh.numpy())
            else:
                target.copy_(fresh)
            filled += len(fresh)
        return good

    def _load(
        self, split: str, batches: list[Tensor], streams: list[tuple[int, int, int, int]] | None = None
    ) -> Iterator[Loaded]:
        pixels, labels = self._pixels[split]
        for rows in batches:
            places = torch.arange(len(rows) if streams else self.eval_batch_size, device=self.device)
            index = rows if streams else rows[places.clamp(max=len(rows) - 1)]
            yield Loaded(pixels, index, labels[index], places < len(rows))
