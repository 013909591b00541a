"""`python -m seal_fast hessian`: eigenvalues, trace and spectral density of the training loss's Hessian."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from seal_fast.analysis.common.flags import add_flags, check
from seal_fast.analysis.common.flags import subjects as named_subjects
from seal_fast.analysis.common.groups import members
from seal_fast.analysis.common.images import batches, choose, own_images, readable
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.processes import check_alike, joined, rows_of
from seal_fast.analysis.common.results import identity, left_out, write_results
from seal_fast.analysis.common.stage_plots import several_stages
from seal_fast.analysis.hessian import plots as pictures
from seal_fast.analysis.hessian.compute import Found, Watcher, describe, measure
from seal_fast.config import Config
from seal_fast.curvature.groups import group_names
from seal_fast.curvature.operator import HessianOperator
from seal_fast.data import ImageSet, Split
from seal_fast.distributed.world import World
from seal_fast.training import runtime
from seal_fast.training.signals import stop_signals
from seal_fast.utils.errors import UsageError
from seal_fast.utils.files import to_json
from seal_fast.utils.table import table


def main(argv: Sequence[str]) -> int:
    """Measure, print, and write what --out asks for; returns the exit code (1 where a solver did not converge).

    Raises:
        UsageError: a flag, a run or a weights file is wrong.
        RunError: an image cannot be decoded, the loss is not finite, or a file cannot be written.
    """
    flags = _parse(argv)
    config = Config(device=flags.device, dtype=flags.dtype, threads=flags.threads, dist_timeout=flags.dist_timeout)
    watcher, results, founds = Watcher(), [], []

    def ask(number: int) -> None:
        watcher.stop = number

    with joined(flags, config) as (world, machine), stop_signals(ask):
        subjects = world.run_on_all(lambda: named_subjects(flags))
        watcher.visible = world.is_main
        for subject in subjects:
            if watcher.stop is None:
                result, found = _measure(subject, machine, flags, watcher, world)
                results.append(result)
                founds.append(found)
    if world.is_main:
        _give(results, founds, subjects, flags)
    for subject, found in zip(subjects, founds, strict=False):
        if found.trouble and world.is_main:
            print(f"error: {subject.name}: {found.trouble}", file=sys.stderr)
    if watcher.stop is not None:
        print("stopped: these are the figures so far", file=sys.stderr)
        return 128 + watcher.stop
    return 1 if any(found.trouble for found in founds) else 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m seal_fast hessian",
        description="Curvature of the training loss at trained weights: largest and most negative eigenvalues, trace "
        "(Hutchinson) and spectral density (stochastic Lanczos quadrature) of its Hessian, over fixed, not augmented "
        "training images. Under torchrun the images are split over the processes.",
        allow_abbrev=False,
    )
    add_flags(parser, batch_size=256, picture="the picture of the density")
    add = parser.add_argument
    add("--data", help="data set; default: the run's")
    add("--images", type=int, default=256, help="training images: the first in sorted path order; default: 256")
    add("--spread", action="store_true", help="take them evenly spaced instead, so that every class has its share")
    add("--top", type=int, default=5, help="largest eigenvalues; default: 5")
    add("--bottom", type=int, default=1, help="most negative eigenvalues; default: 1")
    add("--trace", action="store_true", help="estimate the trace")
    add("--probes", type=int, default=32, help="random vectors for the trace; default: 32")
    add("--density", action="store_true", help="estimate the spectral density")
    add("--density-probes", type=int, default=2, help="random vectors for the density; default: 2")
    add("--steps", type=int, default=100, help="products for each of them; default: 100")
    add("--solver", choices=("lanczos", "power"), default="lanczos")
    add("--group", default="all", help="parameters: all, early, late, or a layer such as layer4.1; default: all")
    add("--layer-threshold", help="first layer of the late group; default: the run's, else layer3")
    add("--tol", type=float, default=1e-3, help="relative error asked for; default: 1e-3")
    add("--max-hvps", type=int, help="products to spend at most; default: 300 (lanczos), 1000 (power)")
    add("--batchnorm", choices=("eval", "train"), default="eval", help="train: by each batch's own statistics")
    add("--dtype", choices=("float32", "float64"), default="float32", help="of the network; sums are float64 anyway")
    add("--vectors", action="store_true", help="write the eigenvectors to --out")
    add("--label-smoothing", type=float, help="of the loss; default: the run's, else 0")
    add("--seed", type=int, default=0, help="of the random vectors; default: 0")
    add("--cache-gib", type=float, default=2.0, help="memory for what the products share; default: 2")
    flags = parser.parse_args(list(argv))
    _check(flags)
    return flags


def _check(flags: argparse.Namespace) -> None:
    least = {"images": 1, "top": 0, "bottom": 0, "probes": 2, "density_probes": 1, "steps": 1, "max_hvps": 1}
    check(flags, least | {"seed": 0, "cache_gib": 0})
    if not 0 < flags.tol < 1:
        raise UsageError(f"--tol {flags.tol}: must be above 0 and below 1")
    if flags.label_smoothing is not None and not 0 <= flags.label_smoothing < 1:
        raise UsageError(f"--label-smoothing {flags.label_smoothing}: must be at least 0 and below 1")
    if not (flags.top or flags.bottom or flags.trace or flags.density):
        raise UsageError("--top 0 --bottom 0: nothing is asked for; add --trace or --density")
    if flags.top + flags.bottom > 50:
        raise UsageError(f"--top {flags.top} --bottom {flags.bottom}: at most 50 together; --density shows the rest")
    if flags.vectors and not flags.out:
        raise UsageError("--vectors writes a file: say where with --out DIR")


class _Images:
    """This process's share of the batches; decoded anew each time they are read."""

    def __init__(self, images: ImageSet, chosen: Split, size: int, flags: argparse.Namespace, machine, world: World):
        mine = rows_of(len(chosen), flags.batch_size, world.rank, world.size)
        self.images, self.chosen = images, chosen.take(mine)
        settings = {"image_size": size, "batch_size": flags.batch_size, "threads": flags.threads}
        self.settings = settings | {"device": machine.device, "dtype": machine.dtype}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(self.images, self.chosen, **self.settings) if len(self.chosen) else iter(())


