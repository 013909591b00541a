"""The stream input: DALI decodes every epoch anew, in its own threads, a few batches ahead of the training step."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch import Tensor

from seal_fast.data import random_resized_crop
from seal_fast.data.decode import Request
from seal_fast.data.inputs import Input, Loaded
from seal_fast.data.prefetch import prefetch
from seal_fast.data.split import Split
from seal_fast.utils.errors import RunError


class Stream(Input):
    """Feeds from the files; memory holds a few batches, whatever the size of the data set.

    Without random resized crops the batches are those of the resident input, to the last bit. With bad images skipped,
    a batch keeps its size: the nearest good image of the same batch stands in for a bad one.
    """

    kind = "stream"

    def __post_init__(self) -> None:
        """Check the sizes; nothing is decoded."""
        super().__post_init__()
        self._rows_on = torch.device("cpu")
        self._running: list[Generator[Loaded]] = []

    def close(self) -> None:
        """End the threads of unfinished epochs."""
        for batches in self._running:
            batches.close()
        super().close()

    def _load(
        self, split: str, batches: list[Tensor], streams: list[tuple[int, int, int, int]] | None = None
    ) -> Iterator[Loaded]:
        running = prefetch(self._decoded(self._splits[split], [rows.numpy() for rows in batches], streams))
        self._running.append(running)
        try:
            for loaded in running:
                if self.device.type == "cuda":
                    for tensor in loaded:  # made on the side stream: not to be freed before this stream has read it
                        tensor.record_stream(torch.cuda.current_stream(self.device))
                yield loaded
        finally:
            running.close()
            self._running.remove(running)

    def _decoded(
        self, split: Split, batches: list[np.ndarray], streams: list[tuple[int, int, int, int]] | None
    ) -> Generator[Loaded]:
        """Decoded batches on the device; runs in the input's thread, on a CUDA stream of its own where there is one."""
        crops = streams if streams and self.augmentation == "resized-crop" else None
        decoder = self._decoder(split, max(map(len, batches), default=1), random_crops=crops is not None)
        requests = (
            Request(
                [split.source.read(row) for row in rows],
                random_resized_crop.draws(*crops[number], len(rows)) if crops else None,
            )
            for number, rows in enumerate(batches)
        )
        side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        with torch.cuda.stream(side) if side else contextlib.nullcontext():
            for rows, (pixels, bad) in zip(batches, decoder(requests), strict=True):
                places = np.arange(len(rows) if streams else self.eval_batch_size)
                valid = places < len(rows)
                places = places.clip(max=len(rows) - 1)
                if bad:
                    self._report_bad(split, rows[list(bad)], bad.values())
                    places, valid = _stand_in(places, valid, set(bad))
                host = places, split.labels[rows[places]], valid
                yield Loaded(pixels, *(torch.from_numpy(array).to(self.device) for array in host))


def _stand_in(places: np.ndarray, valid: np.ndarray, bad: set[int]) -> tuple[np.ndarray, np.ndarray]:
    """The nearest good place for each bad one, and the mask without the bad ones."""
    good = np.array(sorted(set(places.tolist()) - bad))
    if not len(good):
        raise RunError("every image of a batch is corrupt or truncated: nothing is left to feed")
    nearest = good[np.abs(places[:, None] - good).argmin(axis=1)]
    return nearest, valid & (nearest == places)
