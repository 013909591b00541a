"""What happens once as a phase begins, and at the end of an epoch that is averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from seal_fast.methods.operators import EVERYTHING
from seal_fast.methods.partition import ForwardOrder
from seal_fast.methods.schedule import Phase, Timeline
from seal_fast.training import evaluation
from seal_fast.training.checkpoint import TrainState
from seal_fast.training.forgetting import Forgetting, Values, leaves, select

if TYPE_CHECKING:
    from seal_fast.training.trainer import Trainer


def enter(trainer: Trainer, phase: Phase) -> None:
    """Run a phase's one-time actions. A checkpoint says whether they are done (`TrainState.entered`)."""
    state, world = trainer.state, trainer.world
    trainer.between_steps = False  # a state amid these actions is not to be kept

    def agree() -> None:
        if trainer.images and world.size > 1:  # scores may differ in rounding
            for p in state.model.parameters():
                world.broadcast_(whole := p.data.contiguous())
                p.data.copy_(whole)

    scores = partial(gradients, trainer)
    begin_phase(phase, state, trainer.partition.order, trainer.config.seed, trainer.initial, scores, agree)
    state.entered = evaluation.weight_norms(trainer)
    trainer.between_steps = True


def begin_phase(
    phase: Phase,
    state: TrainState,
    order: ForwardOrder,
    seed: int,
    initial: Values,
    gradients: Callable[[int | None, float, bool], Iterator[Values]],
    agree: Callable[[], None] = lambda: None,
) -> None:
    """A phase's one-time actions on a state whose position is the phase's first epoch.

    `initial` are the network's initial values by name, where the timeline needs them; `gradients` as of `Forgetting`;
    `agree`, called after the operators, makes the processes' weights equal.
    """
    optimizer = state.optimizer
    if phase.snapshot and state.snapshot is not None:
        state.snapshot.load_state_dict(state.model.state_dict())
    if phase.enter:
        sources = {"initial": lambda: initial}
        if state.snapshot is not None:
            sources["snapshot"] = state.snapshot.state_dict
        if state.ema:
            sources["average"] = state.ema.state_dict
        forgetting = Forgetting(state.model, order, seed, sources, gradients)
        forgetting.apply(phase.enter, state.position.generation, state.position.epoch)
        agree()
    everything = leaves(state.model, order)
    if phase.reset_momentum == EVERYTHING:
        optimizer.reset_momentum()
    elif phase.reset_momentum:
        chosen = select(everything, order, phase.reset_momentum, "reset_momentum")
        optimizer.reset_momentum(leaf.name for leaf in chosen)
    if optimizer.holds:
        held = select(everything, order, phase.hold, "hold") if phase.hold else []
        optimizer.hold({leaf.name: leaf.tensor != 0 for leaf in held})


def gradients(trainer: Trainer, size: int | None, share: float, augmented: bool) -> Iterator[Values]:
    """The parameters' gradients of the cross entropy without smoothing, in eval mode, batch by batch.

    Over a share of the training images, augmented as in training or not; a size of None is the training batches'.
    """
    model, at, runtime = trainer.state.model, trainer.state.position, trainer.runtime
    parameters = dict(model.named_parameters())
    assert trainer.images
    model.eval()
    for images, labels in trainer.images(size or trainer.config.batch_size, share, augmented, at.generation, at.epoch):
        with torch.enable_grad():
            with runtime.autocast():
                logits = model(images)
            loss = F.cross_entropy(logits.to(runtime.dtype), labels)
            found = torch.autograd.grad(loss, [*parameters.values()])
        yield dict(zip(parameters, found, strict=True))


def average_epoch(state: TrainState, timeline: Timeline, phase: Phase, epoch: int) -> None:
    """Take the weights at the end of this epoch of a phase into an average of epochs, once."""
    index = timeline.index(state.position.generation, state.position.epoch) + 1
    if state.ema and phase.average and phase.average.every == "epoch" and state.averaged < index:
        state.ema.average_in(1 / (epoch + 1))
        state.averaged = index
