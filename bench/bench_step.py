"""The trainer's whole training step, with and without our kernels: ratios in one run, contenders taking turns.

ResNet-18, 64x64, bfloat16 autocast. A turn is one epoch of a few real steps, input and counters included.
SEAL_FAST_BENCH_LONG in the environment adds contenders and rounds.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from seal_fast import kernels
from seal_fast.config import Config
from seal_fast.data import open_images
from seal_fast.models import layers
from seal_fast.runs.folder import RunFolder
from seal_fast.train import assemble, open_input
from seal_fast.training import cuda_graph, runtime
from seal_fast.training.checkpoint import Position
from seal_fast.training.runtime import Runtime
from seal_fast.training.trainer import Trainer

LONG = "SEAL_FAST_BENCH_LONG" in os.environ
SIZE, ROUNDS = 64, 12 if LONG else 5
IMAGES = 256  # of an epoch


class PlainAutocast(Runtime):
    """Autocast as torch has it: every forward pass casts the weights, every backward pass their gradients."""

    bf16_weights = False  # type: ignore[assignment]


@contextlib.contextmanager
def trainers(data: str) -> Iterator[Callable[..., Trainer]]:
    """Builds trainers over the same images."""
    images = open_images(data)
    with contextlib.ExitStack() as stack:

        def make(batch: int, plain_autocast: bool = False, **changes) -> Trainer:
            settings = dict(
                data=images.source, image_size=SIZE, batch_size=batch, limit_train=IMAGES, amp=True,
                generations=1, epochs=1, ascent_epochs=0, warmup_epochs=0, lr=0.01, checkpoint_seconds=1e9,
            )  # fmt: skip
            config = Config(**(settings | changes))
            machine = runtime.start(config)
            if plain_autocast:
                machine = PlainAutocast(**vars(machine))
            source = stack.enter_context(contextlib.closing(open_input(config, machine, images)))
            folder = RunFolder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            with contextlib.redirect_stdout(io.StringIO()):
                return stack.enter_context(assemble(config, machine, images, source, folder))

        yield make


@pytest.fixture(scope="module")
def trainer_of(data):
    with trainers(data) as make:
        yield make


def steps(trainer: Trainer) -> float:
    """Seconds a step over one short epoch."""
    trainer.state.position = Position()
    trainer.state.counters.zero_()
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    trainer.read_counters()
    return seconds / trainer.input.steps_per_epoch


def compare(benchmark, contenders: dict[str, Callable[[], float]], base: str, images: int = IMAGES) -> None:
    """How many times as fast as each other contender `base` is: medians of ratios within a round, and their range."""
    times: dict[str, list[float]] = {name: [] for name in contenders}

    def one_round():
        for name, contender in contenders.items():
            times[name].append(contender())

    one_round()
    for values in times.values():
        values.clear()
    benchmark.pedantic(one_round, rounds=ROUNDS)
    info = benchmark.extra_info
    info["ms a step"] = 1e3 * statistics.median(times[base])
    for name in contenders.keys() - {base}:
        ratios = [a / b for a, b in zip(times[name], times[base], strict=True)]
        info[f"{name} / {base}"] = statistics.median(ratios)
        info[f"{name} / {base}, range"] = f"{min(ratios):.3f} to {max(ratios):.3f}"
    info["n"] = f"{ROUNDS} rounds of {images} images"


def test_kernels_against_reference(benchmark, trainer_of, monkeypatch):
    """All operations in plain torch (or, in the long version, some of them), the same trainer otherwise."""
    ours, reference_update = trainer_of(128), trainer_of(128, kernels="reference")

    def turn(trainer: Trainer, *plain: str) -> Callable[[], float]:
        def run() -> float:
            with monkeypatch.context() as patch:
                for name in plain:
                    patch.setattr(layers, name, functools.partial(getattr(kernels, name), backend="reference"))
                return steps(trainer)

        return run

    contenders = {
        "kernels": turn(ours),
        "all reference": turn(reference_update, "norm_act", "conv2d"),
    }
    one_by_one = {
        "reference update": turn(reference_update),
        "reference norm_act": turn(ours, "norm_act"),
        "reference conv2d": turn(ours, "conv2d"),
    }
    compare(benchmark, contenders | (one_by_one if LONG else {}), "kernels")


@pytest.mark.parametrize("batch, compiled", [(32, False), (128, False), (32, True)][: None if LONG else 1])
def test_copy_of_the_weights_against_plain_autocast(benchmark, trainer_of, batch, compiled):
    """Reading the optimiser's bfloat16 weights, against casting them in every step."""
    ours, plain = (trainer_of(batch, plain_autocast=plain, compile=compiled) for plain in (False, True))
    compare(benchmark, {"copy": lambda: steps(ours), "plain autocast": lambda: steps(plain)}, "copy")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "model, size, batch, dtype",
    [
        ("resnet18", 64, 128, "bfloat16"),
        ("resnet18", 64, 128, "float16"),
        ("resnet18", 64, 32, "bfloat16"),
        ("resnet50", 224, 128, "bfloat16"),
    ],
)
def test_cuda_graph_against_its_steps(benchmark, trainer_of, monkeypatch, model, size, batch, dtype):
    """What compiling saves on a GPU, and what recording the step saves beyond that."""
    images = 16 * batch
    settings = {"model": model, "image_size": size, "limit_train": images, "device": "cuda", "amp_dtype": dtype}
    contenders = {"CUDA graph": trainer_of(batch, compile=True, **settings)}
    with monkeypatch.context() as patch:
        patch.setattr(cuda_graph, "possible", lambda runtime: False)
        contenders["compiled"] = trainer_of(batch, compile=True, **settings)
        contenders["eager"] = trainer_of(batch, **settings)
        contenders["eager, reference ops"] = trainer_of(batch, kernels="reference", **settings)
    turns = {name: functools.partial(steps, trainer) for name, trainer in contenders.items()}
    compare(benchmark, turns, "CUDA graph", images)
    benchmark.extra_info["images/s"] = batch / (benchmark.extra_info["ms a step"] / 1e3)
    benchmark.extra_info["peak memory of all, GiB"] = torch.cuda.max_memory_allocated() / 2**30
