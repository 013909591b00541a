"""Forgetting by pruning: DSD, AC/DC, iterative magnitude pruning with rewinding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from seal_fast.methods.method import Method, cycles, descends, plain, single, timeline
from seal_fast.methods.operators import ZERO, Mask, Mix, Scope, Source, require
from seal_fast.methods.schedule import Phase, Timeline, rules

if TYPE_CHECKING:
    from seal_fast.config import Config


def prune(share: float, across: str = "tensor") -> Mix:
    """The smallest share of weights becomes zero."""
    return Mix(Scope(), ZERO, mask=Mask("magnitude", share, across=across))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Dsd(Method):
    """DSD (Han et al., arXiv 1607.04381): dense, sparse, dense.

    share: of each weight tensor, the smallest, that odd generations hold at zero. Even ones release it at zero and
        train at a tenth of the learning rate.

    The paper does not say what becomes of the momentum: it is fresh here.
    """

    share: float = 0.3

    def timeline(self, config: Config) -> Timeline:
        sparse = plain(config, enter=(prune(self.share),), hold=Scope())
        dense = plain(config, rules=rules(all=descends(config, lr_multiplier=0.1)))
        return cycles(config, [[sparse if g % 2 else dense] for g in range(1, config.generations)])


@dataclass(frozen=True)
class Acdc(Method):
    """AC/DC (Peste et al., arXiv 2106.12379; IST-DASLab/ACDC): compressed and decompressed stretches in turn.

    share: of each weight tensor, the smallest, that is pruned. warm: dense epochs at first. sparse, dense: epochs that
        the mask is held and then released.

    Momentum is zeroed on release, a flag of the released code. One learning-rate cycle over all generations' epochs:
    the configured cosine, where the released code has steps.
    """

    share: float = 0.75
    warm: int = 10
    sparse: int = 20
    dense: int = 20

    def timeline(self, config: Config) -> Timeline:
        require(min(self.warm, self.sparse, self.dense) >= 1, "--option warm, sparse and dense: must be at least 1")
        left = config.epochs * config.generations
        phases: list[Phase] = []
        while left:
            length = min(left, self.warm if not phases else self.sparse if len(phases) % 2 else self.dense)
            if len(phases) % 2:
                sparse = plain(config, length, fresh=False, name="sparse", enter=(prune(self.share),), hold=Scope())
                phases.append(sparse)
            else:
                phases.append(plain(config, length, fresh=bool(phases)))
            left -= length
        return single(config, phases)


@dataclass(frozen=True)
class Imp(Method):
    """Iterative magnitude pruning with rewinding (Frankle et al., arXiv 1803.03635 and 1912.05671).

    share: of the weights that are left, the smallest over the whole network, set to zero for good before each later
        generation. epoch: of generation 0, after which the weights, biases and BatchNorm were as they become again.

    Momentum is fresh and the learning-rate cycle begins anew.
    """

    share: float = 0.2
    epoch: int = 1

    def timeline(self, config: Config) -> Timeline:
        require(0 < self.epoch < config.epochs, f"--option epoch={self.epoch}: must be from 1 to below --epochs")
        first = plain(config, self.epoch, fresh=False)
        rest = plain(config, config.epochs - self.epoch, fresh=False, snapshot=True)
        rewind = (
            Mix(Scope(), Source("snapshot"), mask=Mask("nonzero")),
            Mix(Scope(parts=("bias", "norm", "statistics")), Source("snapshot")),
        )
        later = [
            (plain(config, enter=(prune(1 - (1 - self.share) ** g, "scope"), *rewind), hold=Scope()),)
            for g in range(1, config.generations)
        ]
        return timeline(config, ((first, rest), *later))
