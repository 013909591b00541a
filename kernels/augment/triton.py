"""The Triton kernel of `augment`: one program writes one tile of one image."""

# A kernel is written in Triton's language, which only looks like Python to a type checker.
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false, reportAssignmentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from seal_fast.kernels.augment.reference import Settings

# Values that a program writes. Sixteen for each of its 128 threads pay for the ten rounds of Philox that every thread
# repeats, and a batch of 128 images of 64 x 64 still makes 1536 programs for an A100's 108 multiprocessors.
_TILE = 2048
WARPS = 4


@triton.jit(do_not_specialize=["count", "seed", "generation", "epoch", "position"])
def augment_kernel(
    images,
    index,
    out,
    count: tl.int64,
    seed: tl.int64,
    generation: tl.int64,
    epoch: tl.int64,
    position: tl.int64,
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    FLIP: tl.constexpr,
    TRAIN: tl.constexpr,
    TILE: tl.constexpr,
):
    """Writes values [tile * TILE, (tile + 1) * TILE) of one sample's flat NHWC image.

    Seed, generation, epoch and position are 64-bit scalars that Triton does not specialise on; what is fixed for a run
    is a constant, so that divisions become multiplications.

    A thread stores eight neighbouring bf16 values (four of float32) in one 128-bit access wherever an image is a
    multiple of 16 bytes. Loads are single bytes and cannot be wider: a crop starts at any byte, a flip runs backwards,
    and a row may end within a thread's eight values. That costs no traffic: a warp's bytes lie side by side.
    """
    ELEMENTS: tl.constexpr = 3 * SIZE * SIZE
    TILES: tl.constexpr = (ELEMENTS + TILE - 1) // TILE
    program = tl.program_id(0)
    sample = (program // TILES).to(tl.int64)
    offset = program % TILES * TILE + tl.arange(0, TILE)
    if TRAIN:
        place = position.to(tl.int64) + sample
        low, high = (place & 0xFFFFFFFF).to(tl.uint32), (place >> 32).to(tl.uint32)
        w0, w1, w2, _ = tl.philox(seed.to(tl.int64), low, epoch.to(tl.uint32), generation.to(tl.uint32), high)
        top = tl.umulhi(w0, HEIGHT + 2 * PAD - SIZE + 1).to(tl.int32) - PAD
        left = tl.umulhi(w1, WIDTH + 2 * PAD - SIZE + 1).to(tl.int32) - PAD
        flipped = (w2 >> 31 != 0) & FLIP
    else:
        top, left, flipped = (HEIGHT - SIZE) // 2, (WIDTH - SIZE) // 2, False
    pixel, channel = offset // 3, offset % 3
    x = pixel % SIZE
    row = top + pixel // SIZE
    column = left + tl.where(flipped, SIZE - 1 - x, x)
    image = tl.load(index + sample)
    known = (image >= 0) & (image < count)
    image = tl.where(known, image, 0)
    # As unsigned numbers, what lies before the image is beyond its end.
    inside = (row.to(tl.uint32) < HEIGHT) & (column.to(tl.uint32) < WIDTH) & (offset < ELEMENTS)
    byte = (row * WIDTH + column) * CHANNELS
    if CHANNELS == 3:
        byte += channel
    values = tl.load(images + image * (HEIGHT * WIDTH * CHANNELS) + byte, mask=inside, other=0)
    compute: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    s0, s1, s2 = tl.full([], SCALE[0], compute), tl.full([], SCALE[1], compute), tl.full([], SCALE[2], compute)
    nan = tl.full([], float("nan"), compute)
    b0, b1, b2 = tl.full([], BIAS[0], compute), tl.full([], BIAS[1], compute), tl.full([], BIAS[2], compute)
    # A row that does not exist cannot raise from here: NaN makes the loss say so.
    b0, b1, b2 = tl.where(known, b0, nan), tl.where(known, b1, nan), tl.where(known, b2, nan)
    scale = tl.where(channel == 0, s0, tl.where(channel == 1, s1, s2))
    bias = tl.where(channel == 0, b0, tl.where(channel == 1, b1, b2))
    values = values.to(compute) * scale + bias
    tl.store(out + sample * ELEMENTS + offset, values.to(out.dtype.element_ty), mask=offset < ELEMENTS)


def constants(
    shape: Sequence[int], size: int, scale: Sequence[float], bias: Sequence[float], pad: int, flip: bool, train: bool
) -> dict[str, object]:
    """The kernel's compile-time arguments for images of `shape` [N, H, W, C]."""
    return {
        "SCALE": tuple(scale),
        "BIAS": tuple(bias),
        "HEIGHT": shape[1],
        "WIDTH": shape[2],
        "CHANNELS": shape[3],
        "SIZE": size,
        "PAD": pad,
        "FLIP": flip,
        "TRAIN": train,
        "TILE": _TILE,
    }


def augment(images: Tensor, index: Tensor, out: Tensor, settings: Settings) -> None:
    """Launches the kernel; arguments as in `reference.augment`."""
    size, batch = out.shape[-1], index.shape[0]
    grid = (batch * triton.cdiv(3 * size * size, _TILE),)
    fixed = constants(images.shape, size, *settings[:5])
    with torch.cuda.device_of(images):
        augment_kernel[grid](images, index, out, images.shape[0], *settings[5:], **fixed, num_warps=WARPS)