def _measure(
    subject: TrainedNetwork, machine: runtime.Runtime, flags: argparse.Namespace, watcher: Watcher, world: World
) -> tuple[dict[str, Any], Found]:
    if not subject.num_classes:
        raise UsageError(f"{subject.weights} has no fc, so it has no loss")
    began, config = time.perf_counter(), subject.config
    images = world.run_on_all(lambda: own_images(subject, flags.data, flags.on_bad_image))
    check_alike(world, subject, images)
    fingerprint = images.fingerprint  # of the whole, for runs on different parts of it may be compared
    images = replace(images, train=images.train.spread(config.limit_train if config else None))
    if flags.on_bad_image == "skip":
        images = readable(images)
    chosen = choose(images, "train", flags.images, spread=flags.spread)
    smoothing = flags.label_smoothing
    if smoothing is None:
        smoothing = config.label_smoothing if config else 0.0

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    model = subject.network(machine.device, machine.dtype)
    threshold = flags.layer_threshold or (config.layer_threshold if config else "layer3")
    operator = HessianOperator(
        model,
        loss,
        _Images(images, chosen, subject.image_size, flags, machine, world),
        group_names(model, flags.group, threshold),
        batchnorm=flags.batchnorm,
        cache_bytes=int(flags.cache_gib * 2**30),
        reduce=dist.all_reduce if world.size > 1 else None,
    )
    if flags.top + flags.bottom > operator.shape[0]:
        raise UsageError(f"--group {flags.group} has {operator.shape[0]} parameters, fewer than eigenvalues asked for")
    found = measure(
        operator,
        watcher,
        solver=flags.solver,
        top=flags.top,
        bottom=flags.bottom,
        tol=flags.tol,
        max_hvps=flags.max_hvps,
        vectors=flags.vectors,
        probes=flags.probes if flags.trace else 0,
        density_probes=flags.density_probes if flags.density else 0,
        steps=flags.steps,
        seed=flags.seed,
    )
    result = identity(subject) | describe(operator, found)
    result |= {
        "loss": f"cross entropy, label smoothing {smoothing:g}, without weight decay",
        "label_smoothing": smoothing,
        "weight_decay": 0.0,
        "group": flags.group,
        "layer_threshold": threshold,
        "solver": flags.solver,
        "tol": flags.tol,
        "data": images.name,
        "data_sha256": fingerprint,
        "skipped_images": list(images.skipped),
        "order": "evenly spaced" if flags.spread else "first in path order",
        "batch_size": flags.batch_size,
        "dtype": flags.dtype,
        "seed_vectors": flags.seed,
        "processes": world.size,
        "interrupted": watcher.stop is not None,
        "seconds": time.perf_counter() - began,
    }
    return result, found


