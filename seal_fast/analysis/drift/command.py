"""`python -m seal_fast drift`: how far the weights of runs travel, as a table, plots and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from seal_fast.analysis.common.earlier import KINDS, earlier
from seal_fast.analysis.common.figures import FigureAnalysis, number
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.drift import plots
from seal_fast.analysis.drift.compute import compare, layers, moves, norm, scale_free
from seal_fast.models.order import group_names
from seal_fast.utils.errors import UsageError

GROUPS = ("early", "late", "all")


class Drift(FigureAnalysis):
    """The weights of every kept checkpoint, against earlier ones of its run."""

    name = "drift"
    description = (
        "How far weights travel between the kept checkpoints of runs: distance, cosine and angle of filters from the "
        "first kept checkpoint, across a generation and across an ascent, by group and layer. Reads no images."
    )
    every_generation = True
    plot = staticmethod(plots.draw)

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[Path, nn.Module] = {}  # networks that the last checkpoint was compared with

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        help = "first layer of the late group; default: the run's"
        parser.add_argument("--layer-threshold", help=help)

    def check(self) -> None:
        """Every kept checkpoint is read."""
        if self.flags.stage != "last":
            raise UsageError(f"--stage {self.flags.stage}: {self.name} reads all checkpoints kept; drop the flag")
        self.flags.per_generation = True

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """The figures of each group, and those of each layer in `layers`."""
        assert network.config
        others = earlier(network, self.networks)
        needed = {one.weights: one for one in (network, *others.values())}
        self.held = {file: self.held.get(file) or one.load() for file, one in needed.items()}
        model, weights = self.held[network.weights], dict(self.held[network.weights].named_parameters())
        threshold = self.flags.layer_threshold or network.config.layer_threshold
        groups = {group: group_names(model, group, threshold) for group in GROUPS}
        filters = set(scale_free(model))
        figures = {group: {"norm": number(norm(weights, names))} for group, names in groups.items()}
        before = {
            kind: moves(dict(self.held[other.weights].named_parameters()), weights, filters)
            for kind, other in others.items()
        }
        for kind, moved in before.items():
            for group, names in groups.items():
                found = compare(moved, names)
                figures[f"{KINDS[kind]}, {group}"] = {name: number(value) for name, value in found.items()}
        return {
            "protocol": {
                "layer_threshold": threshold,
                "parameters": {group: sum(weights[name].numel() for name in names) for group, names in groups.items()},
                "start": others["start"].stage if "start" in others else network.stage,
            },
            "skipped_images": {},
            "from": {kind: other.stage for kind, other in others.items()},
            "figures": figures,
            "layers": {
                layer: {"norm": norm(weights, names)} | {kind: compare(moved, names) for kind, moved in before.items()}
                for layer, names in layers(model).items()
            },
        }

    def title(self, protocol: dict[str, Any]) -> str:
        counts = ", ".join(f"{group} {count:,}" for group, count in protocol["parameters"].items())
        return (
            f"travel of the weights; the start is {protocol['start']}, the late group begins with "
            f"{protocol['layer_threshold']}\nparameters: {counts}; intervals: 95 %, over seeds Student's t"
        )
