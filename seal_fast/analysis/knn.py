"""Exact k nearest neighbours in Euclidean distance, while the bank streams by in blocks, and their majority vote.

Filter and refine: a matrix product in float32 bounds every distance from below and above, and only pairs which that
bound leaves in doubt are computed exactly, in float64. So no neighbour is ever missed, and the work that float64 needs
is small. The bound is the classic one for dot products (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
section 3.1), not an estimate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seal_fast.errors import RunError, UsageError

_PRODUCTS = 1 << 25  # entries of the block of products: 128 MiB
_GATHERED = 1 << 22  # entries of the differences of one refinement: 32 MiB in float64


class Search:
    """The k nearest rows of a bank that is shown block by block, for every query.

    Neighbours are ordered by (distance, row in the bank): among equally distant rows the one shown first is nearer.
    Distances are those of float64 arithmetic on the values given. Beyond the queries and one block, memory holds at
    most 128 MiB of products, 16 bytes k per query, and what refining takes: at most 128 MiB.

    Args:
        queries: [Q, D], floating point, on any device.
        k: how many neighbours.
        exclude: int64 [Q], a row of the bank that does not count for a query (such as the query itself), or -1.

    Raises:
        UsageError: k is below 1.
        RunError: a query is not finite.
    """

    def __init__(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> None:
        if k < 1:
            raise UsageError(f"k {k}: must be at least 1")
        self.k, self.shown = k, 0
        self._queries, self._exclude = queries, exclude
        count, self._dimensions = queries.shape
        # Shifting and scaling change no neighbour; they keep the norms, and with them the bound's slack, small.
        self._centre = queries.mean(0, dtype=torch.float64).to(torch.float32)
        spread = (queries - self._centre).abs().max().item() if count else 0.0
        if not math.isfinite(spread):
            raise RunError("the features hold NaN or infinite values, so they have no neighbours")
        self._scale = 2.0 ** -round(math.log2(spread)) if spread > 0 else 1.0
        self._small, self._norms = self._prepare(queries)
        self._distances = queries.new_full((count, k), math.inf, dtype=torch.float64)
        self._rows = queries.new_full((count, k), -1, dtype=torch.int64)

    def _prepare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shifted, scaled float32 rows and their squared norms."""
        small = (x - self._centre).to(torch.float32).mul_(self._scale)
        return small, torch.linalg.vector_norm(small, dim=1, dtype=torch.float64).square_()

    @property
    def _slack(self) -> float:
        """c, so that float32 errs about a squared distance by at most c (|q|^2 + |b|^2)."""
        terms = (self._dimensions + 8) * 2.0**-24
        return terms / (1 - terms)

    @torch.no_grad()
    def add(self, block: Tensor) -> None:
        """Show the next rows of the bank, [B, D].

        Raises:
            RunError: they are not finite.
        """
        rows = max(1, _PRODUCTS // max(1, len(self._queries)))
        with torch.autocast(block.device.type, enabled=False):
            for part in block.split(rows):
                self._add(part)

    def _add(self, block: Tensor) -> None:
        small, norms = self._prepare(block)
        if not torch.isfinite(norms).all():
            raise RunError("the features hold NaN or infinite values, so they have no neighbours")
        slack = self._slack
        # lower[i, j] + (1 - slack) |q_i|^2 bounds the squared distance from below.
        lower = torch.addmm((norms * (1 - slack)).float(), self._small, small.T, alpha=-2)
        if self._exclude is not None:
            at = self._exclude - self.shown
            inside = ((at >= 0) & (at < len(block))).nonzero().squeeze(1)
            lower[inside, at[inside]] = math.inf
        limit = self._limit(lower, norms)
        query, column = (lower <= limit[:, None]).nonzero(as_tuple=True)
        distances = self._exact(block, query, column)
        self._merge(query, column + self.shown, distances)
        self.shown += len(block)

    def _limit(self, lower: Tensor, norms: Tensor) -> Tensor:
        """What an entry of `lower` must not exceed to belong to a possible neighbour, float32 [Q]."""
        slack, own = self._slack, self._norms
        known = self._distances[:, -1] * self._scale**2 - (1 - slack) * own
        if lower.shape[1] >= self.k:
            # At least k rows of this block are as near as the k-th smallest upper bound.
            kth = lower.topk(self.k, largest=False, sorted=False).values.amax(1).double()
            known = torch.minimum(known, kth + 2 * slack * (own + norms.max()))
        # What is rounded here, and what underflows in the products, is far below this.
        return (known + (own + norms.max()) * 2.0**-22 + 1e-30).float()

    def _exact(self, block: Tensor, query: Tensor, column: Tensor) -> Tensor:
        """Squared distances of these pairs in float64."""
        distances = block.new_empty(len(query), dtype=torch.float64)
        step = max(1, _GATHERED // max(1, self._dimensions))
        for start in range(0, len(query), step):
            part = slice(start, start + step)
            difference = self._queries[query[part]].double().sub_(block[column[part]])
            distances[part] = difference.square_().sum(1)
        return distances

    def _merge(self, query: Tensor, rows: Tensor, distances: Tensor) -> None:
        """Put candidates (sorted by query, then by row) beside what is known, and keep the nearest k."""
        counts = torch.bincount(query, minlength=len(self._queries))
        first = counts.cumsum(0) - counts
        slot = torch.arange(len(query), device=query.device) - first[query]
        # Queries are few at a time where one of them has many candidates, which equal distances bring about.
        widest = int(counts.max()) if len(counts) else 0
        step = max(1, _GATHERED // max(1, widest + self.k))
        for start in range(0, len(counts), step):
            part = slice(start, start + step)
            own = (query >= start) & (query < start + step)
            old = self._distances[part]
            near = torch.cat([old, old.new_full((len(old), widest), math.inf)], 1)
            names = torch.cat([self._rows[part], self._rows.new_full((len(old), widest), -1)], 1)
            place = query[own] - start, self.k + slot[own]
            near[place], names[place] = distances[own], rows[own]
            # Stable, and rows ascend from left to right: equal distances stay in the order of the bank.
            order = near.argsort(dim=1, stable=True)[:, : self.k]
            self._distances[part], self._rows[part] = near.gather(1, order), names.gather(1, order)

    def result(self) -> tuple[Tensor, Tensor]:
        """Rows of the bank int64 [Q, k] and their squared distances float64 [Q, k], nearest first.

        Raises:
            UsageError: the bank has fewer rows than neighbours are asked for.
        """
        if len(self._rows) and (self._rows[:, -1] < 0).any():
            besides = " besides the query itself" if self._exclude is not None else ""
            raise UsageError(
                f"k {self.k}: the bank holds only {self.shown} examples; ask for fewer neighbours{besides}"
            )
        return self._rows, self._distances


def neighbours(queries: Tensor, bank: Tensor, k: int, query_block: int = 4096, bank_block: int = 8192):
    """The exact k nearest rows of `bank` [N, D] for each of `queries` [Q, D]; see `Search`.

    Beside its input and output it holds two blocks, at most 128 MiB of products and at most 128 MiB for refining,
    whatever Q and N are.

    Returns:
        Rows of the bank int64 [Q, k] and squared distances float64 [Q, k], ordered by (distance, row).

    Raises:
        UsageError: the bank has fewer than k rows.
        RunError: a feature is not finite.
    """
    rows, distances = [], []
    for part in queries.split(query_block):
        search = Search(part, k)
        for block in bank.split(bank_block):
            search.add(block)
        found = search.result()
        rows.append(found[0])
        distances.append(found[1])
    return torch.cat(rows), torch.cat(distances)


def vote(labels: Tensor, num_classes: int) -> Tensor:
    """The most frequent class in each row of `labels` int64 [Q, k]; among equally frequent ones the smallest.

    The tie rule is that of scikit-learn's KNeighborsClassifier with uniform weights. For fewer neighbours pass fewer
    columns: those of `neighbours` are sorted by distance.

    Returns:
        Classes, int64 [Q].
    """
    chosen = []
    for part in labels.split(max(1, _GATHERED // max(1, num_classes))):
        counts = torch.zeros(len(part), num_classes, dtype=torch.int32, device=part.device)
        counts.scatter_add_(1, part, torch.ones_like(part, dtype=torch.int32))
        # The largest count, and of those the smallest class: argmax alone does not say which of equals it takes.
        ranked = counts.long() * num_classes - torch.arange(num_classes, device=part.device)
        chosen.append(ranked.argmax(1))
    return torch.cat(chosen) if chosen else labels.new_empty(0)
