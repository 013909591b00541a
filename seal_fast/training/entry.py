"""What happens once as a phase begins, and at the end of an epoch that is averaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from seal_fast.methods.operators import EVERYTHING
from seal_fast.methods.schedule import Phase
from seal_fast.training import evaluation
from seal_fast.training.forgetting import Forgetting, Values, leaves, select

if TYPE_CHECKING:
    from seal_fast.training.trainer import Trainer


def enter(trainer: Trainer, phase: Phase) -> None:
    """Run a phase's one-time actions. A checkpoint says whether they are done (`TrainState.entered`)."""
    state, at, optimizer = trainer.state, trainer.state.position, trainer.state.optimizer
    trainer.between_steps = False  # a state amid these actions is not to be kept
    if phase.snapshot and state.snapshot:
        state.snapshot.load_state_dict(state.model.state_dict())
    if phase.enter:
        sources = {"initial": lambda: trainer.initial}
        if state.snapshot:
            sources["snapshot"] = state.snapshot.state_dict
        if state.ema:
            sources["average"] = state.ema.state_dict
        forgetting = Forgetting(state.model, trainer.config.seed, sources, lambda *which: gradients(trainer, *which))
        forgetting.apply(phase.enter, at.generation, at.epoch)
        if trainer.images and trainer.world.size > 1:  # scores may differ in rounding
            for p in state.model.parameters():
                trainer.world.broadcast_(whole := p.data.contiguous())
                p.data.copy_(whole)
    everything = leaves(state.model)
    if phase.reset_momentum == EVERYTHING:
        optimizer.reset_momentum()
    elif phase.reset_momentum:
        chosen = select(everything, phase.reset_momentum, "reset_momentum")
        optimizer.reset_momentum(leaf.name for leaf in chosen)
    if optimizer.holds:
        held = select(everything, phase.hold, "hold") if phase.hold else []
        optimizer.hold({leaf.name: leaf.tensor != 0 for leaf in held})
    state.entered = evaluation.weight_norms(trainer)
    trainer.between_steps = True


def gradients(trainer: Trainer, size: int | None, share: float) -> Iterator[Values]:
    """The parameters' gradients of the cross entropy without smoothing, in eval mode, batch by batch.

    Args:
        trainer: its model and images.
        size: of the batches; None is the training's.
        share: of the training images.
    """
    model, at, runtime = trainer.state.model, trainer.state.position, trainer.runtime
    parameters = dict(model.named_parameters())
    assert trainer.images
    model.eval()
    for images, labels in trainer.images(size or trainer.config.batch_size, share, at.generation, at.epoch):
        with torch.enable_grad():
            with runtime.autocast():
                logits = model(images)
            loss = F.cross_entropy(logits.to(runtime.dtype), labels)
            found = torch.autograd.grad(loss, [*parameters.values()])
        yield dict(zip(parameters, found, strict=True))


def average_epoch(trainer: Trainer, phase: Phase, epoch: int) -> None:
    """Take the weights at the end of this epoch of a phase into an average of epochs, once."""
    state = trainer.state
    index = trainer.timeline.index(state.position.generation, state.position.epoch) + 1
    if state.ema and phase.average and phase.average.every == "epoch" and state.averaged < index:
        state.ema.average_in(1 / (epoch + 1))
        state.averaged = index
