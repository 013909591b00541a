"""When what happens to which parameters: learning-rate curve, phases, generations, the timeline of a run.

A training method is data: a timeline made of frozen values that the trainer obeys. Nothing here imports torch, so a
timeline can be printed (`python -m seal_fast timeline --method seal`) and property-tested in milliseconds.

Source: SEAL, arXiv 2304.04858 (generations, ascent in the early layers); LLF, arXiv 2202.00155 (forgetting).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from seal_fast.methods.operators import (
    Align,
    Average,
    Loss,
    Mix,
    Operator,
    Rescale,
    Scope,
    Sharpness,
    require,
    require_number,
)
from seal_fast.utils.errors import UsageError

Need = Literal["average", "snapshot", "held", "initial", "images", "loss"]


@dataclass(frozen=True)
class Curve:
    """Learning rate by epoch: a linear warm-up, then a shape that ends with the generation.

    kind: cosine (half a cosine to zero), constant, or step (times `factor` from each of the epochs `steps` on).
    """

    kind: Literal["cosine", "constant", "step"] = "cosine"
    warmup_epochs: int = 0
    steps: tuple[int, ...] = ()
    factor: float = 0.1

    def __post_init__(self) -> None:
        require_number("a curve's warmup_epochs", self.warmup_epochs, 0)
        require_number("a curve's factor", self.factor, 0)
        ascend = [0, *self.steps] == sorted({0, *self.steps})
        require(ascend, "a curve's steps must be epochs from 1 on, each later than the one before")

    @staticmethod
    def parse(text: str, warmup_epochs: int) -> Curve:
        """The curve that --lr-curve names: cosine, constant, or FACTOR@EPOCH,EPOCH,...; UsageError if it names none."""
        if text in ("cosine", "constant"):
            return Curve("cosine" if text == "cosine" else "constant", warmup_epochs)
        factor, _, steps = text.partition("@")
        try:
            return Curve("step", warmup_epochs, tuple(map(int, steps.split(","))), float(factor))
        except ValueError:
            raise UsageError(f"--lr-curve {text}: must be cosine, constant, or as 0.1@80,120") from None

    def rate(self, lr: float, epoch: int, epochs: int) -> float:
        """Learning rate of an epoch, of so many; `lr` is the peak."""
        warmup = self.warmup_epochs
        if epoch < warmup:
            return lr * (epoch + 1) / warmup
        if self.kind == "cosine":
            return lr / 2 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
        return lr * self.factor ** sum(epoch >= step for step in self.steps) if self.kind == "step" else lr


@dataclass(frozen=True)
class Rule:
    """How one parameter group is updated during a phase: p <- p - sign * lr_multiplier * lr * momentum buffer.

    sign: +1 descends, -1 ascends. lr_multiplier: factor on the learning rate, 0 freezes the group.
    weight_decay: added to the gradient as weight_decay * p before the momentum, whatever the sign.
    lr_multiplier_end: the factor changes linearly, epoch by epoch, to reach this one in the phase's last epoch.
    curve: of this group's learning rate over the phase's epochs, in place of the timeline's.
    """

    sign: int = +1
    lr_multiplier: float = 1.0
    weight_decay: float = 0.0
    lr_multiplier_end: float | None = None
    curve: Curve | None = None

    def __post_init__(self) -> None:
        require(self.sign in (1, -1), f"a rule's sign is {self.sign}: it must be 1 (descent) or -1 (ascent)")
        require_number("a rule's lr_multiplier", self.lr_multiplier, 0)
        require_number("a rule's weight_decay", self.weight_decay)
        require_number("a rule's lr_multiplier_end", self.lr_multiplier_end or 0, 0)

    def multiplier(self, epoch: int, epochs: int) -> float:
        """Factor on the learning rate in an epoch of the phase, of so many."""
        if self.lr_multiplier_end is None or epochs == 1:
            return self.lr_multiplier
        return self.lr_multiplier + (self.lr_multiplier_end - self.lr_multiplier) * epoch / (epochs - 1)


Rules = tuple[tuple[str, Rule], ...]


def rules(**by_group: Rule) -> Rules:
    """Rules by group name; `all` is for every group that is not named."""
    return tuple(by_group.items())


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs in which every group keeps its rule.

    snapshot, enter, reset_momentum and hold act once, in this order, before the first step of the phase. snapshot keeps
    a copy of the network, in place of the last one. hold: weights of that scope that are zero then stay zero during the
    phase. loss: None is the cross entropy with --label-smoothing.
    """

    name: str
    epochs: int
    rules: Rules
    enter: tuple[Operator, ...] = ()
    reset_momentum: Scope | None = None
    snapshot: bool = False
    hold: Scope | None = None
    average: Average | None = None
    loss: Loss | None = None
    sharpness: Sharpness | None = None

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"phase {self.name} has {self.epochs} epochs: it needs at least 1")

    def by_group(self, groups: tuple[str, ...]) -> dict[str, Rule]:
        """The rule of each group."""
        named = dict(self.rules)
        return {group: named[group if group in named else "all"] for group in groups}

    def scopes(self) -> list[tuple[str, Scope]]:
        """What acts on which tensors, for checks against a network."""
        once = [(str(operator), operator.scope) for operator in self.enter]
        others = {"reset_momentum": self.reset_momentum, "hold": self.hold}
        return once + [(name, scope) for name, scope in others.items() if scope]


