"""`python -m seal_fast sharpness`: how fast the training loss rises around the weights, as a table, plots and JSON."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.analysis.common.figures import FigureAnalysis, number
from seal_fast.analysis.common.images import ImageAnalysis
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.depth.probes import parameters_by_block, probe_modules
from seal_fast.analysis.hessian.compute import Figures, Watcher, check_solver, measure
from seal_fast.analysis.sharpness import plots
from seal_fast.analysis.sharpness.compute import Batch, Landscape, Loss, Reach, average_case, worst_case
from seal_fast.analysis.sharpness.plots import WHOLE
from seal_fast.curvature.operator import HessianOperator
from seal_fast.distributed.world import on_all_ranks
from seal_fast.runs.stats import Interval, student
from seal_fast.utils.errors import RunError, UsageError

Sections = dict[str, dict[str, dict[str, float]]]


class Sharpness(ImageAnalysis, FigureAnalysis):
    """The loss near the weights, over fixed training images."""

    name = "sharpness"
    description = (
        "Sharpness of the training loss: its rise within a radius (SAM) and under noise, both also relative to each "
        "weight (adaptive); the largest Hessian eigenvalue of the whole network and of each block, the trace, and the "
        "share of the gradient in the top eigenspace. Over fixed, not augmented training images."
    )
    batch_size = 128
    least = {"images": 1, "rho": 0, "adaptive_rho": 0, "noise": 0, "adaptive_noise": 0, "ascent_steps": 1, "draws": 2}
    least = least | {"top": 1, "probes": 2, "max_hvps": 1}
    image_flags = {"images": True}
    plot = staticmethod(plots.draw)

    def __init__(self) -> None:
        super().__init__()
        self.watcher = Watcher()

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        several: dict[str, Any] = {"type": float, "nargs": "+", "metavar": "R"}
        add("--data", help="data set; default: the run's")
        add("--images", type=int, default=128, help="training images, evenly spaced; default: 128")
        add("--rho", default=[0.05, 0.1], help="radii of SAM; default: 0.05 0.1", **several)
        add("--adaptive-rho", default=[0.5, 1.0], help="radii relative to the weights; default: 0.5 1", **several)
        add("--ascent-steps", type=int, default=3, help="gradient steps to the worst case; default: 3")
        add("--noise", default=[0.001, 0.002], help="standard deviations of noise; default: 0.001 0.002", **several)
        help = "standard deviations of noise relative to each weight; default: 0.05 0.1"
        add("--adaptive-noise", default=[0.05, 0.1], help=help, **several)
        add("--draws", type=int, default=3, help="draws of the noise; default: 3")
        add("--top", type=int, default=5, help="dimensions of the top eigenspace; default: 5")
        add("--tol", type=float, default=1e-2, help="relative error of eigenvalues; default: 1e-2")
        add("--max-hvps", type=int, help="products to spend at most on an operator's eigenvalues; default: 300")
        add("--probes", type=int, default=16, help="products for the trace; default: 16")
        add("--dtype", choices=("float32", "float64"), default="float32", help="of the network; default: float32")
        add("--label-smoothing", type=float, help="of the loss; default: the run's, else 0")
        add("--seed", type=int, default=0, help="of noise and random vectors; default: 0")

    def check(self) -> None:
        flags = self.flags
        check_solver(flags)
        if flags.top > 50:
            raise UsageError(f"--top {flags.top}: must be at most 50")

    def _ask(self, number: int) -> None:
        self.stop = self.watcher.stop = number  # the solvers look after every product

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """Rises of the loss by radius and noise, and the curvature of the network and of each block."""
        flags, world = self.flags, self.world
        self.watcher.visible = world.is_main
        images, train = self.training_images(network, None, "--images")
        split = train.spread(flags.images)
        smoothing = network.label_smoothing if flags.label_smoothing is None else flags.label_smoothing
        loss = partial(F.cross_entropy, label_smoothing=smoothing)

        def decode() -> list[Batch]:
            return [(x.clone(), y.clone()) for x, y in self.batches(network, images, self.share(split))]

        model = self.load(network)
        shown = world.run_on_all(decode)
        blocks = parameters_by_block(model, probe_modules(model))
        figures = self._rises(network, Landscape(model, loss), shown, len(split))
        if not world.max(self.stop)[0]:
            figures |= self._curvature(network, model, loss, shown, blocks)
        solved = {name: getattr(flags, name) for name in ("top", "tol", "max_hvps", "probes", "seed")}
        protocol = {
            "images": len(split),
            "batch_size": flags.batch_size,
            "dtype": flags.dtype,
            "loss": f"cross entropy, label smoothing {smoothing:g}, without weight decay",
            "batchnorm": "eval",
            **self._sizes(),
            "ascent_steps": flags.ascent_steps,
            "draws": flags.draws,
            **solved,
        }
        return self.result(network, images, protocol, interrupted=bool(self.stop), figures=figures)

    def _sizes(self) -> dict[str, list[float]]:
        return {name: sorted(set(getattr(self.flags, name))) for name in plots.SIZES}

    def _rises(self, network: TrainedNetwork, landscape: Landscape, shown: list[Batch], count: int) -> Sections:
        """The rise of the loss within each radius, as the mean over the batches, and under each noise."""
        flags, world = self.flags, self.world
        radii: dict[str, Reach] = {}
        noises: dict[str, Reach] = {}
        for name, sizes in self._sizes().items():
            reaches = {f"{name.replace('_', ' ')} {size:g}": Reach(size, "adaptive" in name) for size in sizes}
            (noises if "noise" in name else radii).update(reaches)
        worst = torch.zeros(len(radii), dtype=torch.float64)
        for i, batch in enumerate(shown):
            found = worst_case(landscape, batch, list(radii.values()), flags.ascent_steps, flags.seed)
            worst += len(batch[1]) * torch.tensor(found, dtype=torch.float64)
            self.progress(i + 1, len(shown), "batches", "worst case: ")
        worst = world.sum(worst) / count
        average = world.sum(average_case(landscape, shown, list(noises.values()), flags.draws, flags.seed)) / count
        if not (torch.isfinite(worst).all() and torch.isfinite(average).all()):
            why = "its training diverged, or a radius or noise is too large"
            raise on_all_ranks(RunError(f"{network.weights}: the loss is not finite at or near the weights: {why}"))
        rises = {name: number(value) for name, value in zip(radii, worst.tolist(), strict=True)}
        rises |= {name: student(values).json() for name, values in zip(noises, average.T.tolist(), strict=True)}
        return {section: {"rise of the loss": value} for section, value in rises.items()}

    def _curvature(
        self, network: TrainedNetwork, model: nn.Module, loss: Loss, shown: list[Batch], blocks: dict[str, list[str]]
    ) -> Sections:
        """Of the whole network, and the largest eigenvalue of each block's part of the Hessian, one after the other."""
        flags = self.flags

        def solve(operator: HessianOperator, top: int, names: list[str] | None = None, **options: Any) -> Figures:
            top = min(top, operator.shape[0])
            settings = {"tol": flags.tol, "max_hvps": flags.max_hvps, "seed": flags.seed}
            found = measure(operator, self.watcher, top=top, bottom=0, **settings, **options)
            if found.trouble:
                part = "" if names is None else f", a block of {len(names)} parameter tensors"
                self.trouble.append(f"{network.name}{part}: {found.trouble}")
            return found

        def whole() -> dict[str, dict[str, float]]:
            found = solve(operator, flags.top, vectors=True, probes=flags.probes)
            figures, top, t = {"loss": number(operator.loss_value)}, found.spectrum.top, found.trace
            if top.values:
                figures["largest eigenvalue"] = number(top.values[0])
            if t:
                figures["trace"] = Interval(t.value, t.value - t.half, t.value + t.half, t.probes).json()
            if len(top.values) == flags.top and (share := share_inside(operator.gradient, top.vectors)) is not None:
                figures[f"gradient in the top {flags.top} (%)"] = number(100 * share)
            return figures

        def largest(names: list[str]) -> dict[str, dict[str, float]]:
            values = solve(operator.part(names), 1, names).spectrum.top.values
            return {"largest eigenvalue": number(values[0])} if values else {}

        figures: Sections = {}
        operator = HessianOperator(model, loss, shown, reduce=dist.all_reduce if self.world.size > 1 else None)
        for part, make in ((WHOLE, whole), *((block, partial(largest, names)) for block, names in blocks.items())):
            if self.world.max(self.stop)[0]:
                break
            if found := self.attempt(network, make):
                figures[part] = found
        return figures

    def title(self, protocol: dict[str, Any]) -> str:
        return (
            f"sharpness of the mean loss over {protocol['images']:,} training images of {protocol['data']} (evenly "
            f"spaced, not augmented), its worst case in batches of {protocol['batch_size']}\nloss: {protocol['loss']}; "
            "BatchNorm: eval mode; intervals: 95 %, under noise over its draws, over seeds Student's t"
        )


def share_inside(gradient: Tensor, vectors: Tensor | None) -> float | None:
    """|P g|^2 / |g|^2 for the projection P onto the span of orthonormal rows; None for a gradient of 0."""
    total = float(gradient.square().sum())
    if vectors is None or not total:
        return None
    return min(1.0, float((vectors @ gradient).square().sum()) / total)
