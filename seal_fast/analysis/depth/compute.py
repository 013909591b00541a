"""Prediction depth: from which layer on a network's prediction for an example is settled.

Baldock, Maennel and Neyshabur, "Deep Learning Through the Lens of Example Difficulty", NeurIPS 2021, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from seal_fast.analysis.common.knn import Search, merged, vote
from seal_fast.analysis.common.processes import rows_of
from seal_fast.analysis.common.results import percent
from seal_fast.analysis.depth.probes import run_probes
from seal_fast.data import ImageSet, Split
from seal_fast.data.batches import batches
from seal_fast.distributed.world import SINGLE_PROCESS, World, on_all_ranks
from seal_fast.runs.stats import Interval, bootstrap
from seal_fast.utils.errors import RunError, UsageError

QUERY_BYTES = 1 << 29
"""Most bytes of the queries' vectors held at once."""


@dataclass(frozen=True)
class Votes:
    """The votes of the probes on a split.

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
    """A network, its images, and how they are shown.

    Attributes:
        network: in eval mode.
        images: the data set.
        image_size: height and width in pixels.
        pooling: side that feature maps are averaged to; None leaves them whole.
        batch_size: images a forward pass.
        dtype: of the images.
        autocast: makes the context of the forward pass.
        modules: after which there is a probe, by name; see `probe_modules`.
    """

    network: nn.Module
    images: ImageSet
    image_size: int
    pooling: int | None = None
    batch_size: int = 512
    dtype: torch.dtype = torch.float32
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    modules: Mapping[str, nn.Module] | None = None

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.network.parameters()).device

    def batches(self, split: Split, take: Callable[[str, Tensor], None]) -> Iterator[Tensor]:
        """Labels int64 [B] of each batch, after `take` was called with its vectors at every probe."""
        settings = {"image_size": self.image_size, "batch_size": self.batch_size, "device": self.device}
        for images, labels in batches(self.images, split, dtype=self.dtype, **settings):
            run_probes(self.network, images, take, self.pooling, self.autocast, self.modules)
            yield labels

    def sizes(self) -> dict[str, int]:
        """Entries of a vector at each probe, in forward order, found with one image of zeros."""
        found: dict[str, int] = {}
        dtype = next(self.network.parameters()).dtype
        image = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device, dtype=dtype)
        run_probes(
            self.network, image, lambda name, x: found.update({name: x.shape[1]}), self.pooling, modules=self.modules
        )
        return found

    def vectors(self, splits: Sequence[Split]) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels int64 [N] and the vectors [N, D] at every probe of all images of these splits."""
        total = sum(map(len, splits))
        found = {name: torch.empty(total, size, device=self.device) for name, size in self.sizes().items()}
        labels, at = [], 0

        def take(name: str, x: Tensor) -> None:
            found[name][at : at + len(x)] = x

        for split in splits:
            for part in self.batches(split, take):
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

    One forward pass over an image serves all probes. The bank is read in batches. At most `QUERY_BYTES` of query
    vectors are held, and as much again for the filter; further queries form further groups, each with its own pass over
    the bank. Several processes share the bank: each finds the nearest of its part, and the nearest of all parts vote.

    Args:
        bank: the images whose labels vote, the network's training images.
        queries: the splits to be probed, by name.
        own_rows: by split, the row in the bank of each query itself, which then has no vote.
        progress: called with the images of the bank read so far by this process, and their total.
        world: the processes; all of them must pass the same arguments.

    Raises:
        UsageError: the bank has not enough images for k neighbours.
        RunError: an image cannot be decoded, or an activation is not finite.
    """
    own_rows = own_rows or {}
    if k + bool(own_rows) > len(bank):
        cure = "ask for fewer neighbours or enlarge it with --bank"
        raise on_all_ranks(UsageError(f"--k {k}: the bank has {len(bank)} images; {cure}"))
    sizes = [len(split) for split in queries.values()]
    own = np.concatenate([own_rows.get(name, np.full(len(split), -1)) for name, split in queries.items()])
    most = max(1, QUERY_BYTES // (4 * sum(prober.sizes().values())))
    part = _Part(bank, rows_of(len(bank), prober.batch_size, world.rank, world.size), world)
    names: tuple[str, ...] = ()
    groups: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(own), most):
        labels, vectors = prober.vectors(_rows(queries.values(), start, start + most))
        predictions, names = vectors["softmax"].argmax(1), tuple(vectors)
        exclude = torch.from_numpy(part.places(own[start : start + most])).to(prober.device) if own_rows else None
        searches = {}
        for name in names:
            try:
                searches[name] = Search(vectors.pop(name), k, exclude)
            except RunError as error:
                raise RunError(f"the activations at {name}: {error}") from None
        before, passes = len(groups) * len(part.rows), -(-len(own) // most) * len(part.rows)
        nearest = world.run_on_all(lambda: part.search(prober, searches, lambda done: progress(before + done, passes)))  # noqa: B023
        votes = torch.stack([vote(part.labels(*pair), len(prober.images.classes)) for pair in nearest])
        groups.append((votes, predictions, labels))
    columns = [torch.cat(column, -1).cpu().split(sizes, -1) for column in zip(*groups, strict=True)]
    return {name: Votes(names, *parts) for name, *parts in zip(queries, *columns, strict=True)}


def _rows(splits: Iterable[Split], start: int, stop: int) -> list[Split]:
    """Rows `start` to `stop` of the splits, counted through all of them."""
    parts = []
    for split in splits:
        if rows := range(max(0, start), min(stop, len(split))):
            parts.append(split.take(rows))
        start, stop = start - len(split), stop - len(split)
    return parts


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
        for labels in prober.batches(self.bank.take(self.rows), lambda name, x: searches[name].add(x)):
            shown += len(labels)
            progress(shown)
        return [search.result(complete=False) for search in searches.values()]

    def labels(self, places: Tensor, distances: Tensor) -> Tensor:
        """Labels of the nearest of the whole bank, int64 [Q, k], of which this part's are given."""
        rows = torch.tensor([*self.rows, -1], device=places.device)[places]
        rows, _ = merged([*zip(self.world.all_gather(rows), self.world.all_gather(distances), strict=True)])
        return torch.from_numpy(self.bank.labels).to(rows.device)[rows]


