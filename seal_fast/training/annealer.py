"""`Annealer`: a method's timeline on a user's own network, loop, loss and data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seal_fast import methods
from seal_fast.config import Config
from seal_fast.methods import text
from seal_fast.methods.partition import split
from seal_fast.methods.schedule import Timeline
from seal_fast.models.order import order_of_use, registration_order
from seal_fast.training.checkpoint import Position, dense, extra_tensors, load_extra_tensors, make_state
from seal_fast.training.entry import average_epoch, begin_phase
from seal_fast.training.forgetting import check_scopes
from seal_fast.training.runtime import Runtime
from seal_fast.training.step import two_passes
from seal_fast.utils.errors import UsageError
from seal_fast.validation import check

Scores = tuple[Callable[[nn.Module, Any], Tensor], Iterable[Any]]


@dataclass(frozen=True)
class Epoch:
    """An epoch of the timeline.

    Attributes:
        generation: its generation, from 0.
        epoch: its number in the generation, from 0.
        phase: name of its phase, such as ascent or descent.
        rates: by parameter group the numbers of its steps: lr, lr_multiplier, sign, weight_decay.
        last_of_phase: whether the phase ends with it.
    """

    generation: int
    epoch: int
    phase: str
    rates: dict[str, dict[str, float]]
    last_of_phase: bool


class Annealer:
    """Walks through a method's timeline and owns the optimiser; forward pass, loss and data are the caller's.

        annealer = Annealer(model, method="seal", generations=10, epochs=160, threshold="layer3", lr=0.1)
        for epoch in annealer:
            for x, y in loader:
                loss(model(x), y).backward()
                annealer.step()
                annealer.zero_grad()

    The loop yields every `Epoch`. Before it does, weights are forgotten, momentum is cleared and learning rates are set
    as the timeline says. Build it after `model.to(...)` and before DistributedDataParallel; `torch.compile`, gradient
    clipping and a `GradScaler` (`scaler.scale(loss).backward(); annealer.step(scaler)`) work as with any optimiser.
    On several processes give all the same seed.

    Args:
        model: any module; its parameters are dense and of one floating-point type, on one device.
        method: a method's name, see `python -m seal_fast timeline`.
        option: the method's options, as `--option` takes them.
        generations: number of generations.
        epochs: epochs a generation.
        threshold: first module of the late group, by its name in `model.named_modules()`.
        example: an input, or a tuple of several, that the model is called with once in eval mode to find the order in
            which it uses its parameters. None takes the order in which they are registered.
        lr: peak learning rate.
        momentum: of SGD.
        weight_decay: on every parameter.
        seed: of everything that the method draws.
        timeline: a `Timeline`, or a TOML file with one, in place of the method and the numbers above.
        scores: for methods that score weights by gradients (dash, dnr): `loss(model, batch)` and a loader of training
            batches, which is read in eval mode, the same on all processes. The batches' size is the loader's.
        settings: further numbers of `seal_fast.config.Config`: ascent_epochs, ascent_scale, warmup_epochs, ema, ...

    Raises:
        UsageError: a number is out of range, a module does not exist, or the timeline needs a loss of its own, which
            only the program's own loop has, or `scores` that are not given.

    Attributes:
        optimizer: the `AnnealedSGD`, for a `GradScaler` or for reading momentum.
        timeline: what is followed.
        partition: which parameters are in which group.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str = "seal",
        *,
        option: str = "",
        generations: int = 10,
        epochs: int = 160,
        threshold: str = "layer3",
        example: Any = None,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        seed: int = 0,
        timeline: Timeline | str | Path | None = None,
        scores: Scores | None = None,
        **settings: Any,
    ) -> None:
        if method not in methods.METHODS:
            raise UsageError(f"method {method!r} does not exist; choose one of {', '.join(methods.METHODS)}")
        config = Config(
            method=method, option=option, generations=generations, epochs=epochs, layer_threshold=threshold,
            lr=lr, momentum=momentum, weight_decay=weight_decay, seed=seed, **settings,
        )  # fmt: skip
        self._config = check(config)
        if not isinstance(timeline, Timeline):
            timeline = methods.timeline(config) if timeline is None else text.load(Path(timeline))
        self.timeline = timeline
        needs = timeline.needs()
        if "loss" in needs:
            raise UsageError(f"{timeline.method} needs a loss of its own, which an Annealer leaves to its caller: "
                             "train it by `python -m seal_fast.train`")  # fmt: skip
        if "images" in needs and scores is None:
            raise UsageError(f"{timeline.method} scores weights by gradients: give scores=(loss, loader), where "
                             "loss(model, batch) is a batch's mean loss")  # fmt: skip
        order = registration_order(model)
        if example is not None:
            inputs = example if isinstance(example, tuple) else (example,)
            order, _ = order_of_use(model, inputs, "example: the model fails on it")
        self.partition = split(order, timeline.cuts, timeline.groups, "threshold")
        check_scopes(timeline, model, self.partition.order)
        self._initial = dense(model.state_dict()) if "initial" in needs else {}
        p = next(model.parameters(), torch.zeros(()))
        runtime = Runtime(p.device, p.dtype, p.dtype, amp=False, compile=False)
        self._state = make_state(config, timeline, runtime, model, self.partition)
        self.optimizer = self._state.optimizer
        self._scores = scores
        self._inside = False  # between the yield of an epoch and its end

    def __iter__(self) -> Iterator[Epoch]:
        """The epochs from where the state is to the end of the timeline."""
        state, timeline = self._state, self.timeline
        if self._inside:
            self._finish()
        while (at := state.position).generation < len(timeline.generations):
            phase, start = timeline.phase(at.generation, at.epoch)
            if at.epoch == start:
                begin_phase(phase, state, self.partition.order, self._config.seed, self._initial, self._gradients)
            rates = timeline.rates(at.generation, at.epoch)
            for group, numbers in rates.items():
                self.optimizer.set_hyperparameters(group, **numbers)
            self._inside = True
            yield Epoch(at.generation, at.epoch, phase.name, rates, at.epoch + 1 == start + phase.epochs)
            self._finish()

    def _finish(self) -> None:
        """The end of an epoch."""
        at = self._state.position
        phase, start = self.timeline.phase(at.generation, at.epoch)
        average_epoch(self._state, self.timeline, phase, at.epoch - start)
        self._state.position, self._inside = Position(*self.timeline.after(at.generation, at.epoch)), False

    def step(self, scaler: torch.amp.GradScaler | None = None, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters from their gradients.

        Args:
            scaler: update through it, and update it too.
            closure: computes loss and gradients (`loss.backward()`); the gradients are dropped before. It is called
                once, or under SAM twice: at the weights, and at the perturbed ones, where running statistics stay.

        Returns:
            What the closure returns, at the weights.

        Raises:
            UsageError: the phase is SAM's, and there is no closure.
        """
        at = self._state.position
        sharpness = self.timeline.phase(at.generation, at.epoch)[0].sharpness
        if sharpness and not closure:
            raise UsageError(f"{self.timeline.method} takes two passes a step: annealer.step(closure=...)")
        loss = None
        if closure:
            self.zero_grad()
            if sharpness:
                loss = two_passes(self._state.model, self.optimizer, sharpness, closure, closure)
            else:
                loss = closure()
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        if self._state.ema:
            self._state.ema.update()
        return loss

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad()

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the model holds averaged weights and statistics; UsageError without `ema` or a timeline's average."""
        if not self._state.ema:
            raise UsageError("there is no average: build the Annealer with ema=0.999, say")
        return self._state.ema.applied()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model's own weights: tensors and plain values, which `torch.load` reads weights-only.

        Called in the loop it is the state at the end of the epoch in hand: save it after the last batch, beside
        `model.state_dict()`.
        """
        state, at = self._state, self._state.position
        return {
            "generation": at.generation,
            "epoch": at.epoch,
            "inside": self._inside,
            "averaged": state.averaged,
            **{part: dense(tensors) for part, tensors in extra_tensors(state).items()},
            "initial": self._initial,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue after the epoch that `state_dict` was called in; load the model's weights too.

        Raises:
            UsageError: the state is of another timeline.
            ValueError: it is of another model.
        """
        at, state = Position(saved["generation"], saved["epoch"]), self._state
        ended = at == Position(len(self.timeline.generations), 0)
        if not ended and (at.generation, at.epoch) not in self.timeline.walk():
            raise UsageError(f"the state is at {at}, which this timeline does not have")
        load_extra_tensors(state, saved.__getitem__)
        self._initial = dict(saved["initial"])
        state.position, state.averaged, self._inside = at, saved["averaged"], saved["inside"]

    def _gradients(self, _size: int | None, share: float, _augmented: bool) -> Iterator[Mapping[str, Tensor]]:
        """Gradients of the given loss over a share of the given batches; see `Forgetting`."""
        assert self._scores, "timelines that score weights were refused"
        (loss, loader), model = self._scores, self._state.model
        parameters = dict(model.named_parameters())
        stop = None if share == 1 else max(1, math.ceil(share * len(loader)))  # pyright: ignore[reportArgumentType]
        modes = {module: module.training for module in model.modules()}
        model.eval()
        for batch in islice(loader, stop):
            with torch.enable_grad():
                found = torch.autograd.grad(loss(model, batch), [*parameters.values()], materialize_grads=True)
            yield dict(zip(parameters, found, strict=True))
        for module, training in modes.items():
            module.training = training
