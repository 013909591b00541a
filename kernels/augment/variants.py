"""The specialisations of `augment`'s Triton kernel: every type of batch, and the cases that change its accesses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from seal_fast.kernels.variant import Variant

_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
# Tiny-ImageNet's 64 x 64; the values of mean and std change no instruction.
_SIZE, _ODD_SIZE, _PAD, _SCALE, _BIAS = 64, 33, 4, (1 / 58.4, 1 / 57.1, 1 / 57.4), (-2.1, -2.0, -1.8)
_BYTEWISE = "loads of single bytes, as a crop starts anywhere and a flip runs backwards (a warp's bytes lie together)"
_ODD = f"stores of single values, as images of {_ODD_SIZE} x {_ODD_SIZE} are not aligned; {_BYTEWISE}"


def variants() -> Iterator[Variant]:
    """All of them; imports triton."""
    for dtype in _BYTES:
        yield _variant(dtype, dtype)
    yield _variant("bf16-eval", "bf16", train=False)
    yield _variant("bf16-grey", "bf16", channels=1)
    yield _variant("bf16-odd-size", "bf16", size=_ODD_SIZE, narrow=_ODD, store_bits=16)


def _variant(
    name: str,
    dtype: str,
    size: int = _SIZE,
    channels: int = 3,
    train: bool = True,
    narrow: str = _BYTEWISE,
    store_bits: int = 128,
) -> Variant:
    from seal_fast.kernels.augment import triton as launcher

    constants: dict[str, Any] = launcher.constants((1, _SIZE, _SIZE, channels), size, _SCALE, _BIAS, _PAD, True, train)
    stream = ("count", "seed", "generation", "epoch", "position")
    return Variant(
        op="augment",
        name=name,
        kernel=launcher.augment_kernel,
        types={"images": "*u8", "index": "*i64", "out": f"*{dtype}", **dict.fromkeys(stream, "i64")},
        constants=constants,
        warps=launcher.WARPS,
        elements=constants["TILE"],
        bytes_read=channels / 3,
        bytes_written=_BYTES[dtype],
        readers=3 // channels,
        load_bits=8,
        store_bits=store_bits,
        narrow=narrow,
    )