def summarise(votes: Votes, reference: Literal["prediction", "truth"]) -> dict[str, Any]:
    """The figures of a split.

    Returns:
        `examples`; `top1` of the network in percent; `mean_depth` over the examples that have one, with its bootstrap
        interval; `without_depth`, the percentage that has none, with Wilson's interval; `histogram`, examples by depth;
        `top1_by_depth`, the network's accuracy among them in percent (None for no examples) and `top1_without_depth`;
        `probe_top1`, the probes' own accuracies in percent.
    """
    depths = prediction_depths(votes.votes, votes.predictions if reference == "prediction" else votes.labels).numpy()
    right = (votes.predictions == votes.labels).numpy()
    some = depths >= 0
    levels = range(len(votes.names))
    nothing = Interval(float("nan"), float("nan"), float("nan"), 0)

    def top1(which: np.ndarray) -> float | None:
        return 100.0 * float(right[which].mean()) if which.any() else None

    return {
        "examples": len(depths),
        "top1": 100.0 * float(right.mean()),
        "mean_depth": (bootstrap(depths[some]) if some.any() else nothing).json(),
        "without_depth": percent(int((~some).sum()), len(some)).json(),
        "histogram": [int((depths == level).sum()) for level in levels],
        "top1_by_depth": [top1(depths == level) for level in levels],
        "top1_without_depth": top1(~some),
        "probe_top1": [100.0 * float(x) for x in (votes.votes == votes.labels).float().mean(1)],
    }
