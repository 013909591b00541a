"""Orthonormal vectors of any length, kept in the network's type, with dot products and sums in float64.

In float32 the dot product of 700,000 entries is wrong by a few 1e-5, which biases Ritz values by 2e-4; storing the
entries in float32 does nothing of the kind. So vectors are kept as they are multiplied, and read slab by slab into
float64. Reading them is what orthogonalising costs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SLAB = 1 << 20  # entries converted at a time, all vectors together: they stay in the processor's cache


class Basis:
    """A growing set of vectors of one length."""

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = torch.empty(0, length, dtype=dtype, device=device)
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def append(self, vector: Tensor) -> None:
        """Add a vector [n]; its length is not changed."""
        if self.count == len(self.rows):
            grown = self.rows.new_empty(max(8, self.count * 3 // 2), self.rows.shape[1])
            grown[: self.count] = self.rows
            self.rows = grown
        self.rows[self.count] = vector
        self.count += 1

    def orthogonalise(self, vector: Tensor) -> Tensor:
        """Take the basis out of a float64 vector, in place; the dot products [count] it had, float64.

        Classical Gram-Schmidt, done twice: once more restores orthogonality to rounding (Giraud et al. 2005). The
        first subtraction and the second dot products share one reading of the basis.
        """
        first = torch.zeros(self.count, dtype=torch.float64, device=vector.device)
        second = torch.zeros_like(first)
        slabs = self._slabs()
        for a, b in slabs:
            first += self.rows[: self.count, a:b].double() @ vector[a:b]
        for a, b in slabs:
            rows = self.rows[: self.count, a:b].double()
            vector[a:b] -= first @ rows
            second += rows @ vector[a:b]
        for a, b in slabs:
            vector[a:b] -= second @ self.rows[: self.count, a:b].double()
        return first + second

    def combine(self, coefficients: Tensor) -> Tensor:
        """float64 [m, n]: combinations of the basis with the columns of float64 coefficients [count, m]."""
        made = torch.empty(coefficients.shape[1], self.rows.shape[1], dtype=torch.float64, device=self.rows.device)
        for start, stop in self._slabs():
            made[:, start:stop] = coefficients.T @ self.rows[: self.count, start:stop].double()
        return made

    def replace(self, vectors: Tensor) -> None:
        """Become these vectors [m, n]."""
        self.rows[: len(vectors)] = vectors
        self.count = len(vectors)

    def _slabs(self) -> list[tuple[int, int]]:
        n, width = self.rows.shape[1], max(1, _SLAB // max(1, self.count))
        return [(start, min(n, start + width)) for start in range(0, n, width)]
