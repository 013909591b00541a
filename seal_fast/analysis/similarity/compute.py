"""Debiased linear CKA between layers and networks, from the Gram matrices of minibatches.

Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019; the minibatch
estimator: Nguyen, Raghu and Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from seal_fast.analysis.depth.compute import Prober
from seal_fast.curvature.operator import full_float32
from seal_fast.data import Split

LEAST = 4
"""Images of a batch: the unbiased HSIC divides by n - 3."""

Grams = Sequence[Tensor]
"""For each batch of n images, the `centred_gram` of every probe, [probes, n (n - 1) / 2]."""


def centred_gram(x: Tensor) -> Tensor:
    """The U-centred Gram matrix of features [n, D], scaled so that the dot product of two is the unbiased HSIC.

    That HSIC (Song et al., JMLR 2012, equation 5) is a sum over all pairs of images of products of U-centred entries
    (Szekely and Rizzo, Annals of Statistics 2014, section 3.1), so each Gram matrix is centred once for all its
    partners. It does not change where one vector is added to all features: they are centred first, against rounding.

    Returns:
        The entries above the diagonal, [n (n - 1) / 2], in the type of `x`, centred in float64. All are exactly 0 where
        the features are the same for all images.
    """
    n = len(x)
    x = x - x[:1]
    x -= x.mean(0)
    with full_float32():
        gram = (x @ x.T).double().fill_diagonal_(0)
    sums = gram.sum(1)
    gram -= (sums[:, None] + sums) / (n - 2)
    gram += sums.sum() / ((n - 1) * (n - 2))
    rows, columns = torch.triu_indices(n, n, 1, device=x.device)
    return (gram[rows, columns] * (2 / (n * (n - 3))) ** 0.5).to(x.dtype)


def grams(prober: Prober, split: Split, progress: Callable[[int], None] = lambda done: None) -> Grams:
    """The Gram matrices of a split at every probe of a network; activations are held of one probe and batch at a time.

    A split without images, which a process may have, gives matrices without entries.
    """
    found: list[Tensor] = []
    rows: list[Tensor] = []
    done = 0
    for labels in prober.batches(split, lambda name, x: rows.append(centred_gram(x))):
        found.append(torch.stack(rows))
        rows.clear()
        done += len(labels)
        progress(done)
    return found or [torch.zeros(len(prober.sizes()), 0, device=prober.device)]


def hsic(first: Grams, second: Grams) -> Tensor:
    """The unbiased HSIC of every probe of one network with every probe of another, summed over batches, float64."""
    return torch.stack([a.double() @ b.double().T for a, b in zip(first, second, strict=True)]).sum(0)


def cka(cross: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """CKA [L, M] from the HSIC of two networks' probes [L, M] and of each probe with itself, [L] and [M].

    NaN where a probe's features are the same for all images of each batch.
    """
    return cross / (first[:, None] * second).sqrt()
