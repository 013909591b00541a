"""Curvature while training: the ends of the Hessian's spectrum at the end of a phase, as `--hessian-every` asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seal_fast.analysis.hessian.lanczos import lanczos
from seal_fast.analysis.hessian.operator import HessianOperator
from seal_fast.analysis.hessian.ritz import NotConverged
from seal_fast.analysis.images import batches, choose
from seal_fast.config import Config
from seal_fast.data import ImageSet
from seal_fast.models import ResNet

TOLERANCE = 1e-2  # relative: a curve over generations needs no more


class Curvature:
    """Measures a network in training and leaves it, its statistics and the random generators as they are.

    The largest and the most negative eigenvalue of the Hessian of the training loss (label smoothing, without weight
    decay) over fixed training images, evenly spaced over the sorted paths, not augmented, with BatchNorm in eval mode:
    what `python -m seal_fast hessian RUN --top 1 --bottom 1 --spread --images N` gives for the weights of that moment.

    Args:
        config: the run's.
        images: its data set.
        image_size: pixels a side.
        device: where the network is.
    """

    def __init__(self, config: Config, images: ImageSet, image_size: int, device: torch.device) -> None:
        count = min(config.hessian_images, len(images.train))
        self.images, self.chosen = images, choose(images, "train", count, spread=True)
        self.smoothing = config.label_smoothing
        self.settings = {
            "image_size": image_size,
            "batch_size": min(count, config.batch_size),  # takes no more memory than a step
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
        parts = list(batches(self.images, self.chosen, **self.settings))
        operator = HessianOperator(model, self._loss, parts)
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

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
