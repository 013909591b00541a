"""Orthonormal vectors of any length, kept in the network's type, with dot products and sums in float64.

In float32 the dot product of 700,000 entries is wrong by a few 1e-5, which biases Ritz values by 2e-4; storing the
entries in float32 does nothing of the kind. So vectors are kept as they are multiplied, and widened as they are read.
Reading them is what orthogonalising costs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seal_fast.kernels.gram_schmidt import dots, subtract_
from seal_fast.kernels.gram_schmidt.reference import slabs

_ENOUGH = 0.7  # of its length: a vector that keeps as much in a pass has lost no digit that matters


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

        The two newest first: in the Lanczos method they are nearly all there is. Then all of them by classical
        Gram-Schmidt, and once more if that took much (Daniel et al., Mathematics of Computation 30, 1976; twice is
        enough: Giraud et al. 2005).
        """
        found = torch.zeros(self.count, dtype=torch.float64, device=vector.device)
        self._take(vector, max(0, self.count - 2), found)
        before = vector.norm()
        self._take(vector, 0, found)
        if vector.norm() < _ENOUGH * before:
            self._take(vector, 0, found)
        return found

    def _take(self, vector: Tensor, first: int, found: Tensor) -> None:
        rows = self.rows[first : self.count]
        part = dots(rows, vector)
        subtract_(vector, rows, part)
        found[first:] += part

    def combine(self, coefficients: Tensor) -> Tensor:
        """float64 [m, n]: combinations of the basis with the columns of float64 coefficients [count, m]."""
        made = torch.empty(coefficients.shape[1], self.rows.shape[1], dtype=torch.float64, device=self.rows.device)
        rows = self.rows[: self.count]
        for part in slabs(rows):
            made[:, part] = coefficients.T @ rows[:, part].double()
        return made

    def replace(self, vectors: Tensor) -> None:
        """Become these vectors [m, n]."""
        self.rows[: len(vectors)] = vectors
        self.count = len(vectors)
