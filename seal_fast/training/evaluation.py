"""What a trainer measures between epochs: accuracy, that of the average, norms, curvature."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seal_fast.methods.schedule import Phase
from seal_fast.models import BATCHNORMS
from seal_fast.training.checkpoint import save_tensors
from seal_fast.utils.errors import RunError

if TYPE_CHECKING:
    from seal_fast.training.trainer import Trainer


@torch.no_grad()
def evaluate(trainer: Trainer, split: str = "val") -> tuple[float, float, float]:
    """Loss, top-1 and top-5 (percent) on a split, padding masked out; RunError if the loss is NaN or infinite."""
    model, world = trainer.state.model, trainer.world
    model.eval()
    trainer.refresh_weights()
    if not trainer.link:  # each process has running statistics of its own images
        world.broadcast_(*model.buffers())
    loss, top1, top5, images = totals(trainer, split, trainer.steps.evaluate)
    if not abs(loss) < float("inf"):
        trainer.diverged("the validation loss is NaN or infinite")
    return loss / images, 100 * top1 / images, 100 * top5 / images


def totals(trainer: Trainer, split: str, sums_of: Callable[..., Tensor]) -> list[float]:
    """Sums over a split of all processes: loss, top-1 hits, top-5 hits, images."""
    sums = torch.zeros(4, dtype=torch.float64, device=trainer.runtime.device)
    for batch in trainer.input.evaluation(split):
        sums += sums_of(batch.images, batch.labels, batch.valid)
    return trainer.world.sum(sums).tolist()


def evaluate_others(trainer: Trainer) -> dict[str, float]:
    """The row's columns at a generation's end: test_* under --holdout; clean_* under --label-noise; val_slim_* of KELS.

    clean_* are of the training images against their true labels.
    """
    slim = trainer.slim(trainer) if trainer.slim else {}
    return slim | {
        f"{split}_{name}": value
        for split in trainer.input.dataset.others
        for name, value in zip(("loss", "top1", "top5"), evaluate(trainer, split), strict=True)
    }


def evaluate_average(trainer: Trainer, phase: Phase, due: bool) -> dict[str, float | None]:
    """The row's columns where there is an average: `evaluate` with the averaged weights and statistics."""
    names, ema = ("val_ema_loss", "val_ema_top1", "val_ema_top5"), trainer.state.ema
    if not ema:
        return {}
    if not due or ("average" in trainer.timeline.needs() and not phase.average):
        return dict.fromkeys(names)
    if phase.average and phase.average.anew:
        with ema.applied():
            statistics = measure_statistics(trainer)
        ema.set_buffers(statistics)
    with ema.applied():
        return dict(zip(names, evaluate(trainer), strict=True))


@torch.no_grad()
def measure_statistics(trainer: Trainer) -> dict[str, Tensor]:
    """BatchNorm's statistics as the mean over this epoch's training batches, weighted by their images.

    With a momentum of 1 the running statistics are those of the last batch; what they were before is lost.
    """
    model, at, images = trainer.state.model, trainer.state.position, 0
    norms = {name: m for name, m in model.named_modules() if isinstance(m, BATCHNORMS) and m.track_running_stats}
    kinds = ("running_mean", "running_var")
    running = {f"{name}.{kind}": getattr(m, kind) for name, m in norms.items() for kind in kinds}
    sums = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in running.items()}
    momenta = [(m, m.momentum) for m in norms.values()]
    model.train()
    try:
        for norm in norms.values():
            norm.momentum = 1.0
        for batch in trainer.input.train(at.generation, at.epoch):
            if trainer.link:
                trainer.link.connected = batch.micro_batch.shared
            trainer.steps.seed(batch.micro_batch)
            with trainer.runtime.autocast():
                model(batch.images)
            if batch.micro_batch.counted:
                images += len(batch.labels)
                for name, t in running.items():
                    sums[name] += t.double() * len(batch.labels)
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
    flat = torch.cat([*sums.values(), torch.tensor([images], dtype=torch.float64, device=trainer.runtime.device)])
    *total, images = trainer.world.sum(flat).split([*map(len, sums.values()), 1])
    return {name: t / images for name, t in zip(sums, total, strict=True)}


def record_examples(trainer: Trainer, last_of_phase: bool) -> None:
    """Bring the records of single training examples up to date, at an epoch's end."""
    at, timeline = trainer.state.position, trainer.timeline
    if trainer.state.examples:
        phase = timeline.number(at.generation, at.epoch) if last_of_phase else None
        trainer.state.examples.end_epoch(timeline.index(at.generation, at.epoch), phase, trainer.world)


def save_examples(trainer: Trainer) -> None:
    """Write the records of single training examples, at a generation's end."""
    if not (examples := trainer.state.examples):
        return
    generation = trainer.state.position.generation
    if trainer.world.is_main:
        phases = [phase.name for phase in trainer.timeline.generations[generation]]
        tensors = examples.records() | {"labels": torch.from_numpy(trainer.input.train_labels)}
        tensors["ends"] = tensors["ends"][: len(phases) + 1].contiguous()
        metadata = {"epochs": str(trainer.timeline.index(generation + 1, 0)), "phases": json.dumps(phases)}
        save_tensors(trainer.folder.examples(generation), tensors, metadata)
    examples.begin_generation()


def norms(trainer: Trainer) -> dict[str, float]:
    """The row's columns under --log-norms: see `Config.log_norms`."""
    sums, steps = trainer.state.optimizer.norms, max(1, trainer.input.steps_per_epoch - trainer.state.norms_from)
    if sums is None:
        return {}
    rows = dict(zip(trainer.partition.groups, trainer.world.sum(sums).tolist(), strict=True))
    return {
        f"{what}_norm2_{group}": row[i] / steps
        for i, what in enumerate(("grad", "update"))
        for group, row in rows.items()
    }


def weight_norms(trainer: Trainer) -> dict[str, float]:
    """The norm of each group's parameters, in float64."""
    parameters = dict(trainer.state.model.named_parameters())
    norms = {name: torch.linalg.vector_norm(p.detach(), dtype=torch.float64) for name, p in parameters.items()}
    groups = trainer.partition.groups
    each = torch.stack([*norms.values()]).square().tolist()
    squares = dict(zip(norms, each, strict=True))
    return {group: sum(squares[name] for name in names) ** 0.5 for group, names in groups.items()}


def measure_curvature(trainer: Trainer) -> dict[str, Any]:
    """The row's figures of curvature, in a generation that is due; a failure is logged and stops nothing.

    Raises:
        Interrupted: a signal came; the measurement is made after resuming, at the same weights.
    """

    def should_stop() -> bool:
        if trainer.world.size > 1:
            trainer.read_counters()
        return trainer.flags.pending() and trainer.flags.stop is not None

    if not trainer.curvature or (trainer.state.position.generation + 1) % trainer.config.hessian_every:
        return {}
    try:
        figures = trainer.curvature(trainer.state.model, should_stop)
    except RunError as error:
        trainer.log.say(f"curvature could not be measured: {error}")
        return {}
    if trainer.flags.stop:
        trainer.checkpoint()
    return figures
