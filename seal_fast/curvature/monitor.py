"""Curvature while training: the ends of the Hessian's spectrum at the end of a phase, as `--hessian-every` asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from seal_fast.config import Config
from seal_fast.curvature.lanczos import lanczos
from seal_fast.curvature.operator import HessianOperator
from seal_fast.curvature.ritz import NotConverged
from seal_fast.data import ImageSet
from seal_fast.data.batches import batches, choose
from seal_fast.distributed.world import SINGLE_PROCESS, World

TOLERANCE = 1e-2  # relative


class Curvature:
    """Measures a network in training without changing it, its statistics or the random generators.

    Each process takes its part of the images.

    The largest and the most negative eigenvalue of the Hessian of the training loss (label smoothing, without weight
    decay) over fixed training images, evenly spaced over the sorted paths, not augmented, with BatchNorm in eval mode:
    what `python -m seal_fast hessian RUN --top 1 --bottom 1 --images N` gives for the same weights.
    """

    def __init__(
        self, config: Config, images: ImageSet, image_size: int, device: torch.device, world: World = SINGLE_PROCESS
    ) -> None:
        count = min(config.hessian_images, len(images.train))
        shard = range(count * world.rank // world.size, count * (world.rank + 1) // world.size)
        self.images, self.chosen = images, choose(images, "train", count, spread=True).take(shard)
        self.world = world
        self.loss = partial(F.cross_entropy, label_smoothing=config.label_smoothing)
        self.settings = {
            "image_size": image_size,
            # of no more memory than a training step
            "batch_size": min(count, max(1, config.batch_size // (world.size * config.accumulate))),
            "device": device,
            "dtype": getattr(torch, config.dtype),
            "threads": torch.get_num_threads(),
        }

    def __call__(self, model: nn.Module, stop: Callable[[], bool]) -> dict[str, Any]:
        """A row's entries: hessian_top, _bottom, _loss, _hvps, _converged and _seconds.

        Args:
            model: in training or eval mode; it keeps that mode.
            stop: called after every product; True ends the measurement, whose entries are then not to be used.

        Raises:
            RunError: an image cannot be decoded, or the loss is not finite.
        """
        begin = time.perf_counter()
        parts = self.world.run_on_all(lambda: list(batches(self.images, self.chosen, **self.settings)))
        reduce = dist.all_reduce if self.world.size > 1 else None
        operator = HessianOperator(model, self.loss, parts, reduce=reduce)
        try:
            spectrum = lanczos(operator, 1, 1, tol=TOLERANCE, watch=lambda *_: stop())
        except NotConverged as error:
            spectrum = error.spectrum
        return {
            "hessian_top": next(iter(spectrum.top.values), None),  # after one product one end is empty
            "hessian_bottom": next(iter(spectrum.bottom.values), None),
            "hessian_loss": operator.loss_value,
            "hessian_hvps": spectrum.hvps,
            "hessian_converged": spectrum.converged,
            "hessian_seconds": time.perf_counter() - begin,
        }
