"""Orthonormal vectors, stored in the network's type, with dot products and sums in float64.

In float32 a dot product of 700,000 entries is wrong by a few 1e-5, which biases Ritz values by 2e-4; storing the
entries in float32 causes no such error. The vectors are therefore converted to float64 block by block as they are read.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

REPEAT_BELOW = 0.7
"""A pass of Gram-Schmidt that leaves less of a vector's length than this is repeated."""


class Basis:
    """A growing set of orthonormal vectors [length], stored in `dtype`."""

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        self._storage = torch.empty(0, length, dtype=dtype, device=device)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Tensor:
        """The vectors, [count, n]."""
        return self._storage[: self._count]

    def append(self, vector: Tensor) -> None:
        """Add a vector [n] of length one."""
        if self._count == len(self._storage):
            grown = self._storage.new_empty(max(8, self._count * 3 // 2), self._storage.shape[1])
            grown[: self._count] = self.rows
            self._storage = grown
        self._storage[self._count] = vector
        self._count += 1

    def orthogonalise(self, vector: Tensor) -> Tensor:
        """Subtract from a float64 vector [n], in place, its part within the basis; returns the coefficients [count].

        First against the two newest vectors, which hold nearly all of that part in the Lanczos method; then against all
        by classical Gram-Schmidt, repeated where it removed much (Daniel et al., Mathematics of Computation 30, 1976;
        two passes suffice: Giraud et al., Numerische Mathematik 101, 2005).
        """
        coefficients = torch.zeros(len(self), dtype=torch.float64, device=vector.device)
        self._subtract(vector, max(0, len(self) - 2), coefficients)
        before = vector.norm()
        self._subtract(vector, 0, coefficients)
        if vector.norm() < REPEAT_BELOW * before:
            self._subtract(vector, 0, coefficients)
        return coefficients

    def _subtract(self, vector: Tensor, first: int, coefficients: Tensor) -> None:
        dots = torch.zeros_like(coefficients[first:])
        for columns, block in self._blocks(first):
            dots += block @ vector[columns]
        for columns, block in self._blocks(first):
            vector[columns] -= dots @ block
        coefficients[first:] += dots

    def combine(self, coefficients: Tensor) -> Tensor:
        """Linear combinations, float64 [m, n], with the columns of float64 coefficients [count, m]."""
        shape = coefficients.shape[1], self._storage.shape[1]
        result = torch.empty(shape, dtype=torch.float64, device=self._storage.device)
        for columns, block in self._blocks(0):
            result[:, columns] = coefficients.T @ block
        return result

    def replace(self, vectors: Tensor) -> None:
        """Replace all vectors by these, [m, n] with m at most the count."""
        self._storage[: len(vectors)] = vectors
        self._count = len(vectors)

    def _blocks(self, first: int) -> Iterator[tuple[slice, Tensor]]:
        """Columns of the vectors from `first` on in float64, as many at a time as a CPU's cache holds."""
        rows = self._storage[first : self._count]
        entries = 1 << 18 if rows.device.type == "cpu" else 1 << 26
        width = max(1, entries // max(1, len(rows)))
        for start in range(0, rows.shape[1], width):
            columns = slice(start, start + width)
            yield columns, rows[:, columns].double()
