"""Few-shot episodes: support and query images of a pool, as a function of (seed, episode) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from seal_fast.utils.errors import UsageError

# Separate random streams: images of an episode, order of its batches, initial weights of its head.
_IMAGES, _ORDER, _HEAD = 0, 1, 2


@dataclass(frozen=True)
class Episodes:
    """Episodes over a pool of images.

    Attributes:
        support: rows of the pool to learn from, int64 [episodes, ways * shots], class after class.
        query: rows of the pool to classify, int64 [episodes, ways * queries], class after class.
        ways: classes of an episode.
        seed: of everything random in them.
        first: number of the first of them, where they are a part of a draw.
    """

    support: np.ndarray
    query: np.ndarray
    ways: int
    seed: int
    first: int = 0

    def __len__(self) -> int:
        return len(self.support)

    def part(self, start: int, stop: int) -> Episodes:
        """Episodes `start` to `stop` of these, each as it is among all."""
        support, query = self.support[start:stop], self.query[start:stop]
        return replace(self, support=support, query=query, first=self.first + start)

    @property
    def support_labels(self) -> np.ndarray:
        """Classes 0 .. ways - 1 of the support, the same in every episode, int64 [ways * shots]."""
        return np.repeat(np.arange(self.ways), self.support.shape[1] // self.ways)

    @property
    def query_labels(self) -> np.ndarray:
        """Classes 0 .. ways - 1 of the queries, the same in every episode, int64 [ways * queries]."""
        return np.repeat(np.arange(self.ways), self.query.shape[1] // self.ways)

    def orders(self, first: int, last: int, epochs: int) -> np.ndarray:
        """Orders of the support in episodes `first` to `last`: int64 [last - first, epochs, ways * shots]."""
        size = self.support.shape[1]
        streams = (np.random.default_rng((self.seed, _ORDER, size, self.first + i)) for i in range(first, last))
        draws = [stream.random((epochs, size)) for stream in streams]
        return np.argsort(np.stack(draws), axis=2, kind="stable")

    def heads(self, first: int, last: int, dimension: int) -> np.ndarray:
        """Initial linear heads as nn.Linear draws them: float64 [last - first, ways, dimension + 1], the bias last.

        Uniform within 1 / sqrt(dimension), weights and bias alike.
        """
        shape = (self.ways, dimension + 1)
        streams = (np.random.default_rng((self.seed, _HEAD, dimension, self.first + i)) for i in range(first, last))
        draws = [stream.random(shape) for stream in streams]
        return (2 * np.stack(draws) - 1) / np.sqrt(dimension)


def draw(
    labels: np.ndarray, classes: Sequence[str], *, ways: int, shots: int, queries: int, episodes: int, seed: int = 0
) -> Episodes:
    """Draw episodes: `ways` classes, and of each `queries` images to classify and `shots` others to learn from.

    Episode i does not depend on the number of episodes. Its queries are the same at every number of shots, and its
    smaller supports are parts of its larger ones.

    Args:
        labels: class of each image of the pool, int64 [n].
        classes: names of the classes, for messages.
        ways: at least 2.

    Raises:
        UsageError: the pool has too few classes, or a class too few images.
    """
    least = {"ways": (ways, 2), "shots": (shots, 1), "queries": (queries, 1), "episodes": (episodes, 1)}
    for flag, (value, lowest) in least.items():
        if value < lowest:
            raise UsageError(f"--{flag} {value}: must be at least {lowest}")
    if len(classes) < ways:
        raise UsageError(f"--ways {ways}: the images have {len(classes)} classes; choose at most {len(classes)}")
    members = [np.flatnonzero(labels == label) for label in range(len(classes))]
    smallest = min(range(len(classes)), key=lambda label: len(members[label]))
    if len(members[smallest]) < shots + queries:
        raise UsageError(
            f"class {classes[smallest]} has {len(members[smallest])} images, and {shots} shots with {queries} queries "
            f"need {shots + queries} of every class: lower --shots or --queries"
        )
    support, query = [], []
    for episode in range(episodes):
        stream = np.random.default_rng((seed, _IMAGES, ways, episode))
        chosen = np.argsort(stream.random(len(classes)), kind="stable")[:ways]
        drawn = [members[label][np.argsort(stream.random(len(members[label])), kind="stable")] for label in chosen]
        query.append(np.concatenate([rows[:queries] for rows in drawn]))
        support.append(np.concatenate([rows[queries : queries + shots] for rows in drawn]))
    return Episodes(np.stack(support), np.stack(query), ways, seed)
