"""The slim network of KELS: the channels that every generation keeps, as a network of its own.

Source: Taha et al., arXiv 2103.05152 (the fit hypothesis of a split by kernels).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from seal_fast.config import Config
from seal_fast.models import Network, build
from seal_fast.training import checkpoint, evaluation
from seal_fast.training.step import forward_and_loss

if TYPE_CHECKING:
    from seal_fast.training.trainer import Trainer


class Slim:
    """Evaluates and saves the first channels of a network at every generation's end.

    Attributes:
        network: of the kept channels; its values are those of the last call.
        width: its factor on the channels, as --width takes it.
    """

    def __init__(self, network: nn.Module, width: float) -> None:
        self.network, self.width = network.eval(), width

    @torch.no_grad()
    def __call__(self, trainer: Trainer) -> dict[str, float]:
        """The row's columns at a generation's end; NaN logits are misses."""
        whole, config, runtime = trainer.state.model.state_dict(), trainer.config, trainer.runtime
        for name, value in self.network.state_dict().items():
            value.copy_(whole[name][tuple(map(slice, value.shape))])

        def sums_of(images: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
            return forward_and_loss(self.network, runtime, config.label_smoothing, {}, images, labels, valid)[1]

        _, top1, top5, images = evaluation.totals(trainer, "val", sums_of)
        if config.keep != "none" and trainer.world.is_main:
            file = trainer.folder.weights(f"generation-{trainer.state.position.generation}-slim")
            metadata = trainer.metadata | {"width": f"{self.width:g}"}
            checkpoint.save_tensors(file, checkpoint.dense(self.network.state_dict()), metadata)
        return {"val_slim_top1": 100 * top1 / images, "val_slim_top5": 100 * top5 / images}


def slim_network(model: nn.Module, config: Config, num_classes: int, keep: float) -> Slim | None:
    """The slim network of `model`, or None where --width makes no network of exactly the channels kept.

    `model` is of the configuration's --width; `keep` the share of its channels that the mask leaves alone, rounded up.
    """
    if not (isinstance(model, Network) and model.nested):
        return None
    width = config.width * keep
    network = build(config.model, num_classes, stem=config.stem, width=width)
    kept, first = {}, next(iter(whole := model.state_dict()))
    for name, value in whole.items():
        shape = list(value.shape)
        for at in range(int(name.startswith("fc.")), min(1 if name == first else 2, value.ndim)):
            shape[at] = math.ceil(round(keep * shape[at], 6))
        kept[name] = shape
    if kept != {name: list(value.shape) for name, value in network.state_dict().items()}:
        return None
    p = next(model.parameters())
    network.to(p.device, p.dtype).to(memory_format=torch.channels_last)
    return Slim(network, width)
