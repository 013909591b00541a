"""Prediction depth: after which layer a network's prediction for an example stands.

Baldock, Maennel and Neyshabur, "Deep Learning Through the Lens of Example Difficulty", NeurIPS 2021, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seal_fast.analysis.common.images import batches
from seal_fast.analysis.common.knn import Search, merged, vote
from seal_fast.analysis.common.processes import rows_of
from seal_fast.analysis.depth.probes import probe_points, probe_sizes
from seal_fast.data import ImageSet, Split
from seal_fast.distributed.world import SINGLE_PROCESS, World
from seal_fast.models import ResNet
from seal_fast.runs.stats import Interval, bootstrap
from seal_fast.utils.errors import RunError, UsageError

QUERY_BYTES = 1 << 29
"""Most bytes of the queries' vectors held at once."""


@dataclass(frozen=True)
class Votes:
    """What the probes said of a split.

    Attributes:
        names: of the probes, in forward order.
        votes: the probes' classes, int64 [probes, N].
        predictions: the network's own, int64 [N].
        labels: the truth, int64 [N].
    """

    names: tuple[str, ...]
    votes: Tensor
    predictions: Tensor
    labels: Tensor


def prediction_depths(votes: Tensor, reference: Tensor) -> Tensor:
    """The first probe from which that one and all later ones agree with the reference; -1 where the last one disagrees.

    Args:
        votes: classes by probe, int64 [probes, N], in forward order.
        reference: classes int64 [N]: the network's own predictions, or the truth.

    Returns:
        Depths int64 [N]: 0 is the input, `probes - 1` the softmax, -1 none.
    """
    agreeing = (votes == reference).flip(0).long().cumprod(0).sum(0)
    return torch.where(agreeing > 0, len(votes) - agreeing, -1)


@dataclass(frozen=True)
class Prober:
    """A network, the images it is shown and how: what does not change from query to query.

    Attributes:
        network: in eval mode.
        images: the data set.
        image_size: height and width in pixels.
        pooling: side that feature maps are averaged to; None leaves them whole.
        batch_size: images a forward pass.
        dtype: of the images.
        autocast: makes the context of the forward pass.
    """

    network: ResNet
    images: ImageSet
    image_size: int
    pooling: int | None = None
    batch_size: int = 512
    dtype: torch.dtype = torch.float32
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.network.conv1.weight.device

    def batches(self, split: Split) -> Iterator[tuple[Tensor, Iterator[tuple[str, Tensor]]]]:
        """Labels int64 [B] of each batch and, one after the other, its vectors at every probe."""
        feed = {"image_size": self.image_size, "batch_size": self.batch_size, "device": self.device}
        for images, labels in batches(self.images, split, dtype=self.dtype, **feed):
            yield labels, probe_points(self.network, images, self.pooling, self.autocast)

    def sizes(self) -> dict[str, int]:
        """Entries of a vector at each probe."""
        return probe_sizes(self.network, self.image_size, self.pooling, self.device)

    def vectors(self, splits: Sequence[Split]) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels int64 [N] and the vectors [N, D] at every probe of all images of these splits."""
        total = sum(map(len, splits))
        found = {name: torch.empty(total, size, device=self.device) for name, size in self.sizes().items()}
        labels, at = [], 0
        for split in splits:
            for part, points in self.batches(split):
                for name, x in points:
                    found[name][at : at + len(x)] = x
                at += len(part)
                labels.append(part)
        return torch.cat(labels), found


def probe_votes(
    prober: Prober,
    bank: Split,
    queries: Mapping[str, Split],
    k: int = 30,
    own_rows: Mapping[str, np.ndarray] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    world: World = SINGLE_PROCESS,
) -> dict[str, Votes]:
    """The majority vote of k nearest neighbours in the bank, at every probe, for each split of queries.

    One forward pass over an image feeds all probes. The bank streams by in batches; of the queries at most
    `QUERY_BYTES` of vectors are held, and as much again to filter by. More queries than that are taken in groups, and
    the bank passes once for each group. Several processes share the bank: each finds the nearest of its part to all
    queries, and the nearest of those vote.

    Args:
        prober: the network and how it is shown images.
        bank: the images whose labels vote, the network's training images.
        queries: the splits asked about, by name.
        k: neighbours.
        own_rows: for a split, each query's own row in the bank, which then has no vote.
        progress: called with how many images of the bank have passed here, and how many will in all.
        world: the processes; all of them must ask the same.

    Raises:
        UsageError: the bank has not enough images for k neighbours.
        RunError: an image cannot be decoded, or an activation is not finite.
    """
    own_rows = own_rows or {}
    if k + bool(own_rows) > len(bank):
        raise UsageError(
            f"--k {k}: the bank has {len(bank)} images; ask for fewer neighbours or enlarge it with --bank"
        )
    most = max(1, QUERY_BYTES // (4 * sum(prober.sizes().values())))
    groups = _groups(queries, most)
    part = _Part(bank, rows_of(len(bank), prober.batch_size, world.rank, world.size), world)
    found: dict[str, list[Votes]] = {name: [] for name in queries}
    for turn, group in enumerate(groups):
        labels, vectors = prober.vectors([queries[name].take(rows) for name, rows in group])
        predictions = vectors["softmax"].argmax(1)
        own = [own_rows[name][rows] if name in own_rows else np.full(len(rows), -1) for name, rows in group]
        exclude = torch.from_numpy(part.places(np.concatenate(own))).to(prober.device) if own_rows else None
        searches = {}
        for name in list(vectors):
            try:
                searches[name] = Search(vectors.pop(name), k, exclude)
            except RunError as error:
                raise RunError(f"the activations at {name}: {error}") from None
        before, passes = turn * len(part.rows), len(groups) * len(part.rows)
        nearest = world.run_on_all(lambda: part.search(prober, searches, lambda done: progress(before + done, passes)))  # noqa: B023
        votes = torch.stack([vote(part.labels(*found), len(prober.images.classes)) for found in nearest])
        cuts = [len(rows) for _, rows in group]
        columns = (votes.cpu().split(cuts, 1), predictions.cpu().split(cuts), labels.cpu().split(cuts))
        for (name, _), *parts in zip(group, *columns, strict=True):
            found[name].append(Votes(tuple(searches), *parts))
    return {
        name: Votes(
            parts[0].names,
            torch.cat([p.votes for p in parts], 1),
            torch.cat([p.predictions for p in parts]),
            torch.cat([p.labels for p in parts]),
        )
        for name, parts in found.items()
    }


@dataclass(frozen=True)
class _Part:
    """The rows of the bank that this process searches."""

    bank: Split
    rows: Sequence[int]
    world: World

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where rows of the bank are in this part, -1 for those that are not."""
        place = np.full(len(self.bank) + 1, -1)  # the last for a row -1
        place[self.rows] = np.arange(len(self.rows))
        return place[rows]

    def search(
        self, prober: Prober, searches: Mapping[str, Search], progress: Callable[[int], None]
    ) -> list[tuple[Tensor, Tensor]]:
        """The nearest of this part, places in it int64 [Q, k] and distances, at every probe."""
        shown = 0
        for labels, points in prober.batches(self.bank.take(self.rows)) if self.rows else ():
            for name, x in points:
                searches[name].add(x)
            shown += len(labels)
            progress(shown)
        return [search.result(complete=False) for search in searches.values()]

    def labels(self, places: Tensor, distances: Tensor) -> Tensor:
        """Labels of the nearest of the whole bank, int64 [Q, k], of which this part's are given."""
        rows = torch.tensor([*self.rows, -1], device=places.device)[places]
        rows, _ = merged([*zip(self.world.all_gather(rows), self.world.all_gather(distances), strict=True)])
        return torch.from_numpy(self.bank.labels).to(rows.device)[rows]


