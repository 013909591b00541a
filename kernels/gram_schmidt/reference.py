"""The two halves of a Gram-Schmidt step in plain torch, on any device: their meaning, and what runs on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def dots(rows: Tensor, vector: Tensor) -> Tensor:
    """See `seal_fast.kernels.gram_schmidt.dots`."""
    found = torch.zeros(len(rows), dtype=torch.float64, device=vector.device)
    for part in slabs(rows):
        found += rows[:, part].double() @ vector[part]
    return found


def subtract_(vector: Tensor, rows: Tensor, coefficients: Tensor) -> None:
    """See `seal_fast.kernels.gram_schmidt.subtract_`."""
    for part in slabs(rows):
        vector[part] -= coefficients @ rows[:, part].double()


def slabs(rows: Tensor) -> Iterator[slice]:
    """Slices of the columns [k, n] that are converted to float64 at a time: on a CPU they stay in its cache."""
    entries = 1 << 20 if rows.device.type == "cpu" else 1 << 26
    width = max(1, entries // max(1, len(rows)))
    for start in range(0, rows.shape[1], width):
        yield slice(start, min(rows.shape[1], start + width))
