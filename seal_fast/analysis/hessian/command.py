"""`python -m seal_fast hessian`: eigenvalues, trace and spectral density of the training loss's Hessian."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from seal_fast.analysis.common.images import ImageAnalysis
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.results import identity
from seal_fast.analysis.hessian import plots
from seal_fast.analysis.hessian.compute import Watcher, check_solver, describe, measure
from seal_fast.curvature.operator import HessianOperator
from seal_fast.curvature.ritz import Spectrum
from seal_fast.distributed.world import on_all_ranks
from seal_fast.models.order import group_names
from seal_fast.training.checkpoint import save_tensors
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.table import table


class Hessian(ImageAnalysis):
    """The Hessian of the loss over fixed training images."""

    name = "hessian"
    description = (
        "Curvature of the training loss at trained weights: largest and most negative eigenvalues, trace (Hutch++) "
        "and spectral density (stochastic Lanczos quadrature) of its Hessian, over fixed, not augmented training "
        "images. Under torchrun the images are split over the processes."
    )
    least = {"images": 1, "top": 0, "bottom": 0, "probes": 2, "density_probes": 1, "steps": 1, "max_hvps": 1}
    least = least | {"cache_gib": 0}
    image_flags = {"images": True}
    plot = staticmethod(plots.draw)
    on_demand = "as sharpness has the largest eigenvalue and the trace"

    def __init__(self) -> None:
        super().__init__()
        self.watcher = Watcher()

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--data", help="data set; default: the run's")
        add("--images", type=int, default=256, help="training images; default: 256")
        help = "evenly spaced, so that every class has its share; --no-spread: the first in path order"
        add("--spread", action=argparse.BooleanOptionalAction, default=True, help=help)
        add("--top", type=int, default=5, help="largest eigenvalues; default: 5")
        add("--bottom", type=int, default=1, help="most negative eigenvalues; default: 1")
        add("--trace", action="store_true", help="estimate the trace")
        add("--probes", type=int, default=32, help="products for the trace; default: 32")
        add("--density", action="store_true", help="estimate the spectral density")
        add("--density-probes", type=int, default=2, help="random vectors for the density; default: 2")
        add("--steps", type=int, default=100, help="products for each of them; default: 100")
        add(
            "--solver", choices=("lanczos", "power"), default="lanczos", help="power: block iteration; default: lanczos"
        )
        add("--group", default="all", help="parameters: all, early, late, or a layer such as layer4.1; default: all")
        add("--layer-threshold", help="first layer of the late group; default: the run's, else layer3")
        add("--tol", type=float, default=1e-3, help="relative error asked for; default: 1e-3")
        add("--max-hvps", type=int, help="products to spend at most; default: 300 (lanczos), 1000 (power)")
        add(
            "--batchnorm",
            choices=("eval", "train"),
            default="eval",
            help="train: each batch's own statistics; default: eval",
        )
        add("--dtype", choices=("float32", "float64"), default="float32", help="of the network; default: float32")
        add("--vectors", action="store_true", help="write the eigenvectors to --out")
        add("--label-smoothing", type=float, help="of the loss; default: the run's, else 0")
        add("--seed", type=int, default=0, help="of the random vectors; default: 0")
        add("--cache-gib", type=float, default=2.0, help="memory for what the products share; default: 2")

    def check(self) -> None:
        flags = self.flags
        check_solver(flags)
        if not (flags.top or flags.bottom or flags.trace or flags.density):
            raise UsageError("--top 0 --bottom 0: nothing is asked for; add --trace or --density")
        if flags.top + flags.bottom > 50:
            raise UsageError(
                f"--top {flags.top} --bottom {flags.bottom}: at most 50 together; --density shows the rest"
            )
        if flags.vectors and not flags.out:
            raise UsageError("--vectors writes a file: say where with --out DIR")

    def _ask(self, number: int) -> None:
        self.stop = self.watcher.stop = number  # a solver looks after every product

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """The figures; see `describe`."""
        flags, world, config = self.flags, self.world, network.config
        self.watcher.visible = world.is_main
        images, chosen = self.training_images(network, flags.images, "--images", flags.spread)
        smoothing = network.label_smoothing if flags.label_smoothing is None else flags.label_smoothing
        model = self.load(network)
        threshold = flags.layer_threshold or (config.layer_threshold if config else "layer3")
        names = world.run_on_all(lambda: group_names(model, flags.group, threshold, network.image_size))
        operator = HessianOperator(
            model,
            partial(F.cross_entropy, label_smoothing=smoothing),
            _Anew(partial(self.batches, network, images, self.share(chosen))),
            names,
            batchnorm=flags.batchnorm,
            cache_bytes=flags.cache_gib * 2**30,
            reduce=dist.all_reduce if world.size > 1 else None,
        )
        if flags.top + flags.bottom > operator.shape[0]:
            few = f"--group {flags.group} has {operator.shape[0]} parameters, fewer than eigenvalues asked for"
            raise on_all_ranks(UsageError(few))
        solve = {name: getattr(flags, name) for name in ("solver", "top", "bottom", "tol", "max_hvps", "seed", "steps")}
        solve |= {
            "probes": flags.probes if flags.trace else 0,
            "density_probes": flags.density_probes if flags.density else 0,
        }
        figures = measure(operator, self.watcher, vectors=flags.vectors, **solve)
        if flags.vectors and world.is_main:
            self._write_vectors(network, figures.spectrum)
        if figures.trouble:
            self.trouble.append(f"{network.name}: {figures.trouble}")
        protocol = {
            "images": operator.images,
            "order": "evenly spaced" if flags.spread else "first in path order",
            "dtype": flags.dtype,
            "loss": f"cross entropy, label smoothing {smoothing:g}, without weight decay",
            "batchnorm": flags.batchnorm,
            "batch_size": flags.batch_size if flags.batchnorm == "train" else None,
            "group": flags.group,
            "layer_threshold": threshold if flags.group in ("early", "late") else None,
            **solve,
        }
        found = describe(operator, figures)
        return self.result(network, images, protocol, **found, interrupted=bool(self.stop))

    def table(self, results: Sequence[dict[str, Any]]) -> str:
        first, protocol = results[0], results[0]["protocol"]
        split = "; its value depends on how the images are split into batches" * (protocol["batchnorm"] == "train")
        title = (
            f"Hessian of the mean loss over {protocol['images']} training images of {protocol['data']} "
            f"({protocol['order']}, not augmented)\nloss: {protocol['loss']}; BatchNorm: {protocol['batchnorm']} "
            f"mode{split}\nparameters: {protocol['group']} ({first['parameters']:,}); products: {first['products']}; "
            f"solver: {protocol['solver']}, relative error {protocol['tol']:g}"
        )
        rows = [("network", "loss", "top", "most negative", "trace (95 %)", "products", "seconds")]
        for result in results:
            trace = result["trace"]
            rows.append(
                (
                    result["subject"],
                    f"{result['loss_value']:.4f}",
                    " ".join(f"{value:.5g}" for value in result["top"]) or "-",
                    " ".join(f"{value:.5g}" for value in result["bottom"]) or "-",
                    "-" if trace is None else f"{trace:.5g} +- {result['trace_half']:.2g}",
                    str(result["hvps"]),
                    f"{result['seconds']:.1f}",
                )
            )
        return f"{title}\n\n{table(rows)}"

    def _write_vectors(self, network: TrainedNetwork, spectrum: Spectrum) -> None:
        ends = {"top": spectrum.top.vectors, "bottom": spectrum.bottom.vectors}
        tensors = {end: vectors.float().cpu().contiguous() for end, vectors in ends.items() if vectors is not None}
        name = "hessian_vectors" + ("" if len(self.networks) == 1 else f"-{network.name.replace(' ', '-')}")
        metadata = {"group": self.flags.group, "of": identity(network)["weights_sha256"]}
        try:
            save_tensors(self.flags.out / f"{name}.safetensors", tensors, metadata)
        except RunError as error:  # the figures are worth more
            self.trouble.append(str(error))


@dataclass(frozen=True)
class _Anew:
    """Batches, decoded anew each time they are read."""

    decode: Callable[[], Iterator[tuple[Tensor, Tensor]]]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.decode()
