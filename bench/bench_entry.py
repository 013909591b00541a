"""What entering a phase costs beside the phase, for every method: ResNet-18, 64x64, phases as long as by default.

`pytest bench/bench_entry.py --benchmark-only`. An entry takes a snapshot, applies operators, clears momentum and makes
masks. Its seconds are divided by those of the phase: a step of plain training, times the steps of an epoch of `IMAGES`
images, times the phase's epochs. The operators of dash and dnr pass over training images, in proportion to their
number: beside these, the share is of an epoch of the images that there are here.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from dataclasses import replace

import torch

from seal_fast import methods
from seal_fast.config import Config
from seal_fast.data import open_images
from seal_fast.kernels.torch_private import has_bf16_matmul
from seal_fast.methods.schedule import Phase, Timeline
from seal_fast.runs.folder import RunFolder
from seal_fast.training import entry, runtime
from seal_fast.training.assembly import assemble, open_input
from seal_fast.training.checkpoint import Position
from seal_fast.training.trainer import Trainer

IMAGES, BATCH, SIZE, STEPS, ROUNDS = 20_000, 128, 64, 4, 3


def places(timeline: Timeline) -> dict[tuple[object, ...], tuple[int, int, Phase]]:
    """Generation, first epoch and phase, once for each way to enter a phase; the shortest phase of each way."""
    found: dict[tuple[object, ...], tuple[int, int, Phase]] = {}
    for g, phases in enumerate(timeline.generations):
        start = 0
        for phase in phases:
            way = phase.enter, phase.snapshot, phase.reset_momentum, phase.hold
            if any(way) and (way not in found or phase.epochs < found[way][2].epochs):
                found[way] = g, start, phase
            start += phase.epochs
    return found


def enter(trainer: Trainer, generation: int, epoch: int, phase: Phase) -> float:
    """Seconds to enter a phase, the median of `ROUNDS`."""
    seconds = []
    for _ in range(ROUNDS):
        trainer.state.position = Position(generation, epoch)
        trainer.runtime.synchronize()
        begin = time.perf_counter()
        entry.enter(trainer, phase)
        trainer.runtime.synchronize()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def step(trainer: Trainer) -> float:
    """Seconds of a step, the median of `ROUNDS` epochs."""
    seconds = []
    for epoch in range(ROUNDS + 1):
        trainer.state.position = Position(0, epoch)
        trainer.state.seconds = 0.0
        trainer.set_rates()
        trainer.train()
        seconds.append(trainer.state.seconds / trainer.input.steps_per_epoch)
    return statistics.median(seconds[1:])  # the first has costs of its own


def test_entering_a_phase(benchmark, data, tmp_path):
    images, info = open_images(data), benchmark.extra_info
    amp = torch.cuda.is_available() or has_bf16_matmul()  # emulated, it is many times slower
    base = Config(data=images.source, image_size=SIZE, batch_size=BATCH, limit_train=STEPS * BATCH, amp=amp)
    machine = runtime.start(base)

    def every_method():
        with contextlib.closing(open_input(base, machine, images)) as batches:
            for method in ["restart", *(name for name in methods.METHODS if name != "restart")]:
                config = replace(base, method=method, keep="none")
                with (
                    contextlib.redirect_stdout(io.StringIO()),
                    assemble(config, machine, images, batches, RunFolder(tmp_path / method)) as trainer,
                ):
                    if method == "restart":
                        one = step(trainer)
                    needs = trainer.timeline.needs()
                    steps = batches.steps_per_epoch if "images" in needs else -(-IMAGES // BATCH)
                    entries = {w: (enter(trainer, *place), place) for w, place in places(trainer.timeline).items()}
                if entries:
                    seconds, (_, _, phase) = max(entries.values(), key=lambda found: found[0] / found[1][2].epochs)
                    info[f"{method}, entry, s"] = seconds
                    info[f"{method}, entry / phase of {phase.epochs} epochs, %"] = (
                        100 * seconds / (one * steps * phase.epochs)
                    )
        info["step, s"] = one

    benchmark.pedantic(every_method, rounds=1)
    info["n"] = f"median of {ROUNDS} entries; phases of {IMAGES:,} images in steps of {BATCH}, {machine.compute}"
