"""Curvature while training: the ends of the Hessian's spectrum at the end of a phase, as `--hessian-every` asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from seal_fast.config import Config
from seal_fast.curvature.lanczos import lanczos
from seal_fast.curvature.operator import HessianOperator
from seal_fast.curvature.ritz import NotConverged
from seal_fast.data import ImageSet
from seal_fast.data.batches import batches, choose
from seal_fast.distributed.world import SINGLE_PROCESS, World
from seal_fast.models import ResNet

TOLERANCE = 1e-2  # relative: a curve over generations needs no more


class Curvature:
    """Measures a network in training and leaves it, its statistics and the random generators as they are.

    Several processes share the images.

    The largest and the most negative eigenvalue of the Hessian of the training loss (label smoothing, without weight
    decay) over fixed training images, evenly spaced over the sorted paths, not augmented, with BatchNorm in eval mode:
    what `python -m seal_fast hessian RUN --top 1 --bottom 1 --spread --images N` gives for the weights of that moment.

    Args:
        config: the run's.
        images: its data set.
        image_size: pixels a side.
        device: where the network is.
        world: the processes of the run.
    """

    def __init__(
        self, config: Config, images: ImageSet, image_size: int, device: torch.device, world: World = SINGLE_PROCESS
    ) -> None:
        count = min(config.hessian_images, len(images.train))
        own = range(count * world.rank // world.size, count * (world.rank + 1) // world.size)
        self.images, self.chosen = images, choose(images, "train", count, spread=True).take(own)
        self.world = world
        self.smoothing = config.label_smoothing
        self.settings = {
            "image_size": image_size,
            # takes no more memory than a step
            "batch_size": min(count, max(1, config.batch_size // (world.size * config.accumulate))),
            "device": device,
            "dtype": getattr(torch, config.dtype),
            "threads": torch.get_num_threads(),
        }

    def __call__(self, model: ResNet, stop: Callable[[], bool]) -> dict[str, Any]:
        """A row's entries: hessian_top, _bottom, _loss, _hvps, _converged and _seconds.

        Args:
            model: in training or eval mode; it keeps that mode.
            stop: asked after every product; once it says True, the entries are of no use.

        Raises:
            RunError: an image cannot be decoded, or the loss is not finite.
        """
        begin = time.perf_counter()
        parts = self.world.run_on_all(self._decoded)
        reduce = dist.all_reduce if self.world.size > 1 else None
        operator = HessianOperator(model, self._loss, parts, reduce=reduce)
        try:
            found = lanczos(operator, 1, 1, tol=TOLERANCE, watch=lambda *_: stop())
        except NotConverged as trouble:
            found = trouble.spectrum
        return {
            "hessian_top": next(iter(found.top.values), None),  # a stop after the first product leaves one end empty
            "hessian_bottom": next(iter(found.bottom.values), None),
            "hessian_loss": operator.loss_value,
            "hessian_hvps": found.hvps,
            "hessian_converged": found.converged,
            "hessian_seconds": time.perf_counter() - begin,
        }

    def _decoded(self) -> list[tuple[Tensor, Tensor]]:
        return list(batches(self.images, self.chosen, **self.settings)) if len(self.chosen) else []

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
