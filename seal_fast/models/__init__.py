"""The networks, by name."""

from __future__ import annotations

import torch

from seal_fast.models.init import bias_uniform_, fan_in, generator, he_normal_, initialise_
from seal_fast.models.resnet import MODELS, ResNet, Stem, resnet18, resnet34, resnet50
from seal_fast.models.sync_batchnorm import Link, synchronise_
from seal_fast.models.weights import load_weights
from seal_fast.utils.errors import UsageError

__all__ = [
    "Link",
    "MODELS",
    "ResNet",
    "Stem",
    "bias_uniform_",
    "build",
    "fan_in",
    "generator",
    "he_normal_",
    "initialise_",
    "load_weights",
    "resnet18",
    "resnet34",
    "resnet50",
    "synchronise_",
]


def build(name: str, num_classes: int, stem: Stem = "imagenet", seed: int = 0) -> ResNet:
    """A float32 model on the CPU whose initial weights depend on `seed` and the parameters' names alone.

    Args:
        name: a key of `MODELS`: resnet18, resnet34 or resnet50.
        num_classes: outputs of the last linear layer.
        stem: `imagenet` (7x7 conv of stride 2, max-pool) or `small` (3x3 conv, no pool; for small images).
        seed: seeds the initial weights; the global random state is neither read nor changed.

    Raises:
        UsageError: unknown model or stem.
    """
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    # Built on the meta device, the layers skip their own random initialisation.
    with torch.device("meta"):
        model = MODELS[name](num_classes, stem)
    model.to_empty(device="cpu")
    initialise_(model, seed)
    return model
