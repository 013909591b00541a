"""`augment`: gather, pad, crop, flip, normalise and cast a batch of uint8 images; on a GPU in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seal_fast.kernels import philox
from seal_fast.kernels.augment import reference
from seal_fast.kernels.augment.reference import Settings
from seal_fast.kernels.backend import resolve

_DTYPES = torch.bfloat16, torch.float16, torch.float32, torch.float64


def augment(
    images: Tensor,
    index: Tensor,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    seed: int = 0,
    generation: int = 0,
    epoch: int = 0,
    position: int = 0,
    pad: int = 0,
    flip: bool = False,
    train: bool = True,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """One channels-last batch from the resident set.

    In training the image is padded with black (before normalising, as torchvision's RandomCrop does), cropped at a
    uniformly random offset and flipped left to right with probability 1/2. In evaluation the crop is central, and
    `pad` and `flip` are ignored. Sample b draws from the random stream (seed, generation, epoch, position + b), so the
    result depends neither on how an epoch is cut into batches nor on the backend. A value is
    `pixel * 1/(255 std) - mean/std`, computed in float32 (float64 for a float64 batch).

    Args:
        images: uint8 [N, H, W, C], contiguous; C is 3, or 1 for grey, which is written to all three channels.
        index: int64 [B], rows of `images`; one outside [0, N) raises on the CPU and fills its image with NaN on a GPU.
        size: height and width of the result, in pixels.
        mean: of each of the three channels, where a white pixel is 1.
        std: of each of the three channels, same unit.
        dtype: of the result: bfloat16, float16, float32 or float64.
        seed: of the run, in [0, 2**63).
        generation: in [0, 2**32).
        epoch: of the generation, in [0, 2**32).
        position: place in the epoch of the batch's first sample, in [0, 2**48 - B].
        pad: black border on every side, in pixels.
        flip: whether to flip half of the images.
        train: whether to draw crops and flips at all.
        out: written and returned if given: [B, 3, size, size], channels-last, of `dtype`, on the device of `images`.
        backend: "auto", "reference" or "triton".

    Returns:
        [B, 3, size, size] of `dtype`, channels-last.

    Raises:
        ValueError: an argument of wrong type, shape or range.
        IndexError: a row outside the images (CPU).
        BackendUnavailable: the backend asked for cannot run here.
    """
    _check(images, index, size, mean, std, dtype, position, pad, train)
    philox.check_stream(seed, generation, epoch)
    shape = (index.shape[0], 3, size, size)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)
    else:
        _check_out(out, shape, dtype, images.device)
    scale = [1 / (255 * s) for s in std]
    bias = [-m / s for m, s in zip(mean, std, strict=True)]
    torch.ops.seal_fast.augment(
        images, index, out, scale, bias, pad, flip, train, seed, generation, epoch, position, backend
    )
    return out


def _check(
    images: Tensor,
    index: Tensor,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    position: int,
    pad: int,
    train: bool,
) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"images must be uint8 [N, H, W, 1 or 3] without empty dimensions, not {images.dtype} {list(images.shape)}"
        )
    if not images.is_contiguous():
        raise ValueError("images must be contiguous in [N, H, W, C] order: call .contiguous() once, before training")
    if index.dtype != torch.int64 or index.dim() != 1 or not index.is_contiguous():
        raise ValueError(f"index must be a contiguous vector of int64, not {index.dtype} {list(index.shape)}")
    if index.device != images.device:
        raise ValueError(f"index is on {index.device} and images on {images.device}: move the index to the images")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be bfloat16, float16, float32 or float64, not {dtype}")
    numbers = all(abs(m) < math.inf for m in mean) and all(0 < s < math.inf for s in std)
    if len(mean) != 3 or len(std) != 3 or not numbers:
        raise ValueError(f"mean and std must be three finite numbers each, std positive: not {mean} and {std}")
    if pad < 0 or not 1 <= size <= min(images.shape[1], images.shape[2]) + 2 * pad * train:
        raise ValueError(
            f"size {size} with pad {pad if train else 0} does not fit images of {images.shape[1]} x {images.shape[2]}: "
            "choose pad >= 0 and 1 <= size <= the smaller side + 2 * pad (evaluation crops and never pads)"
        )
    if not 0 <= position <= (1 << 48) - index.shape[0]:
        raise ValueError(f"position is {position}: it must lie in [0, 2**48 - batch]")


def _check_out(out: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if out.shape != shape or out.dtype != dtype or out.device != device:
        raise ValueError(
            f"out must be {dtype} {list(shape)} on {device}, not {out.dtype} {list(out.shape)} on {out.device}"
        )
    if not out.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("out must be channels-last: allocate it with memory_format=torch.channels_last")


# The op writes `out` and returns nothing. The choice of the backend cannot be traced, so it is made inside.
_library = torch.library.Library("seal_fast", "FRAGMENT")
_library.define(
    "augment(Tensor images, Tensor index, Tensor(a!) out, float[] scale, float[] bias, int pad, bool flip, bool train, "
    "SymInt seed, SymInt generation, SymInt epoch, SymInt position, str backend) -> ()"
)


def _run(images: Tensor, index: Tensor, out: Tensor, *settings_and_backend) -> None:
    *settings, backend = settings_and_backend
    run = reference.augment
    if resolve("augment", backend, images.device) == "triton":
        from seal_fast.kernels.augment.triton import augment as launch

        run = launch
    run(images, index, out, Settings(*settings))


_library.impl("augment", _run, "CompositeExplicitAutograd")
torch.library.register_fake("seal_fast::augment", lambda *arguments: None, lib=_library)
