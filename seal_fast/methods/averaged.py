"""Stochastic weight averaging, and born-again networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from seal_fast.methods.method import Method, descends, plain, repeated, single
from seal_fast.methods.operators import EVERYTHING, Average, Loss, Mix, Source, require
from seal_fast.methods.schedule import Curve, Timeline, rules

if TYPE_CHECKING:
    from seal_fast.config import Config


@dataclass(frozen=True)
class Swa(Method):
    """SWA (Izmailov et al., arXiv 1803.05407; timgaripov/swa): the mean of the weights at the last epochs' ends.

    start: share of all generations' epochs before the average begins. lr: constant learning rate from then on, as a
        share of --lr; before, it falls to that linearly.

    BatchNorm's statistics are measured for the averaged weights, in one pass over the training images, in the order and
    with the augmentation of the epoch. The released code stays at --lr for the first half before it falls.
    """

    start: float = 0.75
    lr: float = 0.5

    def timeline(self, config: Config) -> Timeline:
        total = config.epochs * config.generations
        begin = round(self.start * total)
        require(0 < begin < total, f"--option start={self.start:g}: leaves no epoch before it, or none after it")
        falls = rules(all=descends(config, lr_multiplier_end=self.lr))
        stays = rules(all=descends(config, lr_multiplier=self.lr))
        average = Average(every="epoch", anew=True)
        phases = [
            plain(config, begin, fresh=False, rules=falls),
            plain(config, total - begin, fresh=False, rules=stays, average=average),
        ]
        return single(config, phases, curve=Curve("constant", warmup_epochs=config.warmup()))


@dataclass(frozen=True)
class BornAgain(Method):
    """Born-again networks (Furlanello et al., arXiv 1805.04770): each generation learns from the one before.

    weight: of the distillation beside the cross entropy. temperature: of both softmaxes.

    Before each later generation everything is drawn as in a new network; momentum is fresh. The teacher is in eval
    mode.
    """

    weight: float = 1.0
    temperature: float = 1.0

    def timeline(self, config: Config) -> Timeline:
        loss = Loss(distil=self.weight, temperature=self.temperature)
        again = Mix(EVERYTHING, Source("draw", "he-normal"))
        return repeated(config, plain(config, enter=(again,), snapshot=True, loss=loss))