def _groups(queries: Mapping[str, Split], most: int) -> list[list[tuple[str, range]]]:
    """The rows of all splits in groups of at most `most`, in order; all but the last are full."""
    groups: list[list[tuple[str, range]]] = [[]]
    room = most
    for name, split in queries.items():
        start = 0
        while start < len(split):
            if not room:
                groups.append([])
                room = most
            stop = min(start + room, len(split))
            groups[-1].append((name, range(start, stop)))
            room -= stop - start
            start = stop
    return groups


def summarise(votes: Votes, reference: Literal["prediction", "truth"]) -> dict[str, Any]:
    """What is reported of a split.

    Returns:
        `examples`; `top1` of the network in percent; `mean_depth` over the examples that have one, with its bootstrap
        interval; `without_depth`, the percentage that has none, with its interval; `histogram`, examples by depth;
        `top1_by_depth`, the network's accuracy among them in percent (None for no examples) and `top1_without_depth`;
        `probe_top1`, the probes' own accuracies in percent.
    """
    depths = prediction_depths(votes.votes, votes.predictions if reference == "prediction" else votes.labels).numpy()
    right = (votes.predictions == votes.labels).numpy()
    some = depths >= 0
    levels = range(len(votes.names))
    nothing = Interval(float("nan"), float("nan"), float("nan"), 0)

    def percent(which: np.ndarray) -> float | None:
        return 100.0 * float(right[which].mean()) if which.any() else None

    return {
        "examples": len(depths),
        "top1": 100.0 * float(right.mean()),
        "mean_depth": (bootstrap(depths[some]) if some.any() else nothing).json(),
        "without_depth": bootstrap(100.0 * ~some).json(),
        "histogram": [int((depths == level).sum()) for level in levels],
        "top1_by_depth": [percent(depths == level) for level in levels],
        "top1_without_depth": percent(~some),
        "probe_top1": [100.0 * float(x) for x in (votes.votes == votes.labels).float().mean(1)],
    }
