"""Image files to uint8 pixels, by DALI: on the GPU's own decoder there, on CPU threads without one."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seal_fast.data import headers
from seal_fast.data.random_resized_crop import COUNTDOWN, window

_DEPTH = 3  # batches that DALI holds: one handed out, one decoded, one in work


class Request(NamedTuple):
    """A batch to decode.

    Attributes:
        images: bytes of files [size], or grey pixels [h, w, 1]; uint8.
        draws: random numbers of the random resized crops, float32 [n, tries, 4], if there are any.
        faults: places of images that are not to be decoded, with what they are; the decoder fills it.
    """

    images: list[np.ndarray]
    draws: np.ndarray | None = None
    faults: dict[int, str] = {}


class Decoded(NamedTuple):
    """A decoded batch.

    Attributes:
        pixels: uint8 [n, size, size, channels] on the decoder's device.
        bad: places in the batch that cannot be decoded, with the reason as the end of a sentence; their pixels are 0.
    """

    pixels: Tensor
    bad: dict[int, str] = {}


@dataclass(frozen=True)
class Decoder:
    """Decodes batches to one size.

    An image of another size has its shorter side resized (triangular filter, antialiased) and its middle cut out; an
    image of this size keeps its bits. With random crops a random part of the image is resized to the whole instead.

    Attributes:
        size: height and width of the result, in pixels.
        encoded: whether the images are files (three channels come out) or grey pixels (one).
        device: where the pixels come to lie.
        threads: of DALI, for what runs on the CPU.
        batch_size: of the largest batch.
        exact: whether images are expected to have this size already; a wrong guess costs one batch.
        random_crops: whether requests carry draws for random resized crops.
    """

    size: int
    encoded: bool
    device: torch.device
    threads: int
    batch_size: int
    exact: bool = False
    random_crops: bool = False

    def __call__(self, requests: Iterable[Request]) -> Iterator[Decoded]:
        """Decode lazily, a few batches ahead of what is asked for."""
        source: Iterator[Request] = map(_examined, requests) if self.encoded else iter(requests)
        waiting: deque[Request] = deque()

        def feed() -> Iterator[Any]:
            for request in source:
                waiting.append(request)
                yield (request.images, list(request.draws)) if request.draws is not None else request.images

        decoder = self
        while True:
            pipe = decoder._pipeline(feed())
            while True:
                try:
                    (output,) = pipe.run()
                except StopIteration:
                    return
                except RuntimeError:
                    break  # DALI fails the whole batch without naming the image, and the pipeline with it
                if not output.is_dense_tensor() or tuple(output.shape()[0][:2]) != (self.size, self.size):
                    # Not of this size after all: from here on everything passes the resize.
                    decoder = replace(decoder, exact=False)
                    source = itertools.chain(tuple(waiting), source)
                    waiting.clear()
                    break
                waiting.popleft()
                yield Decoded(decoder._own(output))
            while waiting:
                yield decoder._one_by_one(waiting.popleft())

    def _pipeline(self, source: Iterator[Any], depth: int = _DEPTH) -> Any:
        dali, fn, math, types = _dali()
        device_id = None
        if self.device.type == "cuda":
            device_id = torch.cuda.current_device() if self.device.index is None else self.device.index
        resize: dict[str, Any] = {"interp_type": types.INTERP_LINEAR, "antialias": True}
        pipe = dali.Pipeline(
            batch_size=self.batch_size, num_threads=self.threads, device_id=device_id, prefetch_queue_depth=depth
        )
        with pipe:
            if not self.encoded:
                pixels = fn.external_source(source, layout="HWC")
                pixels = pixels if device_id is None else pixels.gpu()
            else:
                if self.random_crops:
                    files, draw = fn.external_source(
                        source, num_outputs=2, dtype=[types.UINT8, types.FLOAT], ndim=[1, 2]
                    )
                else:
                    files, draw = fn.external_source(source, dtype=types.UINT8, ndim=1), None
                # DALI 2.4 crashes the process where a decoder meets an unreadable header in a batch of good ones.
                # Reading the shapes first, in an operator that the decoder waits for, makes that an error.
                shape = fn.cast(fn.peek_image_shape(files, adjust_orientation=False), dtype=types.FLOAT)
                anchor, extent = types.Constant([0.0, 0.0]), shape[0:2]
                if draw is not None:
                    ops = SimpleNamespace(**vars(math), largest=fn.reductions.max, total=fn.reductions.sum)
                    ops.countdown = types.Constant(COUNTDOWN)
                    box = window(shape[0], shape[1], (draw[:, 0], draw[:, 1], draw[:, 2], draw[:, 3]), ops)
                    anchor, extent = fn.stack(*box[:2]), fn.stack(*box[2:])
                pixels = fn.decoders.image_slice(
                    files,
                    anchor,
                    extent,
                    device="cpu" if device_id is None else "mixed",
                    output_type=types.RGB,
                    adjust_orientation=False,
                    axis_names="HW",
                    normalized_anchor=False,
                    normalized_shape=False,
                )
            if self.random_crops:
                pixels = fn.resize(pixels, size=(self.size, self.size), **resize)
            elif not self.exact:
                pixels = fn.resize(pixels, resize_shorter=self.size, **resize)
                pixels = fn.crop(pixels, crop=(self.size, self.size))
            pipe.set_outputs(pixels)
        pipe.build()
        return pipe

    def _own(self, output: Any) -> Tensor:
        """DALI's output as a tensor that stays valid for as long as it is referred to."""
        tensor = torch.from_dlpack(output.as_tensor())
        if self.device.type != "cuda":
            return tensor  # refers to the output, whose memory DALI does not use again before that is gone
        # DALI does not know torch's streams: the copy must be complete before DALI writes to its memory again.
        copy = tensor.clone()
        torch.cuda.current_stream(self.device).synchronize()
        return copy

    def _one_by_one(self, request: Request) -> Decoded:
        """Decode each image on its own, to find those that cannot be decoded."""
        shape = len(request.images), self.size, self.size, 3 if self.encoded else 1
        decoded = Decoded(torch.zeros(shape, dtype=torch.uint8, device=self.device), {})
        single = replace(self, exact=False, batch_size=1)
        items: list[Any] = [[image] for image in request.images]
        if request.draws is not None:
            items = list(zip(items, request.draws[:, None], strict=True))
        pipe = None
        for place in range(len(items)):
            pipe = pipe or single._pipeline(iter(items[place:]), depth=1)
            try:
                decoded.pixels[place] = single._own(pipe.run()[0])[0]
            except RuntimeError:
                decoded.bad[place] = request.faults.get(place) or headers.unread(request.images[place])
                pipe = None  # lost with the image
        return decoded


def _examined(request: Request) -> Request:
    """The request as DALI can take it: without metadata that it trips over, and with nothing that it would misread."""
    images = [headers.without_metadata(image) for image in request.images]
    faults = {place: reason for place, image in enumerate(images) if (reason := headers.misread(image))}
    for place in faults:
        images[place] = images[place][:0]  # which DALI refuses
    return request._replace(images=images, faults=faults)


def _dali() -> tuple[Any, Any, Any, Any]:
    """DALI, its operators, arithmetic and types; Any, because most of its names exist only at run time."""
    import nvidia.dali as dali
    from nvidia.dali import fn, math, types

    return dali, fn, math, types
