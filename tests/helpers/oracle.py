"""A slow training oracle in float64: the methods' semantics written out literally, with nothing of the trainer in it.

Loops, momentum buffers and signs are spelled out per method, as the papers and their released code describe them. Only
the network's forward pass and the numbers that a re-initialisation draws are the package's (both are tested elsewhere).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Recipe:
    method: str
    generations: int
    epochs: int
    ascent_epochs: int
    warmup_epochs: int
    threshold: str
    batch_size: int
    lr: float = 0.1
    scale: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ascent_weight_decay: float = 0.0
    label_smoothing: float = 0.1


def train(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, redraw: Callable[[str, int], Tensor]
) -> dict[str, Tensor]:
    """Train in place on the images in their order, unaugmented; returns the state dict and the momentum buffers."""
    r = recipe
    names = [name for name, _ in model.named_parameters()]
    parameters = dict(model.named_parameters())
    first_late = next(i for i, name in enumerate(names) if name.startswith(r.threshold + "."))
    early = set(names[:first_late])
    buffers = {name: torch.zeros_like(p) for name, p in parameters.items()}
    model.train()

    generations, epochs = (1, r.epochs * r.generations) if r.method == "long" else (r.generations, r.epochs)
    for g in range(generations):
        if g >= 1:
            for name in names:
                buffers[name].zero_()
            if r.method in ("llf", "seal+llf"):
                for name in names:
                    if name not in early and parameters[name].ndim in (2, 4):
                        parameters[name].data.copy_(redraw(name, g))
        for e in range(epochs):
            ascending = g >= 1 and e < r.ascent_epochs and r.method not in ("llf", "restart", "long")
            if g >= 1 and e == r.ascent_epochs and r.method not in ("llf", "restart", "long"):
                for name in names:
                    buffers[name].zero_()
            if e < r.warmup_epochs:
                lr = r.lr * (e + 1) / r.warmup_epochs
            else:
                lr = r.lr / 2 * (1 + math.cos(math.pi * (e - r.warmup_epochs) / (epochs - r.warmup_epochs)))

            for start in range(0, len(images), r.batch_size):
                x, y = images[start : start + r.batch_size], labels[start : start + r.batch_size]
                loss = F.cross_entropy(model(x), y, label_smoothing=r.label_smoothing)
                gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
                for name, gradient in zip(names, gradients, strict=True):
                    p = parameters[name].data
                    up, frozen = False, False
                    if ascending:
                        is_early = name in early
                        up = {
                            "seal": is_early,
                            "seal+llf": is_early,
                            "freeze-late": is_early,
                            "reverse": not is_early,
                            "reverse-keep-fc": not is_early and not name.startswith("fc."),
                            "ascend-all": True,
                        }[r.method]
                        frozen = r.method == "freeze-late" and not is_early
                    decay = r.ascent_weight_decay if up else r.weight_decay
                    if frozen:
                        continue
                    buffers[name].mul_(r.momentum).add_(gradient + decay * p)
                    p += r.scale * lr * buffers[name] if up else -lr * buffers[name]
    return {**model.state_dict(), **{f"momentum.{name}": b for name, b in buffers.items()}}
