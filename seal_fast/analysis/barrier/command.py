"""`python -m seal_fast barrier`: barriers of the loss between networks, as a table, plots and JSON."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from seal_fast.analysis.barrier import plots
from seal_fast.analysis.barrier.align import channel_axes, matched, permuted
from seal_fast.analysis.barrier.compute import Batches, Point, height, line, plane
from seal_fast.analysis.common.earlier import BETWEEN, KINDS, partners
from seal_fast.analysis.common.figures import FigureAnalysis, number
from seal_fast.analysis.common.images import ImageAnalysis
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.data import ImageSet, Split
from seal_fast.models import ResNet
from seal_fast.utils.errors import RunError, UsageError

_log = logging.getLogger("seal_fast")


class Barrier(ImageAnalysis, FigureAnalysis):
    """The straight lines to a network from others: earlier checkpoints of its run, and other runs."""

    name = "barrier"
    description = (
        "Loss and accuracy on the straight line between two networks (Frankle et al., ICML 2020), BatchNorm statistics "
        "recomputed at every point: between the networks named and, with --per-generation, between consecutive "
        "generations and across the ascents of each run, and between the runs' last checkpoints."
    )
    least = {"points": 3, "images": 2, "batch_size": 2, "plane": 2}
    networks_needed = 2
    plot = staticmethod(plots.draw)

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[tuple[Any, ...], tuple[TrainedNetwork, dict[str, dict[str, list[float]]]]] = {}
        self.ends: dict[tuple[Any, ...], Point] = {}

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--data", help="data set of the networks' own classes; default: the run's")
        add("--points", type=int, default=11, help="points on each line, ends included; default: 11")
        add("--images", type=int, default=1000, help="images of each split at most, evenly spaced; default: 1000")
        add("--plane", type=int, metavar="N", help="also N x N points in the plane through the first three networks")
        add("--align", action="store_true", help="permute the channels of other runs' ResNets to match first")
        add("--amp", action="store_true", help="run the network under bfloat16 autocast")

    def open(self) -> None:
        """Find the lines to measure.

        Raises:
            UsageError: there are none, or there are several processes.
        """
        if self.world.size > 1:
            raise UsageError("barrier runs in one process: start it without torchrun")
        self.others = {
            weights: [one for one in found if one.kind != KINDS["start"]]
            for weights, found in partners(self.networks).items()
        }
        if self.flags.plane and len(self.networks) < 3:
            raise UsageError(f"--plane {self.flags.plane}: needs three networks; name more runs, or --per-generation")
        if not any(self.others.values()):
            raise UsageError("barrier: there is no second network; name several runs, or use --per-generation")

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """The height of the barriers by kind of line and split, and the lines themselves."""
        flags = self.flags
        images, train = self.training_images(network, None, "--images")
        splits = {"train": train.spread(flags.images), "val": images.val.spread(flags.images)}
        shown: dict[str, Batches] = {}
        lines = []
        model = self.load(network)
        after = {name: p.clone() for name, p in model.named_parameters()}
        for kind, other, _ in self.others[network.weights]:
            if not shown:
                shown = {name: self._decode(network, images, split) for name, split in splits.items()}
            data = images.fingerprint, network.image_size, len(train)
            make = partial(self._line, network, other, kind, (model, after), data, shown)
            if found := self.attempt(other, make):
                lines.append({"kind": kind, "from": other.name, "splits": found})
        third = self.flags.plane and network is self.networks[2]
        if third and not shown:
            shown = {name: self._decode(network, images, split) for name, split in splits.items()}
        found = self.attempt(network, lambda: self._plane(shown)) if third else None
        extra = {"plane": found} if found else {}
        figures: dict[str, dict[str, dict[str, float]]] = {}
        for kind in dict.fromkeys(one["kind"] for one in lines):
            for split in splits:
                found = [one["splits"][split] for one in lines if one["kind"] == kind]
                loss = [height(one["loss"]) for one in found]
                top1 = [height([-value for value in one["top1"]]) for one in found]
                means = {"loss barrier": sum(loss) / len(loss), "top-1 barrier (%)": sum(top1) / len(top1)}
                figures[f"{kind}, {split}"] = {name: number(value) for name, value in means.items()}
        protocol = {
            "images": {name: len(split) for name, split in splits.items()},
            "batch_size": flags.batch_size,
            "points": flags.points,
            "loss": "cross entropy, without label smoothing",
            "batchnorm": "recomputed at each point on the training images",
            **({"aligned": "by weight matching"} if flags.align else {}),
            "between": sorted({n.name for found in self.others.values() for k, n, _ in found if k in BETWEEN}),
        }
        return self.result(network, images, protocol, figures=figures, lines=lines, **extra)

    def _line(
        self,
        network: TrainedNetwork,
        other: TrainedNetwork,
        kind: str,
        loaded: tuple[nn.Module, dict[str, Tensor]],
        data: tuple[Any, ...],
        shown: dict[str, Batches],
    ) -> dict[str, dict[str, list[float]]] | None:
        """From `other` to `network`, which is loaded; measured once for both directions; None where there is none."""
        key = frozenset((network.weights.resolve(), other.weights.resolve())), data
        if key not in self.lines:
            runtime, (model, after) = self.runtime, loaded
            before = dict(self.load(other).named_parameters())
            if _shapes(before) != _shapes(after):
                _log.warning("%s and %s have different parameters: no line joins them", other.name, network.name)
                return None
            if self.flags.align and kind in BETWEEN:
                if type(model) is not ResNet:
                    raise UsageError(f"--align: {network.name} is of {network.model}; it knows resnet18, -34 and -50")
                axes = channel_axes(model)
                before = permuted(before, axes, matched(before, after, axes))
            total = self.flags.points
            progress = partial(self.progress, total=total, what="points", before=f"from {other.name}: ")
            keys = [(one.weights.resolve(), data) for one in (other, network)]
            settings = shown["train"], shown, runtime.autocast, progress, [self.ends.get(end) for end in keys]
            found = line(model, before, after, total, *settings)
            if not all(math.isfinite(value) for split in found.values() for value in split["loss"]):
                raise RunError(f"the loss between {other.name} and {network.name} is not finite: one of them diverged")
            self.lines[key] = other, found
            for end, at in zip(keys, (0, -1), strict=True):
                self.ends[end] = {name: (one["loss"][at], one["top1"][at]) for name, one in found.items()}
        first, found = self.lines[key]
        if first is other:
            return found
        return {split: {name: values[::-1] for name, values in one.items()} for split, one in found.items()}

    def _plane(self, shown: dict[str, Batches]) -> dict[str, Any]:
        """The plane through the first three networks, and their names."""
        three = self.networks[:3]
        models = [self.load(network) for network in three]
        corners = [{name: p.clone() for name, p in model.named_parameters()} for model in models]
        if any(_shapes(corner) != _shapes(corners[0]) for corner in corners):
            raise UsageError("--plane: the first three networks have different parameters: no plane holds them")
        progress = partial(self.progress, total=self.flags.plane**2, what="points", before="plane: ")
        found = plane(models[0], corners, self.flags.plane, shown["train"], shown, self.runtime.autocast, progress)
        return {"networks": [network.name for network in three], **found}

    def _decode(self, network: TrainedNetwork, images: ImageSet, split: Split) -> Batches:
        return [(pixels.clone(), labels.clone()) for pixels, labels in self.batches(network, images, split)]

    def title(self, protocol: dict[str, Any]) -> str:
        aligned = "; other runs' channels permuted to match" * ("aligned" in protocol)
        counts = " and ".join(f"{count:,} {name} images" for name, count in protocol["images"].items())
        return (
            f"barriers on straight lines of {protocol['points']} points between networks: the most that the "
            f"loss exceeds, and top-1 falls below, the line between the ends\n{protocol['data']}: {counts}; loss: "
            f"{protocol['loss']}; BatchNorm statistics {protocol['batchnorm']}{aligned}; "
            "intervals: 95 %, over seeds Student's t"
        )


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}
