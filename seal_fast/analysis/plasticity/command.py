"""`python -m seal_fast plasticity`: dormant units and effective rank of trained networks, by layer."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seal_fast.analysis.common.figures import FigureAnalysis, number
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.processes import gathered, rows_of
from seal_fast.analysis.depth.probes import probe_modules
from seal_fast.analysis.plasticity import plots
from seal_fast.analysis.plasticity.compute import dormant, effective_rank, outputs
from seal_fast.data.batches import batches
from seal_fast.utils.errors import RunError

ALL = "all layers"


def main(argv: Sequence[str]) -> int:
    """Run the command; see `Analysis.run`."""
    return Plasticity().run(argv)


class Plasticity(FigureAnalysis):
    """The outputs of the network's blocks on its training images."""

    name = "plasticity"
    description = (
        "Share of dormant units (Sokar et al., ICML 2023) and effective rank of the features (Roy and Vetterli, 2007) "
        "after each block, on training images, not augmented."
    )
    least = {"images": 1, "tau": 0}

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's own flags."""
        add = parser.add_argument
        add("--data", help="data set of the network's own classes; default: the run's")
        add("--images", type=int, default=2000, help="training images at most, evenly spaced; default: 2000")
        help = "a unit is dormant below this share of its layer's mean activity; default: 0.025"
        add("--tau", type=float, default=0.025, help=help)
        add("--amp", action="store_true", help="run the network under bfloat16 autocast")

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """The figures of each block, and the dormant share of all their units."""
        flags, world, runtime = self.flags, self.world, self.runtime
        images, train = self.training_images(network, None, "--data")
        split = train.spread(flags.images)
        own = split.take(rows_of(len(split), flags.batch_size, world.rank, world.size))
        model = world.run_on_all(lambda: network.load(runtime.device, runtime.dtype))
        settings = {"image_size": network.image_size, "batch_size": flags.batch_size, "threads": flags.threads}
        settings |= {"device": runtime.device, "dtype": runtime.dtype}

        def forward() -> dict[str, tuple[Tensor, Tensor]]:
            shown = batches(images, own if len(own) else split.take([0]), **settings)  # one, for the layers' widths
            found = outputs(model, probe_modules(model), (pixels for pixels, _ in shown), runtime.autocast)
            return {
                layer: (activity[: len(own)], features[: len(own)]) for layer, (activity, features) in found.items()
            }

        parts = world.run_on_all(forward)
        figures, idle, units = {}, 0, 0
        for layer, pair in parts.items():
            activity, features = (gathered(part, len(split), flags.batch_size, world) for part in pair)
            if not torch.isfinite(activity).all():
                raise RunError(f"{network.weights} gives NaN or infinite activations: its training diverged")
            found = dormant(activity, flags.tau)
            idle, units = idle + int(found.sum()), units + len(found)
            rank = effective_rank(features)
            share = 100 * float(found.double().mean())
            figures[layer] = {"dormant units (%)": number(share), "effective rank": number(rank)}
        figures[ALL] = {"dormant units (%)": number(100 * idle / units)}
        return {
            "protocol": {
                "data": images.name,
                "data_sha256": images.fingerprint,
                "image_size": network.image_size,
                "images": len(split),
                "tau": flags.tau,
            },
            "skipped_images": {images.name: list(images.skipped)},
            "figures": figures,
        }

    def title(self, result: dict[str, Any]) -> str:
        """The images and the threshold."""
        protocol = result["protocol"]
        return (
            f"plasticity on {protocol['images']:,} training images of {protocol['data']}, after each block; a unit is "
            f"dormant at {protocol['tau']:g} of its layer's mean activity or less\nintervals: 95 %, over seeds "
            "Student's t"
        )

    def plot(self, results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
        """The profile over layers, and curves over stages."""
        plots.draw(results, path)
