"""`python -m seal_fast plasticity`: dormant units, effective rank, gradients and sign changes, by layer."""

from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seal_fast.analysis.common.earlier import KINDS, earlier
from seal_fast.analysis.common.figures import FigureAnalysis, number
from seal_fast.analysis.common.images import ImageAnalysis
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.depth.probes import parameters_by_block, probe_modules
from seal_fast.analysis.drift.compute import layers, norm
from seal_fast.analysis.plasticity import plots
from seal_fast.analysis.plasticity.compute import dormant, effective_rank, gradient, reading, sign_changes
from seal_fast.utils.errors import RunError

ALL = "all layers"


class Plasticity(ImageAnalysis, FigureAnalysis):
    """The outputs of the network's blocks on its training images, and the gradients and signs of their weights."""

    name = "plasticity"
    description = (
        "Share of dormant units (Sokar et al., ICML 2023) and effective rank of the features (Roy and Vetterli, 2007) "
        "after each block, and the gradient of the loss by block, on training images, not augmented; with "
        "--per-generation the share of weights that change their sign."
    )
    batch_size = 128
    least = {"images": 1, "tau": 0}
    plot = staticmethod(plots.draw)

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--data", help="data set of the network's own classes; default: the run's")
        add("--images", type=int, default=2000, help="training images at most, evenly spaced; default: 2000")
        help = "a unit is dormant below this share of its layer's mean activity; default: 0.025"
        add("--tau", type=float, default=0.025, help=help)
        add("--amp", action="store_true", help="run the network under bfloat16 autocast")

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """The figures of each block, of what lies before and after them, and of all; `layers` holds every layer."""
        flags, world, runtime = self.flags, self.world, self.runtime
        images, train = self.training_images(network, None, "--data")
        split = train.spread(flags.images)
        own = self.share(split)
        model = self.load(network).requires_grad_()
        modules = probe_modules(model)
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]
        loss = partial(F.cross_entropy, label_smoothing=network.label_smoothing)

        def read() -> dict[str, tuple[Tensor, Tensor]]:
            some = own if len(own) else split.take([0])  # one, for the layers' widths
            with reading(modules) as found:
                for pixels, labels in self.batches(network, images, some):
                    for total, part in zip(sums, gradient(model, loss, pixels, labels, runtime.autocast), strict=True):
                        total.add_(part, alpha=len(labels) if len(own) else 0)
            return {
                layer: (torch.cat([a for a, _ in some])[: len(own)], torch.cat([f for _, f in some])[: len(own)])
                for layer, some in found.items()
            }

        parts = world.run_on_all(read)
        blocks = parameters_by_block(model, modules)
        figures: dict[str, dict[str, dict[str, float]]] = {name: {} for name in dict.fromkeys([*blocks, *modules, ALL])}
        idle, units = 0, 0
        for layer, pair in parts.items():
            activity, features = (self.gathered(part, split) for part in pair)
            if not torch.isfinite(activity).all():
                raise RunError(f"{network.weights} gives NaN or infinite activations: its training diverged")
            found = dormant(activity, flags.tau)
            idle, units = idle + int(found.sum()), units + len(found)
            rank = effective_rank(features)
            share = 100 * float(found.double().mean())
            figures[layer] |= {"dormant units (%)": number(share), "effective rank": number(rank)}
        figures[ALL]["dormant units (%)"] = number(100 * idle / units)
        names = [name for name, _ in model.named_parameters()]
        gradients = {name: world.sum(total) / len(split) for name, total in zip(names, sums, strict=True)}
        weights = {name: p.detach().cpu() for name, p in model.named_parameters()}
        before = {
            kind: dict(other.load(dtype=runtime.dtype).named_parameters())
            for kind, other in earlier(network, self.networks).items()
        }
        for block, inside in (blocks | {ALL: names}).items():
            length = norm(gradients, inside)
            if not math.isfinite(length):
                raise RunError(f"{network.weights} gives a NaN or infinite gradient: its training diverged")
            figures[block]["gradient norm"] = number(length)
            for kind, then in before.items():
                figures[block][f"sign changes {KINDS[kind]} (%)"] = number(sign_changes(then, weights, inside))
        by_layer: dict[str, dict[str, Any]] = {}
        for layer, inside in layers(model).items():
            by_layer[layer] = {"gradient norm": norm(gradients, inside)}
            for kind, then in before.items():
                by_layer[layer][KINDS[kind]] = {"sign changes (%)": sign_changes(then, weights, inside)}
        smoothed = f"cross entropy, label smoothing {network.label_smoothing:g}, without weight decay"
        protocol = {"images": len(split), "tau": flags.tau, "loss": smoothed}
        return self.result(network, images, protocol, figures=figures, layers=by_layer)

    def title(self, protocol: dict[str, Any]) -> str:
        return (
            f"plasticity on {protocol['images']:,} training images of {protocol['data']}, after each block; a unit is "
            f"dormant at {protocol['tau']:g} of its layer's mean activity or less\nloss: {protocol['loss']}; "
            "intervals: 95 %, over seeds Student's t"
        )
