"""What a segment table implies, worked out once per table: its checks, and its tiles for the Triton kernel.

Tables are recognised by their contents (a few kilobytes), so a caller may keep, copy or rebuild them as it likes.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from seal_fast.kernels.annealed_sgd.layout import BEGIN, GRAD, GROUP, LENGTH, OFFSET


def elements_needed(segments: Tensor, numel: int, groups: int, grads: int) -> tuple[int, ...]:
    """How many elements each gradient must have; ValueError if `segments` is no table, or points outside the rest."""
    if segments.device.type != "cpu" or segments.dtype != torch.int64 or segments.dim() != 2 or segments.shape[1] != 5:
        raise ValueError("annealed_sgd_: segments must be an int64 CPU tensor [parameters, 5]; use segment_table()")
    return _elements_needed(contents(segments), numel, groups, grads)


def contents(segments: Tensor) -> bytes:
    """The table's bytes, row after row."""
    return segments.numpy().tobytes()


def rows(table: bytes) -> np.ndarray:
    """The table again, int64 [parameters, 5]."""
    return np.frombuffer(table, dtype=np.int64).reshape(-1, 5)


@functools.lru_cache(maxsize=64)
def _elements_needed(table: bytes, numel: int, groups: int, grads: int) -> tuple[int, ...]:
    segments = rows(table)
    ordered = segments[segments[:, BEGIN].argsort(kind="stable")]
    inside = (
        (segments >= 0).all()
        and (segments[:, BEGIN] + segments[:, LENGTH] <= numel).all()
        and (segments[:, GROUP] < groups).all()
        and (segments[:, GRAD] < grads).all()
        and (ordered[:-1, BEGIN] + ordered[:-1, LENGTH] <= ordered[1:, BEGIN]).all()
    )
    if not inside:
        raise ValueError(
            "annealed_sgd_: segments overlap, or point outside the "
            f"{numel} elements, {groups} groups or {grads} gradients given"
        )
    needed = np.zeros(grads, dtype=np.int64)
    np.maximum.at(needed, segments[:, GRAD], segments[:, OFFSET] + segments[:, LENGTH])
    return tuple(needed.tolist())


@functools.lru_cache(maxsize=64)
def tiles(table: bytes, block: int, device: torch.device) -> Tensor:
    """The segments cut into pieces of at most `block` elements, on the device; same columns, one row a program."""
    segments = rows(table)
    counts = -(-segments[:, LENGTH] // block)
    cut = np.repeat(segments, counts, axis=0)
    start = (np.arange(len(cut)) - np.repeat(np.cumsum(counts) - counts, counts)) * block
    cut[:, BEGIN] += start
    cut[:, OFFSET] += start
    cut[:, LENGTH] = np.minimum(cut[:, LENGTH] - start, block)
    return torch.from_numpy(cut).to(device)


@functools.lru_cache(maxsize=64)
def aligned(table: bytes, elements: int) -> bool:
    """Whether every segment begins at a multiple of `elements`, in the flat buffer and in its gradient."""
    return bool((rows(table)[:, (BEGIN, OFFSET)] % elements == 0).all())