@dataclass(frozen=True)
class Timeline:
    """A whole run: per generation its phases, and the learning-rate curve that every generation repeats.

    cuts: modules at which the network is cut into groups; the first group ends before the first cut. groups: their
    names, one more than there are cuts. They are fixed for the whole run; phases differ in numbers only.

    Raises:
        UsageError: the parts do not fit together; the message names the phase.
    """

    method: str
    generations: tuple[tuple[Phase, ...], ...]
    lr: float
    curve: Curve = Curve()
    cuts: tuple[str, ...] = ("layer3",)
    groups: tuple[str, ...] = ("early", "late")

    def __post_init__(self) -> None:
        require_number("lr", self.lr, 0)
        require(all(self.generations), "a generation has no phases: give it one at least")
        require(bool(self.generations), "the timeline has no generations: give it one at least")
        names = ", ".join(self.groups)
        require(len(self.groups) == len(self.cuts) + 1, f"{len(self.cuts)} cuts make one group more: not {names}")
        require(len(set(self.groups)) == len(self.groups), f"the groups {names} must have different names")
        average = {phase.average for phase in self._phases()}
        each_step = any(a and a.every == "step" for a in average)
        require(not each_step or len(average) == 1, "an average of every step must be the same in all phases")
        seen: set[Need] = {"average"} if each_step else set()
        for g, phases in enumerate(self.generations):
            epochs = self.epochs(g)
            require(self.curve.warmup_epochs <= epochs, f"generation {g} has {epochs} epochs, fewer than the warm-up")
            for phase in phases:
                self._check(phase, f"generation {g}, phase {phase.name}", seen)

    def _check(self, phase: Phase, where: str, seen: set[Need]) -> None:
        named = [name for name, _ in phase.rules]
        for name in named:
            known = name in (*self.groups, "all")
            require(known, f"{where}: no group is called {name}; the groups are {', '.join(self.groups)}")
        for group in self.groups:
            require(group in named or "all" in named, f"{where}: group {group} has no rule; give it one, or all")
        if phase.snapshot:
            seen.add("snapshot")
        for operator in phase.enter:
            kind = operator.source.kind if isinstance(operator, Mix) else ""
            cure = "take one with snapshot = true" if kind == "snapshot" else "give an earlier phase an average"
            missing = kind in ("snapshot", "average") and kind not in seen
            require(not missing, f"{where}: {operator}: there is no {kind} yet; {cure}")
        distils = phase.loss is not None and phase.loss.distil > 0
        require(not distils or "snapshot" in seen, f"{where}: distillation needs a snapshot; take one earlier")
        if phase.average:
            seen.add("average")

    def _phases(self) -> Iterator[Phase]:
        return (phase for phases in self.generations for phase in phases)

    def extends(self, other: Timeline) -> bool:
        """Whether this is the other timeline, or that with more generations behind its own."""
        first = self.generations[: len(other.generations)]
        return replace(self, generations=first) == other and self.needs() == other.needs()

    def needs(self) -> frozenset[Need]:
        """What a run must keep or be given beside weights and momentum.

        Kept in checkpoints: average, snapshot, held (masks). Not kept: initial (weights), images (for scores), loss
        (its numbers).
        """
        needs: set[Need] = set()
        for phase in self._phases():
            kinds = {op.source.kind for op in phase.enter if isinstance(op, Mix)}
            masks = {op.mask.by for op in phase.enter if isinstance(op, Mix) and op.mask}
            rescales = any(isinstance(op, Rescale) for op in phase.enter)
            aligns = any(isinstance(op, Align) for op in phase.enter)
            found: dict[Need, bool] = {
                "average": phase.average is not None,
                "snapshot": phase.snapshot,
                "held": phase.hold is not None,
                "initial": "initial" in kinds or rescales,
                "images": "snip" in masks or aligns,
                "loss": phase.loss is not None,
            }
            needs |= {need for need, wanted in found.items() if wanted}
        return frozenset(needs)

    def ema_decay(self, ema: float) -> float | None:
        """The decay of the run's average: `ema` of the settings, or the timeline's; 1 for one of epochs, None without.

        Raises UsageError if there are both.
        """
        average = next((phase.average for phase in self._phases() if phase.average), None)
        require(not (ema and average), "--ema: this timeline keeps an average of its own; drop --ema")
        if average is None:
            return ema or None
        return average.decay if average.every == "step" else 1.0

    def slim(self) -> float | None:
        """The share of channels that a mask by kels leaves alone; None without one."""
        masks = (op.mask for phase in self._phases() for op in phase.enter if isinstance(op, Mix) and op.mask)
        return next((1 - mask.share for mask in masks if mask.by == "kels"), None)

    def effective(self) -> Timeline:
        """The same training without cuts that make no difference: equal for timelines that train alike."""
        by_group = [set(phase.by_group(self.groups).values()) for phase in self._phases()]
        if any(len(rules) > 1 for rules in by_group):
            return self
        generations = tuple(
            tuple(replace(phase, rules=(("all", phase.by_group(self.groups)[self.groups[0]]),)) for phase in phases)
            for phases in self.generations
        )
        return replace(self, cuts=(), groups=("all",), generations=generations)

    def epochs(self, generation: int) -> int:
        """Length of a generation in epochs."""
        return sum(phase.epochs for phase in self.generations[generation])

    def total_epochs(self) -> int:
        """Length of the run in epochs."""
        return sum(self.epochs(g) for g in range(len(self.generations)))

    def phase(self, generation: int, epoch: int) -> tuple[Phase, int]:
        """The phase that holds an epoch of a generation, and the phase's first epoch; IndexError if none does."""
        start = 0
        for phase in self.generations[generation]:
            if start <= epoch < start + phase.epochs:
                return phase, start
            start += phase.epochs
        raise IndexError(f"generation {generation} has {start} epochs, epoch {epoch} is not one of them")

    def number(self, generation: int, epoch: int) -> int:
        """The place among its generation's phases of the one that holds an epoch."""
        ends = itertools.accumulate(phase.epochs for phase in self.generations[generation])
        return sum(end <= epoch for end in ends)

    def rates(self, generation: int, epoch: int) -> dict[str, dict[str, float]]:
        """The numbers of each group in an epoch: lr, lr_multiplier, sign, weight_decay."""
        phase, start = self.phase(generation, epoch)
        lr, numbers = self.curve.rate(self.lr, epoch, self.epochs(generation)), {}
        for group, rule in phase.by_group(self.groups).items():
            own = rule.curve.rate(self.lr, epoch - start, phase.epochs) if rule.curve else lr
            factor = rule.multiplier(epoch - start, phase.epochs)
            numbers[group] = dict(lr=own, lr_multiplier=factor, sign=rule.sign, weight_decay=rule.weight_decay)
        return numbers

    def after(self, generation: int, epoch: int) -> tuple[int, int]:
        """The epoch that follows; (number of generations, 0) after the last."""
        return (generation, epoch + 1) if epoch + 1 < self.epochs(generation) else (generation + 1, 0)

    def walk(self) -> Iterator[tuple[int, int]]:
        """Every (generation, epoch)."""
        return ((g, epoch) for g in range(len(self.generations)) for epoch in range(self.epochs(g)))

    def index(self, generation: int, epoch: int) -> int:
        """Epochs finished before this position, over the whole run."""
        return sum(self.epochs(g) for g in range(generation)) + epoch
