"""How long a sweep will take, predicted from a few training steps taken here and now."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from seal_fast.config import Config
from seal_fast.data import ImageSet
from seal_fast.sweep.plan import Trial

STEPS = 3
_EVALUATION = 1 / 3  # an evaluated image costs the forward pass, about a third of a training step's share
_SHAPE = "model stem data image_size input batch_size amp amp_dtype dtype device kernels augmentation".split()


@dataclass(frozen=True)
class Estimate:
    """A prediction.

    Attributes:
        hours: of the whole sweep.
        slowest: images per second of the slowest of the measured shapes, one trial at a time.
        fastest: of the fastest.
    """

    hours: float
    slowest: float
    fastest: float

    def __str__(self) -> str:
        pace = f"{self.slowest:.0f}" + (f" to {self.fastest:.0f}" if round(self.fastest) > round(self.slowest) else "")
        return (
            f"predicted: {self.hours:.2g} hours, from {pace} images/s over {STEPS} uncompiled steps of each network "
            "and batch size, taken on this machine just now"
        )


def estimate(trials: Iterable[Trial], images: dict[str, ImageSet], *, concurrent: int, threads: int) -> Estimate:
    """Measure each shape once and add up.

    Packed trials slow each other down where they share more than they have to themselves, which this does not know.
    """
    rates: dict[tuple[object, ...], float] = {}
    seconds: list[float] = []
    for trial in trials:
        config = trial.config
        shape = tuple(getattr(config, name) for name in _SHAPE)
        if shape not in rates:
            rates[shape] = images_per_second(config, images[config.data], threads)
        train = min(config.limit_train or len(images[config.data].train), len(images[config.data].train))
        evaluated = len(images[config.data].val) / config.eval_every * _EVALUATION
        seconds.append(trial.epochs * (train + evaluated) / rates[shape])
    total = max(sum(seconds) / min(concurrent, len(seconds)), max(seconds))
    return Estimate(total / 3600, min(rates.values()), max(rates.values()))


def images_per_second(config: Config, images: ImageSet, threads: int) -> float:
    """Training images per second of a configuration, uncompiled, after a warm-up of as many steps."""
    from seal_fast.runs.folder import RunFolder
    from seal_fast.train import assemble, open_input
    from seal_fast.training import runtime

    short = replace(
        config,
        method="restart",
        generations=1,
        epochs=2,
        ascent_epochs=0,
        warmup_epochs=0,
        limit_train=min(config.batch_size * STEPS, len(images.train)),
        checkpoint_seconds=1e9,
        compile=False,
        threads=threads,
        init_weights=None,
        wandb=False,
        profile=False,
    )
    machine = runtime.start(short)
    with (
        tempfile.TemporaryDirectory() as scratch,
        contextlib.closing(open_input(short, machine, images)) as source,
        contextlib.redirect_stdout(io.StringIO()),
        assemble(short, machine, images, source, RunFolder(Path(scratch))) as engine,
    ):
        phase, _ = engine.timeline.phase(0, 0)
        engine.set_rates(phase)
        engine.train()
        engine.state.position.step, engine.state.seconds = 0, 0.0
        engine.train()
        return short.limit_train / max(engine.state.seconds, 1e-9) if short.limit_train else 0.0
