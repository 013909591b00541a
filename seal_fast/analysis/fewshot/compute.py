"""Classifiers of few-shot episodes on frozen features: linear heads, all trained at once, and nearest centroids.

A linear head trained by SGD from W0 never leaves the span of its support features and W0: every gradient is a
combination of features, and weight decay only scales. So heads are trained in the coordinates of that basis: with
B = [features; W0], [N + ways, D + 1] an episode, W = A^T B. A step costs a few rows of the Gram matrix instead of whole
features, and hundreds of episodes fit in cache. In exact arithmetic the heads are those of nn.Linear and
torch.optim.SGD.

Protocol: Guo et al., "A Broader Study of Cross-Domain Few-Shot Learning" (ECCV 2020), section 4.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seal_fast.analysis.fewshot.episodes import Episodes

CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**30}
"""Size of the Gram matrices trained together: a CPU's last cache level; spare memory of a GPU."""


@dataclass(frozen=True)
class HeadSettings:
    """The training of a linear head: torch.optim.SGD on a batch's mean cross entropy; by default the protocol's."""

    epochs: int = 100
    batch_size: int = 4
    lr: float = 0.01
    momentum: float = 0.9
    dampening: float = 0.9
    weight_decay: float = 1e-3


def linear(features: Tensor, episodes: Episodes, settings: HeadSettings | None = None) -> Tensor:
    """Accuracy of linear heads on every episode's queries.

    Args:
        features: of the pool, [n, D]; their type, float32 or float64, is that of the training.
        episodes: rows of the pool.

    Returns:
        Fractions, float64 [episodes].
    """
    s = settings or HeadSettings()
    device, count = features.device, len(episodes)
    labels = torch.from_numpy(episodes.support_labels).to(device)
    asked = torch.from_numpy(episodes.query_labels).to(device)
    size, dimension = episodes.support.shape[1], features.shape[1]
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    together = max(1, CHUNK_BYTES[device.type] // (size * (size + episodes.ways) * features.element_size()))
    chunks = np.array_split(np.arange(count), max(-(-count // together), min(threads, count)))

    def accuracy(chunk: np.ndarray) -> Tensor:
        first, last = int(chunk[0]), int(chunk[-1]) + 1
        support = features[torch.from_numpy(episodes.support[first:last])]
        initial = torch.from_numpy(episodes.heads(first, last, dimension)).to(features)
        orders = torch.from_numpy(episodes.orders(first, last, s.epochs)).to(device)
        heads = train_heads(support, labels, initial, orders, s)
        queries = features[torch.from_numpy(episodes.query[first:last])]
        logits = torch.baddbmm(heads[:, None, :, -1], queries, heads[..., :-1].mT)
        return (logits.argmax(2) == asked).double().mean(1)

    if threads == 1:
        return torch.cat([accuracy(chunk) for chunk in chunks])
    # A step is too small to be shared between threads: each thread trains chunks of its own.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        accuracies = list(pool.map(accuracy, chunks))
    torch.set_num_threads(threads)  # the matrix library has one count for the whole process
    return torch.cat(accuracies)


def train_heads(
    support: Tensor, labels: Tensor, initial: Tensor, orders: Tensor, settings: HeadSettings | None = None
) -> Tensor:
    """Train one linear head an episode, all at once.

    Args:
        support: features [E, N, D].
        labels: classes [N], the same in every episode.
        initial: weights with the bias as last column, [E, ways, D + 1].
        orders: permutations of 0 .. N - 1, int64 [E, epochs, N]: which examples make up the batches of an epoch.

    Returns:
        The trained weights with the bias as last column, [E, ways, D + 1].
    """
    s = settings or HeadSettings()
    count, size, _ = support.shape
    ways = initial.shape[1]
    inputs = F.pad(support, (0, 1), value=1.0)  # the bias is the weight of a constant 1, decayed like the others
    basis = torch.cat([inputs, initial], 1)
    gram = torch.bmm(inputs, basis.mT).flatten(0, 1)
    coefficients = support.new_zeros(count, size + ways, ways)
    coefficients[:, size:] = torch.eye(ways, dtype=support.dtype, device=support.device)
    buffer = torch.zeros_like(coefficients)
    rows = buffer.flatten(0, 1)
    targets = F.one_hot(labels, ways).to(support).repeat(count, 1)
    episode = torch.arange(count, device=support.device)[:, None]
    dampening = 0.0  # torch.optim.SGD starts its buffer with the first gradient as it is
    for epoch in range(s.epochs):
        order = orders[:, epoch]
        examples, places = order + episode * size, order + episode * (size + ways)
        for start in range(0, size, s.batch_size):
            batch = examples[:, start : start + s.batch_size].flatten()
            place = places[:, start : start + s.batch_size].flatten()
            of_batch = gram.index_select(0, batch).view(count, -1, size + ways)
            share = torch.softmax(torch.bmm(of_batch, coefficients), 2).flatten(0, 1)
            share -= targets.index_select(0, batch)
            share *= (1 - dampening) * count / len(batch)
            buffer.mul_(s.momentum).add_(coefficients, alpha=(1 - dampening) * s.weight_decay)
            rows.index_copy_(0, place, rows.index_select(0, place).add_(share))
            coefficients.sub_(buffer, alpha=s.lr)
            dampening = s.dampening
    return torch.bmm(coefficients.mT, basis)


def centroid(features: Tensor, episodes: Episodes) -> Tensor:
    """Accuracy of the nearest class mean (Euclidean) on every episode's queries: fractions, float64 [episodes].

    Source: Snell et al., "Prototypical Networks" (NeurIPS 2017), section 2.
    """
    asked = torch.from_numpy(episodes.query_labels).to(features.device)
    accuracies = []
    for part in np.array_split(np.arange(len(episodes)), -(-len(episodes) // 50)):
        support = features[torch.from_numpy(episodes.support[part])]
        means = support.unflatten(1, (episodes.ways, -1)).mean(2)
        queries = features[torch.from_numpy(episodes.query[part])]
        scores = queries @ means.mT - means.square().sum(2)[:, None] / 2
        accuracies.append((scores.argmax(2) == asked).double().mean(1))
    return torch.cat(accuracies)
