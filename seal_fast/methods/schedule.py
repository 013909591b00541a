"""When what happens to which parameters: learning-rate curve, phases, generations, the timeline of a run.

A training method is data: a timeline made of frozen values that the trainer obeys. Nothing here imports torch, so a
timeline can be printed (`python -m seal_fast timeline --method seal`) and property-tested in milliseconds.

Source: SEAL, arXiv 2304.04858 (generations, ascent in the early layers); LLF, arXiv 2202.00155 (forgetting).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Distribution = Literal["kaiming-uniform", "he-normal"]


@dataclass(frozen=True)
class Rule:
    """How one parameter group is updated during a phase: p <- p - sign * lr_multiplier * lr * momentum buffer.

    sign: +1 descends, -1 ascends. lr_multiplier: factor on the learning rate, 0 freezes the group.
    weight_decay: added to the gradient as weight_decay * p before the momentum, whatever the sign.
    """

    sign: int = +1
    lr_multiplier: float = 1.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Forget:
    """Re-initialise the convolution and linear weights of one group; BatchNorm and biases are kept (LLF)."""

    group: str
    distribution: Distribution = "kaiming-uniform"


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs in which every group keeps its rule.

    reset_momentum and forget act once, before the first step of the phase. `fc` is a group of its own only in methods
    that treat the classifier unlike the other late layers; None means that it belongs to the late group.
    """

    name: Literal["ascent", "descent"]
    epochs: int
    early: Rule
    late: Rule
    fc: Rule | None = None
    reset_momentum: bool = False
    forget: Forget | None = None

    def rules(self) -> dict[str, Rule]:
        """Rule by group name."""
        groups = {"early": self.early, "late": self.late}
        return groups if self.fc is None else groups | {"fc": self.fc}


def learning_rate(lr: float, epoch: int, epochs: int, warmup_epochs: int) -> float:
    """Linear warm-up, then a half cosine to zero, stepped once an epoch (the papers' shared recipe)."""
    if epoch < warmup_epochs:
        return lr * (epoch + 1) / warmup_epochs
    return lr / 2 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))


@dataclass(frozen=True)
class Timeline:
    """A whole run: per generation its phases, and the one learning-rate curve that every generation repeats."""

    method: str
    generations: tuple[tuple[Phase, ...], ...]
    lr: float
    warmup_epochs: int

    def __post_init__(self) -> None:
        groups = {tuple(phase.rules()) for phases in self.generations for phase in phases}
        if len(groups) != 1:
            raise ValueError(f"a timeline's groups are fixed for life, these phases name {sorted(groups)}")

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the parameter groups, in forward order."""
        return tuple(self.generations[0][0].rules())

    def epochs(self, generation: int) -> int:
        """Length of a generation in epochs."""
        return sum(phase.epochs for phase in self.generations[generation])

    def total_epochs(self) -> int:
        """Length of the run in epochs."""
        return sum(self.epochs(g) for g in range(len(self.generations)))

    def phase(self, generation: int, epoch: int) -> tuple[Phase, int]:
        """The phase that holds an epoch of a generation, and the phase's first epoch.

        Raises:
            IndexError: the generation has no such epoch.
        """
        start = 0
        for phase in self.generations[generation]:
            if start <= epoch < start + phase.epochs:
                return phase, start
            start += phase.epochs
        raise IndexError(f"generation {generation} has {start} epochs, epoch {epoch} is not one of them")

    def learning_rate(self, generation: int, epoch: int) -> float:
        """Learning rate before a phase's scale."""
        return learning_rate(self.lr, epoch, self.epochs(generation), self.warmup_epochs)

    def after(self, generation: int, epoch: int) -> tuple[int, int]:
        """The epoch that follows; (number of generations, 0) after the last."""
        return (generation, epoch + 1) if epoch + 1 < self.epochs(generation) else (generation + 1, 0)

    def walk(self, generation: int = 0, epoch: int = 0) -> Iterator[tuple[int, int]]:
        """Every (generation, epoch) from a position to the end."""
        while generation < len(self.generations):
            yield generation, epoch
            generation, epoch = self.after(generation, epoch)

    def index(self, generation: int, epoch: int) -> int:
        """Epochs finished before this position, over the whole run."""
        return sum(self.epochs(g) for g in range(generation)) + epoch

    def __str__(self) -> str:
        lines = [f"{self.method}: {len(self.generations)} generations, {self.total_epochs()} epochs"]
        for g, phases in enumerate(self.generations):
            start = 0
            for phase in phases:
                peak = max(self.learning_rate(g, e) for e in range(start, start + phase.epochs))
                groups = ", ".join(f"{name} {_verb(rule, peak)}" for name, rule in phase.rules().items())
                once = ["clear momentum"] if phase.reset_momentum else []
                if phase.forget:
                    once.append(f"re-initialise {phase.forget.group} ({phase.forget.distribution})")
                entry = f"; first: {', '.join(once)}" if once else ""
                lines.append(f"  g{g} epochs {start}-{start + phase.epochs - 1} {phase.name}: {groups}{entry}")
                start += phase.epochs
        return "\n".join(lines)


def _verb(rule: Rule, lr: float) -> str:
    if rule.lr_multiplier == 0:
        return "frozen"
    verb = "ascends" if rule.sign < 0 else "descends"
    return f"{verb} (lr up to {lr * rule.lr_multiplier:g}, weight decay {rule.weight_decay:g})"
