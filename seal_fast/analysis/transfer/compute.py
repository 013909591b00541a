"""Accuracy on other images: of a linear probe and of k-NN on frozen features, each with its setting chosen on held-out
training images, and of the whole network, fine-tuned by the trainer.

Protocol of the linear probe: Kornblith, Shlens and Le, "Do Better ImageNet Models Transfer Better?" (CVPR 2019),
section 3 and appendix A.4: L-BFGS, L2 by validation, then the whole training split at the L2 chosen.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seal_fast.analysis.common.features import Features
from seal_fast.analysis.common.knn import neighbours, vote
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.results import identity, percent
from seal_fast.analysis.transfer.linear_probe import fit_path
from seal_fast.config import Config
from seal_fast.data import ImageSet
from seal_fast.distributed.world import SINGLE_PROCESS, World
from seal_fast.utils.errors import UsageError

L2 = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
"""Penalties tried by default, in units of the features' mean square (see `scaled`)."""
K = (1, 2, 5, 10, 20, 50)
"""Numbers of neighbours tried by default."""


@dataclass(frozen=True)
class HoldOut:
    """Rows of a training split: `learn` to fit on, `choose` to choose a setting on; both hold every class."""

    learn: Tensor
    choose: Tensor


def hold_out(labels: np.ndarray, classes: Sequence[str], fraction: float = 0.2, seed: int = 0) -> HoldOut:
    """Hold out a share of each class of a training split, at least one image; a function of labels, share and seed.

    Raises:
        UsageError: there is one class only, or a class has fewer than two images.
    """
    if len(classes) < 2:
        raise UsageError(f"the images have one class ({classes[0]}): a classifier needs at least two")
    if not 0 < fraction < 1:
        raise UsageError(f"--validation {fraction:g}: must be above 0 and below 1")
    learn, choose = [], []
    for label, name in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise UsageError(
                f"class {name} has {len(rows)} training image: settings are chosen on held-out ones, so it needs two"
            )
        order = rows[np.argsort(np.random.default_rng((seed, label)).random(len(rows)), kind="stable")]
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        choose.append(order[:count])
        learn.append(order[count:])
    return HoldOut(*(torch.from_numpy(np.sort(np.concatenate(parts))) for parts in (learn, choose)))


def scaled(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Features divided by their root mean square about the training mean, so that an L2 fits networks of any scale."""
    size = (train - train.mean(0)).square().mean().sqrt().clamp(min=1e-12)
    return train / size, test / size


def linear_probe(
    train: Features, test: Features, num_classes: int, held: HoldOut, l2: Sequence[float] = L2
) -> dict[str, Any]:
    """Accuracy of a linear classifier on frozen features: `top1` in percent, its interval, and what was chosen.

    Raises:
        RunError: an optimum is not reached.
    """
    inputs, test_inputs = scaled(train.values, test.values)
    penalties = sorted(l2, reverse=True)
    path = fit_path(inputs[held.learn], train.labels[held.learn], num_classes, penalties)
    chosen_on = inputs[held.choose], train.labels[held.choose]
    scores = [_top1(found.logits(chosen_on[0]).argmax(1), chosen_on[1]) for found in path]
    best = int(np.argmax(scores))  # among equals the first, which is the simplest
    (final,) = fit_path(inputs, train.labels, num_classes, penalties[best : best + 1])
    found = _outcome(final.logits(test_inputs).argmax(1), test.labels)
    return found | {"l2": penalties[best], "validation_top1": dict(zip(map(str, penalties), scores, strict=True))}


def knn_probe(train: Features, test: Features, num_classes: int, held: HoldOut, k: Sequence[int] = K) -> dict[str, Any]:
    """Accuracy of a majority vote of nearest neighbours (Euclidean): `top1` in percent, its interval, and the k chosen.

    A k beyond the number of images to vote is left out.
    """
    counts = sorted(count for count in k if count <= len(held.learn)) or [1]
    learn, labels = train.values[held.learn], train.labels
    rows, _ = neighbours(train.values[held.choose], learn, counts[-1])
    voters = labels[held.learn][rows]
    scores = [_top1(vote(voters[:, :count], num_classes), labels[held.choose]) for count in counts]
    best = counts[int(np.argmax(scores))]
    rows, _ = neighbours(test.values, train.values, best)
    found = _outcome(vote(labels[rows], num_classes), test.labels)
    return found | {"k": best, "validation_top1": dict(zip(map(str, counts), scores, strict=True))}


def fine_tune(
    network: TrainedNetwork, images: ImageSet, settings: Config, out: Path | None = None, world: World = SINGLE_PROCESS
) -> dict[str, Any]:
    """Train the network with a fresh classifier on a target: SGD, one cosine, the accuracy after the last epoch.

    Args:
        settings: epochs, lr, batch size, seed and machine; the rest follows from the network.
        out: keeps the run folder there, and continues one found there; else it is temporary.
        world: processes that share the training.

    Raises:
        UsageError: the weights or a setting cannot make a run, or the processes cannot share a step.
        RunError: training cannot go on.
    """
    from seal_fast.train import run

    batch_size = min(settings.batch_size, len(images.train))
    if world.size > 1 and (batch_size % world.size or batch_size < 2 * world.size):
        raise UsageError(
            f"--fine-tune trains on {images.name} in steps of {batch_size} images, which {world.size} processes cannot "
            "share equally: start fewer with --nproc-per-node"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # training prints; stdout is for results
        parent = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seal_fast-")))
        name = f"{network.name}-{identity(network)['weights_sha256'][:8]}-{images.name}".replace(" ", "-")
        config = replace(
            settings,
            method="restart",
            generations=1,
            warmup_epochs=0,
            model=network.model,
            width=network.width,
            stem=network.stem,
            layer_threshold="fc",  # every network has a classifier; all layers are trained alike
            image_size=settings.image_size or network.image_size,
            data=images.source,
            init_weights=network.weights,
            init_fc=False,
            batch_size=batch_size,
            sync_batchnorm=True,  # so that the number of processes does not matter
            label_smoothing=0.0,
            eval_every=settings.epochs,
            keep="none",
            out=parent / name,
        )
        last = run(config)["last"]
    return {"top1": last["val_top1"], "epochs": settings.epochs, "lr": settings.lr}


def _top1(predicted: Tensor, labels: Tensor) -> float:
    return 100 * (predicted == labels).double().mean().item()


def _outcome(predicted: Tensor, labels: Tensor) -> dict[str, Any]:
    share = percent(int((predicted == labels).sum()), len(labels))
    return {"top1": share.mean, "interval": share.json()}
