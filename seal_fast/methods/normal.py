"""Normal training, the two baselines of the SEAL and LLF papers, and rivals that forget nothing: SGDR, SAM, ASAM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seal_fast.methods.method import Method, plain, repeated, single, timeline
from seal_fast.methods.operators import Sharpness, require
from seal_fast.methods.schedule import Curve, Phase, Timeline

if TYPE_CHECKING:
    from seal_fast.config import Config


@dataclass(frozen=True)
class Restart(Method):
    """The same generations and learning-rate cycles as SEAL and LLF, with nothing forgotten."""

    def timeline(self, config: Config) -> Timeline:
        return repeated(config, plain(config))


@dataclass(frozen=True)
class Long(Method):
    """One cosine over as many epochs as all generations together; the warm-up is as long as one generation's."""

    def timeline(self, config: Config) -> Timeline:
        return single(config, [_whole(config)])


@dataclass(frozen=True)
class Sgdr(Method):
    """SGDR (Loshchilov and Hutter, arXiv 1608.03983): cosine restarts, momentum kept, no warm-up.

    growth: each cycle is so many times as long as the one before (the paper's T_mult).

    The cycles share the epochs of all generations, so that runs compare; the paper gives the first one's length.
    """

    growth: float = 2.0

    def timeline(self, config: Config) -> Timeline:
        require(self.growth >= 1, f"--option growth={self.growth:g}: must be at least 1")
        total, later = config.epochs * config.generations, config.generations - 1
        few = f"--option growth={self.growth:g}: the first cycle has no epoch; lower it"
        require(later * math.log(self.growth) <= math.log(2 * total), few)  # beyond, powers overflow
        parts = [self.growth**g for g in range(config.generations)]
        ends = [round(total * sum(parts[: g + 1]) / sum(parts)) for g in range(config.generations)]
        lengths = [b - a for a, b in zip([0, *ends], ends, strict=False)]
        require(min(lengths) >= 1, few)
        phases = tuple((plain(config, length, fresh=False),) for length in lengths)
        return timeline(config, phases, curve=Curve())


@dataclass(frozen=True)
class Sam(Method):
    """SAM (Foret et al., arXiv 2010.01412) over one cosine as in `long`; two passes a step.

    rho: radius of the ascent step.

    Code: davda54/sam, unofficial. As there, weight decay acts in the second step only and BatchNorm's running
    statistics come from the first pass.
    """

    rho: float = 0.05

    def timeline(self, config: Config) -> Timeline:
        return single(config, [_whole(config, Sharpness(self.rho))])


@dataclass(frozen=True)
class Asam(Method):
    """ASAM (Kwon et al., arXiv 2102.11600): SAM with a radius relative to each weight's size; see `sam`.

    rho: radius; davda54/sam's example has 2.0.
    """

    rho: float = 2.0

    def timeline(self, config: Config) -> Timeline:
        return single(config, [_whole(config, Sharpness(self.rho, adaptive=True))])


def _whole(config: Config, sharpness: Sharpness | None = None) -> Phase:
    return plain(config, config.epochs * config.generations, fresh=False, sharpness=sharpness)