def _give(
    results: list[dict[str, Any]], founds: list[Found], subjects: Sequence[TrainedNetwork], flags: argparse.Namespace
) -> None:
    if flags.out:
        write_results(flags.out, "hessian", results)
        if any(result["density"] for result in results):
            pictures.draw(results, flags.out / "hessian_density.png")
        if several_stages(results):
            group_of = dict(enumerate(member.group for member in members(subjects)))
            pictures.draw_generations(results, group_of, flags.out / "hessian_generations.png")
        if flags.vectors:
            _write_vectors(results, founds, flags.out)
    if flags.json:
        print(json.dumps(to_json(results if len(flags.runs) > 1 or flags.per_generation else results[0]), indent=2))
    else:
        print(text(results))
        if flags.out:
            print(f"\nwritten to {flags.out}")


def _write_vectors(results: list[dict[str, Any]], founds: list[Found], out: Path) -> None:
    from seal_fast.training.checkpoint import save_tensors

    for result, found in zip(results, founds, strict=True):
        ends = {"top": found.spectrum.top.vectors, "bottom": found.spectrum.bottom.vectors}
        tensors = {end: vectors.float().cpu().contiguous() for end, vectors in ends.items() if vectors is not None}
        name = "hessian_vectors" if len(results) == 1 else f"hessian_vectors-{result['subject'].replace(' ', '-')}"
        save_tensors(out / f"{name}.safetensors", tensors, {"group": result["group"], "of": result["weights_sha256"]})


def text(results: Sequence[dict[str, Any]]) -> str:
    """Results as a table, the protocol above it."""
    first = results[0]
    split = "; its value depends on how the images are split into batches" if first["batchnorm"] == "train" else ""
    protocol = (
        f"Hessian of the mean loss over {first['images']} training images of {first['data']} ({first['order']}, not "
        f"augmented)\nloss: {first['loss']}; BatchNorm: {first['batchnorm']} mode{split}\n"
        f"parameters: {first['group']} ({first['parameters']:,}); products: {first['products']}; "
        f"solver: {first['solver']}, relative error {first['tol']:g}"
    )
    rows = [("network", "loss", "top", "most negative", "trace", "products", "seconds")]
    for result in results:
        trace = result["trace"]
        rows.append(
            (
                result["subject"],
                f"{result['loss_value']:.4f}",
                " ".join(f"{value:.5g}" for value in result["top"]) or "-",
                " ".join(f"{value:.5g}" for value in result["bottom"]) or "-",
                "-" if trace is None else f"{trace:.5g} +- {result['trace_stderr']:.2g}",
                str(result["hvps"]),
                f"{result['seconds']:.1f}",
            )
        )
    return f"{protocol}\n\n{table(rows)}{left_out({r['data']: r['skipped_images'] for r in results})}"
