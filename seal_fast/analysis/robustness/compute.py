"""Scores that tell images of other data sets from the own ones, and the accuracy on corrupted images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from seal_fast.analysis.common.figures import Figures, number
from seal_fast.analysis.common.results import percent
from seal_fast.analysis.robustness.corruptions import KINDS


def scores(logits: Tensor) -> dict[str, np.ndarray]:
    """Of logits [N, C], float64 [N], larger for images taken for own ones.

    `maximum softmax`: Hendrycks and Gimpel, ICLR 2017. `energy`: the negative energy at temperature 1, the logarithm of
    the sum of the exponentials (Liu et al., NeurIPS 2020, equation 4).
    """
    logits = logits.double()
    found = {"maximum softmax": logits.softmax(1).amax(1), "energy": logits.logsumexp(1)}
    return {name: values.numpy() for name, values in found.items()}


def detection(own: Tensor, other: Tensor) -> dict[str, dict[str, float]]:
    """For each score the area under the ROC curve of own images [N, C] against others [M, C]."""
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([1, 0], [len(own), len(other)])
    both = zip(scores(own).items(), scores(other).values(), strict=True)
    return {f"AUROC, {n}": number(float(roc_auc_score(truth, np.concatenate([a, b])))) for (n, a), b in both}


def accuracy(
    clean: Sequence[bool] | np.ndarray, hits: Mapping[str, np.ndarray]
) -> tuple[Figures, dict[str, list[float]]]:
    """Figures, and by corruption the top-1 in percent at each strength.

    Args:
        clean: whether each image is classified rightly, bool [N].
        hits: the same of corrupted images, bool [strengths, N] by corruption.

    Returns:
        Figures of the clean images, of all corruptions, of each kind and of each corruption: means over the strengths,
        and over corruptions of equal weight. As they are over the same images, they have no interval.
    """
    by_strength = {name: (100 * found.mean(1)).tolist() for name, found in hits.items()}
    figures: Figures = {"clean": {"top-1 (%)": percent(int(np.sum(clean)), len(clean)).json()}}
    if by_strength:
        means = {name: float(np.mean(values)) for name, values in by_strength.items()}
        figures["all corruptions"] = {"top-1 (%)": number(float(np.mean(list(means.values()))))}
        for kind, members in KINDS.items():
            if some := [means[name] for name in members if name in means]:
                figures[kind] = {"top-1 (%)": number(float(np.mean(some)))}
        figures |= {name: {"top-1 (%)": number(value)} for name, value in means.items()}
    return figures, by_strength


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float], back: bool = False) -> Tensor:
    """[B, 3, S, S] from the range 0 to 1 to what networks see, or `back`."""
    shift, scale = (torch.tensor(values, dtype=x.dtype)[:, None, None] for values in (mean, std))
    return x * scale + shift if back else (x - shift) / scale
