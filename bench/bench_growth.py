"""Images per second of the step over width, depth, image size and batch; what of a short epoch is not the step.

One of the four changes at a time, from ResNet-18 of width 1 at 64 pixels. The table goes with the others; a picture
lies beside it, results/growth.png. SEAL_FAST_BENCH_LONG in the environment asks a CPU for the grid of a GPU.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import time

import torch
from bench_step import steps, trainers
from conftest import RESULTS

from seal_fast.kernels.torch_private import has_bf16_matmul

ON_GPU = torch.cuda.is_available()
WHOLE = ON_GPU or "SEAL_FAST_BENCH_LONG" in os.environ
AXES = {
    "width": [0.25, 0.5, 1.0, 2.0] if WHOLE else [0.25, 1.0, 2.0],
    "model": ["resnet18", "resnet34", "resnet50", "resnet101"] if WHOLE else ["resnet18", "resnet34", "resnet50"],
    "image_size": [32, 48, 64, 96, 128] if WHOLE else [32, 64, 128],
    "batch": [16, 32, 64, 128, 256, 512] if WHOLE else [16, 32, 128, 512],
}
BASE = {"width": 1.0, "model": "resnet18", "image_size": 64, "batch": 128 if ON_GPU else 32}
STEPS, ROUNDS = (16, 5) if ON_GPU else (1, 3)
SHORT = 1500  # images
PRECISION = {"amp": ON_GPU or has_bf16_matmul(), "compile": ON_GPU}  # emulated, bfloat16 is many times slower


def images_per_s(data: str, batch: int, **changes) -> list[float]:
    """Speeds over `ROUNDS` of the steps alone, input included."""
    with trainers(data) as make:
        trainer = make(batch, limit_train=STEPS * batch, **PRECISION, **changes)
        for _ in range(5 if ON_GPU else 1):  # compiles, records
            steps(trainer)
        images = trainer.input.train_size / trainer.input.steps_per_epoch  # of a step; the last may be smaller
        return [images / steps(trainer) for _ in range(ROUNDS)]


def described(point: dict) -> str:
    """A point of the grid in words."""
    return ", ".join(f"{name} {value}" for name, value in point.items())


def test_growth(benchmark, data):
    speeds: dict[str, dict[str, list[float]]] = {}
    measured: dict[tuple, list[float]] = {}

    def grid():
        for axis, values in AXES.items():
            for value in values:
                point = BASE | {axis: value}
                key = tuple(point.values())
                measured[key] = measured.get(key) or images_per_s(data, **point)  # they meet at the base
                speeds.setdefault(axis, {})[str(value)] = measured[key]

    benchmark.pedantic(grid, rounds=1)
    info = benchmark.extra_info
    for axis, points in speeds.items():
        for value, rounds in points.items():
            info[f"{axis} {value}, images/s"] = statistics.median(rounds)
            info[f"{axis} {value}, range"] = f"{min(rounds):.4g} to {max(rounds):.4g}"
    info["n"] = f"{ROUNDS} rounds of {STEPS} steps; else {described(BASE)}"
    draw(speeds)


def draw(speeds: dict[str, dict[str, list[float]]]) -> None:
    """A panel an axis, both scales logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3), layout="constrained")
    for axis, (name, points) in zip(figure.subplots(1, len(speeds), sharey=True), speeds.items(), strict=True):
        medians = [statistics.median(rounds) for rounds in points.values()]
        axis.loglog([*map(float, points)] if name != "model" else range(1, len(points) + 1), medians, "o-")
        axis.set_xticks(axis.lines[0].get_xdata(), points, rotation=30, minor=False)
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.set_xlabel(name)
    figure.axes[0].set_ylabel("images/s")
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "growth.png", dpi=120)


def test_short_epochs(benchmark, data):
    """Whole epochs of a small set, without their evaluation and checkpoints: what is not the step.

    That is the host's work at an epoch's end (counters, the row of metrics and its events), and getting the input: its
    order, waiting, and on a CPU the augmentation.
    """
    changes = {} if ON_GPU else {"width": 0.25}
    with trainers(data) as make:
        trainer = make(BASE["batch"], limit_train=SHORT, epochs=1000, eval_every=1000, **PRECISION, **changes)
        images, inputs, ends = trainer.input.train_size, [], []

        def epoch():
            begin = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.epoch()
            seconds, state = time.perf_counter() - begin, trainer.state
            inputs.append(state.wait_seconds / seconds)
            ends.append(1 - state.seconds / seconds)

        for _ in range(5 if ON_GPU else 1):  # compiles, records
            epoch()
        inputs.clear(), ends.clear()
        benchmark.pedantic(epoch, rounds=20 if ON_GPU else 3)
    info = benchmark.extra_info
    for name, shares in {"input": inputs, "end of the epoch": ends}.items():
        info[f"share of an epoch: {name}"] = statistics.median(shares)
        info[f"share of an epoch: {name}, range"] = f"{min(shares):.3%} to {max(shares):.3%}"
    info["n"] = f"{len(ends)} epochs of {images} images, {described(BASE | changes)}"
